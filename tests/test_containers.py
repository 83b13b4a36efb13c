"""The manifest of resident workers on Kubernetes: what it names is there. No cluster is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml

from prefect_regional_diffusion.deployments import worker
from prefect_regional_diffusion.deployments.pools import template
from prefect_regional_diffusion.tasks.machine.settings import Settings
from tests.processes import ROOT

MANIFEST: dict[str, Any] = yaml.safe_load((ROOT / "examples/kubernetes/resident-worker.yaml").read_text())
POD: dict[str, Any] = MANIFEST["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
OPERATE = (ROOT / "docs/operate.md").read_text()
ENV: dict[str, str | None] = {variable["name"]: variable.get("value") for variable in CONTAINER["env"]}


def test_it_is_a_deployment_whose_pods_it_finds() -> None:
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("apps/v1", "Deployment")
    labels = MANIFEST["spec"]["template"]["metadata"]["labels"]
    assert MANIFEST["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_command_is_a_worker_with_one_gpu() -> None:
    assert CONTAINER["command"] == ["python", "-m", worker.__name__]
    options = worker.parser().parse_args(CONTAINER["args"])
    assert (options.pool, options.limit, options.plain, options.with_healthcheck) == ("gpu", 1, False, True)
    assert options.keep > 1, "no model would stay in memory"
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == options.limit


def test_what_the_command_line_takes_from_the_environment_is_there() -> None:
    assert set(re.findall(r"\$\((\w+)\)", " ".join(CONTAINER["args"]))) <= ENV.keys()


@pytest.mark.parametrize("name", [name for name in ENV if name != "POD_NAME"])
def test_each_variable_is_a_setting(name: str) -> None:
    if name.startswith("REGIONAL_"):
        assert name.removeprefix("REGIONAL_").lower() in Settings.model_fields
    else:
        assert hasattr(prefect.settings, name)


def test_names_are_those_of_the_documentation() -> None:
    assert CONTAINER["image"] in OPERATE
    assert "examples/kubernetes/resident-worker.yaml" in OPERATE
    for source in CONTAINER["envFrom"]:
        assert f"secret generic {source['secretRef']['name']} " in OPERATE


def test_a_run_has_the_time_to_be_handed_back() -> None:
    assert POD["terminationGracePeriodSeconds"] >= worker.GRACE_SECONDS + 20


def test_it_asks_for_nodes_as_the_pool_of_kubernetes_does() -> None:
    variables = template("kubernetes")["variables"]["properties"]
    assert POD["nodeSelector"] == variables["node_selector"]["default"]
    assert POD["tolerations"] == variables["tolerations"]["default"]


def test_every_mount_has_a_volume_and_models_are_allowed() -> None:
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in CONTAINER["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in POD["volumes"]}
    assert str(mounts["models"]) == ENV["REGIONAL_ASSET_ROOTS"]
    assert mounts["shm"] == Path("/dev/shm")


def test_it_is_asked_whether_it_lives_where_it_answers() -> None:
    probe = CONTAINER["livenessProbe"]
    assert str(probe["httpGet"]["port"]) == ENV["PREFECT_WORKER_WEBSERVER_PORT"]
    assert probe["httpGet"]["path"] == "/health"
