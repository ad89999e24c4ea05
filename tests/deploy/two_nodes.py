"""A Ray cluster of two nodes on loopback, for as long as standard input is open."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODE = {
    "num_cpus": 8,  # as many as the config asks for, whatever the machine has
    "num_gpus": 0,
    "memory": 32 << 30,
    "object_store_memory": 128 << 20,
    "node_ip_address": "127.0.0.1",
    "include_dashboard": False,
}


def main() -> None:
    cluster = Cluster()
    cluster.add_node(**NODE)
    cluster.add_node(**NODE)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
