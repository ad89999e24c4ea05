"""Says where rendered Kubernetes manifests (on standard input) and the service contradict each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import yaml

from deploy.check_metric_names import exposed
from service.app import create_app
from service.settings import Settings

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

BUDGET_PART = Fraction(60, 100)
"""Part of the memory limit that requests may hold, unless LOSS_MEMORY_BUDGET is given."""

BYTES_HELD = 2
"""Largest memory of a binary request, in sizes of its body."""


def quantity(text: str) -> int:
    """Return the bytes of a quantity such as `4Gi`."""
    digits = text.rstrip("KMGi")
    return int(digits) * UNITS[text[len(digits) :]]


def contradictions(manifests: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence for everything that does not go together."""
    by_kind = {manifest["kind"]: manifest["spec"] for manifest in manifests if "spec" in manifest}
    pod = by_kind["Deployment"]["template"]
    yield from selector_faults(by_kind, pod["metadata"]["labels"])
    (container,) = pod["spec"]["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    settings = settings_of(variables)
    yield from variable_faults(variables)
    yield from probe_faults(container, settings)
    yield from resource_faults(container, variables, settings)
    yield from security_faults(pod["spec"], container)
    if pod["spec"]["terminationGracePeriodSeconds"] <= settings.drain_seconds:
        yield f"the grace period does not outlast the {settings.drain_seconds} s of draining"
    if pod["spec"].get("enableServiceLinks", True):
        yield "service links put variables called LOSS_PORT into the environment"
    for metric in by_kind["HorizontalPodAutoscaler"]["metrics"]:
        if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in exposed():
            yield f"/metrics has no {metric['pods']['metric']['name']}, which the autoscaler wants"
    if "replicas" in by_kind["Deployment"]:
        yield "the deployment sets replicas, which are the autoscaler's to set"


def selector_faults(by_kind: dict[str, dict[str, Any]], labels: dict[str, str]) -> Iterator[str]:
    """Yield what does not select the service's pods and nothing else: an empty selector is every pod, or none."""
    selectors = {
        "Deployment": by_kind["Deployment"]["selector"]["matchLabels"],
        "Service": by_kind["Service"].get("selector"),
        "PodDisruptionBudget": by_kind["PodDisruptionBudget"].get("selector", {}).get("matchLabels"),
        "NetworkPolicy": by_kind["NetworkPolicy"]["podSelector"].get("matchLabels"),
    }
    for kind, selector in selectors.items():
        if not selector or not selector.items() <= labels.items():
            yield f"the {kind} selects {selector}, but pods are labelled {labels}"
    for spread in by_kind["Deployment"]["template"]["spec"]["topologySpreadConstraints"]:
        if not spread["labelSelector"]["matchLabels"].items() <= labels.items():
            yield f"the spread over {spread['topologyKey']} counts other pods"


def settings_of(variables: dict[str, Any]) -> Settings:
    """Return the settings that the variables make; those that the cluster fills in are left out."""
    values = {name.removeprefix("LOSS_").lower(): variable.get("value") for name, variable in variables.items()}
    unusable = {"api_keys", "device"}  # a file that is only there in a pod, and a device that may not be here
    return Settings(**{name: value for name, value in values.items() if value is not None and name not in unusable})


def variable_faults(variables: dict[str, Any]) -> Iterator[str]:
    """Yield variables that are no settings."""
    for name in variables:
        if name.startswith("LOSS_") and name.removeprefix("LOSS_").lower() not in Settings.model_fields:
            yield f"{name} is not a setting"


def probe_faults(container: dict[str, Any], settings: Settings) -> Iterator[str]:
    """Yield probes that ask for the wrong thing."""
    paths = create_app(Settings(device="cpu", threads=1)).openapi()["paths"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for name, wanted in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
        probe = container[f"{name}Probe"]["httpGet"]
        if probe["path"] != f"/health/{wanted}" or probe["path"] not in paths:
            yield f"the {name} probe asks for {probe['path']}"
        if ports.get(probe["port"], probe["port"]) != settings.port:
            yield f"the {name} probe asks at port {probe['port']}, but the service listens on {settings.port}"
        if {"name": "Host", "value": "localhost"} not in probe.get("httpHeaders", []):
            yield f"the {name} probe names the pod's address as its Host, which LOSS_ALLOWED_HOSTS cannot list"


def resource_faults(container: dict[str, Any], variables: dict[str, Any], settings: Settings) -> Iterator[str]:
    """Yield resources that the settings do not agree with."""
    limits = container["resources"]["limits"]
    threads = variables["LOSS_THREADS"]
    source = threads.get("valueFrom", {}).get("resourceFieldRef", {}).get("resource")
    if source != "limits.cpu" and threads.get("value") != limits["cpu"]:
        yield "LOSS_THREADS is not the cores of the limit"
    if container["resources"]["requests"]["memory"] != limits["memory"]:
        yield "less memory is requested than requests may hold: the node can run out of it"
    given = variables.get("LOSS_MEMORY_BUDGET", {}).get("value")
    allowed = quantity(limits["memory"]) * BUDGET_PART
    if given is not None and int(given) > allowed:
        yield f"LOSS_MEMORY_BUDGET is more than {float(BUDGET_PART):.0%} of the memory limit"
    if settings.max_body_bytes * BYTES_HELD > (allowed if given is None else int(given)):
        yield "a body of LOSS_MAX_BODY_BYTES does not fit into the memory budget"


def security_faults(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    """Yield privileges that the service does not need."""
    own = container["securityContext"]
    held = {
        "it may run as root": pod["securityContext"].get("runAsNonRoot") is not True,
        "its root is writable": own.get("readOnlyRootFilesystem") is not True,
        "it may gain privileges": own.get("allowPrivilegeEscalation") is not False,
        "it has capabilities": own.get("capabilities", {}).get("drop") != ["ALL"],
        "it has no seccomp profile": pod["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"},
        "it has a service account's token": pod.get("automountServiceAccountToken") is not False,
    }
    yield from (sentence for sentence, is_held in held.items() if is_held)


def main() -> int:
    """Print the contradictions; 1 when there are any."""
    found = list(contradictions([manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]))
    print("\n".join(found) or "the manifests agree with the service")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
