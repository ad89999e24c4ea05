"""Measurements that a person runs: `make accuracy` and `make bench`. Nothing here is timed by the tests."""
