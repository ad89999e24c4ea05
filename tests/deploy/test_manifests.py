"""The Kubernetes manifests go together with the service, and what checks that notices when they do not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.check_manifests import contradictions
from deploy.check_metric_names import exposed

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))

Manifests = dict[str, dict[str, Any]]


def _base() -> Manifests:
    """Return the manifests of the base, by kind."""
    found = [yaml.safe_load(path.read_text()) for path in KUBERNETES.glob("base/*.yaml")]
    return {manifest["kind"]: manifest for manifest in found}


def _pod(manifests: Manifests) -> dict[str, Any]:
    pod: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return pod


def _container(manifests: Manifests) -> dict[str, Any]:
    container: dict[str, Any] = _pod(manifests)["containers"][0]
    return container


def _set_variable(manifests: Manifests, name: str, value: str) -> None:
    variables = _container(manifests)["env"]
    variables[:] = [variable for variable in variables if variable["name"] != name] + [{"name": name, "value": value}]


def test_the_base_agrees_with_the_service() -> None:
    assert not list(contradictions(list(_base().values())))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_overlay_agrees_with_the_service(overlay: Path) -> None:
    command = ["kubectl", "kustomize", str(overlay)]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    assert not list(contradictions(list(yaml.safe_load_all(rendered))))


def test_the_rule_of_the_prometheus_adapter_makes_the_metric_that_the_autoscaler_wants() -> None:
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    metrics = _base()["HorizontalPodAutoscaler"]["spec"]["metrics"]

    assert rule["name"]["as"] in [metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"]
    assert rule["seriesQuery"].partition("{")[0] in exposed()
    assert re.fullmatch(rule["name"]["matches"], rule["seriesQuery"].partition("{")[0])


BREAKAGES: list[tuple[str, Callable[[Manifests], Any]]] = [
    ("the grace period does not outlast", lambda m: _pod(m).update(terminationGracePeriodSeconds=30)),
    ("service links put variables", lambda m: _pod(m).pop("enableServiceLinks")),
    ("LOSS_DRAIN is not a setting", lambda m: _set_variable(m, "LOSS_DRAIN", "1")),
    ("LOSS_THREADS is not the cores", lambda m: _set_variable(m, "LOSS_THREADS", "8")),
    ("does not fit into the memory budget", lambda m: _set_variable(m, "LOSS_MAX_BODY_BYTES", "2147483648")),
    ("LOSS_MEMORY_BUDGET is more than 60%", lambda m: _set_variable(m, "LOSS_MEMORY_BUDGET", "4294967296")),
    ("but the service listens on 9000", lambda m: _set_variable(m, "LOSS_PORT", "9000")),
    ("less memory is requested", lambda m: _container(m)["resources"]["requests"].update(memory="1Gi")),
    (
        "the liveness probe asks for /health/ready",
        lambda m: _container(m)["livenessProbe"]["httpGet"].update(path="/health/ready"),
    ),
    ("names the pod's address", lambda m: _container(m)["startupProbe"]["httpGet"].pop("httpHeaders")),
    ("the Service selects None", lambda m: m["Service"]["spec"].pop("selector")),
    ("the PodDisruptionBudget selects None", lambda m: m["PodDisruptionBudget"]["spec"].pop("selector")),
    ("the NetworkPolicy selects None", lambda m: m["NetworkPolicy"]["spec"].update(podSelector={})),
    ("its root is writable", lambda m: _container(m)["securityContext"].pop("readOnlyRootFilesystem")),
    ("it has capabilities", lambda m: _container(m)["securityContext"].pop("capabilities")),
    ("it may run as root", lambda m: _pod(m)["securityContext"].update(runAsNonRoot=False)),
    (
        "/metrics has no loss_in_flight, which the autoscaler wants",
        lambda m: m["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"].update(name="loss_in_flight"),
    ),
    ("the deployment sets replicas", lambda m: m["Deployment"]["spec"].update(replicas=2)),
]


@pytest.mark.parametrize(("said", "break_it"), BREAKAGES, ids=[said for said, _ in BREAKAGES])
def test_a_contradiction_is_named(said: str, break_it: Callable[[Manifests], Any]) -> None:
    manifests = _base()
    break_it(manifests)

    found = list(contradictions(list(manifests.values())))

    assert any(said in sentence for sentence in found), found
