"""What is set up on a server, without one: deployments, work-pool templates, the automation."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import Mock
from uuid import uuid4

import pytest
import yaml
from docker.models.containers import _create_container_args  # pyright: ignore[reportAttributeAccessIssue, reportMissingTypeStubs] - what it asks Docker for
from fastapi import HTTPException
from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import construct_schedule
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration

from prefect_regional_diffusion.deployments.automations import TAGS, silent_runs
from prefect_regional_diffusion.deployments.pools import KINDS, fixed_template, template
from prefect_regional_diffusion.deployments.process_worker import AsThePoolSays
from prefect_regional_diffusion.flows.queueing.run_states import TAG
from prefect_regional_diffusion.flows.recurring import recurring
from prefect_regional_diffusion.sampling_core.errors import BadInput
from tests.processes import ROOT

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]
BY_NAME = {deployment["name"]: deployment for deployment in DEPLOYMENTS}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_entrypoint_is_a_flow_of_that_name(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    assert isinstance(flow, Flow)
    assert flow.name == deployment["name"]
    assert flow.persist_result is False, "results would be read back with a serializer that they name themselves"


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_deployment_and_flow_says_what_it_is_for(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    assert len(deployment["description"].split()) >= 8
    assert len((flow.description or "").split()) >= 8


def test_parents_never_hold_a_slot_of_the_pool_of_their_children() -> None:
    pools = {name: deployment["work_pool"]["name"] for name, deployment in BY_NAME.items()}
    assert {name for name, pool in pools.items() if pool == "gpu"} == {"render", "original-node", "shard", "recurring"}
    assert {name for name, pool in pools.items() if pool == "control"} == {"grid", "batch", "reap"}


def test_the_reaper_looks_at_all_deployments_but_itself() -> None:
    assert [name for name, deployment in BY_NAME.items() if TAG not in deployment["tags"]] == ["reap"]
    assert BY_NAME["reap"]["schedules"] == [{"slug": "every-minute", "interval": 60}]
    assert BY_NAME["reap"]["concurrency_limit"]["limit"] == 1


@pytest.mark.parametrize("schedule", BY_NAME["recurring"]["schedules"], ids=lambda schedule: schedule["slug"])
def test_example_schedules_are_valid_and_asleep(schedule: dict[str, Any]) -> None:
    assert schedule["active"] is False
    recurring.validate_parameters(schedule["parameters"])
    construct_schedule(
        cron=schedule.get("cron"), interval=schedule.get("interval"), timezone=schedule.get("timezone", "UTC")
    )


C = TypeVar("C", bound=BaseJobConfiguration)


class Kubernetes(BaseJobConfiguration):
    """The part of Prefect's class for Kubernetes that matters here; its package is not installed for tests."""

    job_manifest: dict[str, Any]


class Docker(BaseJobConfiguration):
    image: str
    auto_remove: bool
    container_create_kwargs: dict[str, Any]


PLACES = {"store": "s3://bucket/prefix", "out": "s3://bucket/pictures"}


def pool(kind: str, **values: Any) -> dict[str, Any]:
    """The base job template of a pool for which an operator has set these values."""
    return fixed_template(kind, values if kind == "process" else PLACES | values)


def rendered(configuration: type[C], kind: str, /, **values: Any) -> C:
    return asyncio.run(configuration.from_template_and_values(pool(kind, **values), {}, client=Mock()))


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [(ProcessJobConfiguration, "process"), (Docker, "docker"), (Kubernetes, "kubernetes")],
)
def test_every_template_renders_and_keeps_its_environment(configuration: type[BaseJobConfiguration], kind: str) -> None:
    """What an operator sets is added. Heartbeats come often enough for the reaper, and a SIGTERM requeues."""
    job = rendered(configuration, kind, env={"REGIONAL_DTYPE": "float32"})
    assert "{{" not in job.model_dump_json()
    assert job.env["REGIONAL_DTYPE"] == "float32"
    assert job.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert job.env["DO_NOT_TRACK"] == "1"
    # A process pool's worker does that itself: deployments.worker.
    assert (job.env.get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR") == "reschedule") == (kind != "process")


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_what_a_template_uses_it_also_explains(kind: str) -> None:
    variables = template(kind)["variables"]["properties"]
    used = {word.strip(" {}-") for word in _texts(template(kind)["job_configuration"]) if "{{" in word}
    # Prefect adds `env` to a template's own variables without being told to.
    assert used | {"env"} == set(variables)
    assert all(variable.get("title") or variable.get("anyOf") for variable in variables.values())


CONTAINERS = [(Docker, "docker"), (Kubernetes, "kubernetes")]


@pytest.mark.parametrize(("configuration", "kind"), CONTAINERS)
def test_a_container_is_told_where_its_pictures_go(configuration: type[BaseJobConfiguration], kind: str) -> None:
    env = rendered(configuration, kind, env={"REGIONAL_ASSET_ROOTS": "/models"}).env
    assert (env["REGIONAL_STORE"], env["REGIONAL_OUT"]) == tuple(PLACES.values())
    assert env["REGIONAL_ASSET_ROOTS"] == "/models"
    own = rendered(configuration, kind, env={"REGIONAL_OUT": "s3://bucket/others"}).env
    assert own["REGIONAL_OUT"] == "s3://bucket/others"


@pytest.mark.parametrize(("configuration", "kind"), CONTAINERS)
def test_nothing_else_of_the_worker_reaches_a_container(
    configuration: type[BaseJobConfiguration], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the templates have places of their own."""
    monkeypatch.setenv("REGIONAL_OUT", "/mnt/pictures")
    job = rendered(configuration, kind)
    job.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="run"))
    assert job.env["REGIONAL_OUT"] == PLACES["out"]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
@pytest.mark.parametrize("missing", ["store", "out"])
def test_a_pool_whose_pictures_would_be_lost_is_refused(kind: str, missing: str) -> None:
    with pytest.raises(BadInput, match=f"'{missing}' is a required property"):
        fixed_template(kind, {name: place for name, place in PLACES.items() if name != missing})
    with pytest.raises(BadInput, match=f"^{missing}: "):
        fixed_template(kind, PLACES | {missing: ""})


def test_a_setting_that_a_kind_of_pool_does_not_have_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^gpus: 1 is not allowed; allowed: a setting of a docker pool: "):
        pool("docker", gpus=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch PWNED"},
        {"env": {"LD_PRELOAD": "/tmp/evil.so"}},
        {"env.LD_PRELOAD": "/tmp/evil.so"},
        {"image": "evil/image"},
        {"working_dir": "/tmp"},
        {"volumes": ["/:/host"]},
        {"privileged": True},
        {"out": "s3://evil"},
        {"name": "{{ prefect.blocks.secret.s3-keys }}"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_nobody_sets_anything_for_a_run(kind: str, variables: dict[str, Any]) -> None:
    """Prefect's server refuses it, and so does our worker if it gets such a run nevertheless."""
    base = pool(kind)
    _ask_for_a_run(base, {}, {})
    for of_deployment, of_run in ((variables, {}), ({}, variables)):
        with pytest.raises(HTTPException, match="422"):
            _ask_for_a_run(base, of_deployment, of_run)
    if kind == "process":
        with pytest.raises(ValueError, match="cannot be set; the pool has fixed them"):
            asyncio.run(AsThePoolSays.from_template_and_values(base, variables, client=Mock()))


def test_a_run_has_the_workers_folder_unless_its_pool_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores and outputs are named relative to it; in a temporary folder, as Prefect's, they would be lost."""
    monkeypatch.chdir(tmp_path)
    for values, folder in (({}, tmp_path), ({"working_dir": "/srv"}, Path("/srv"))):
        base = fixed_template("process", values)
        configuration = asyncio.run(AsThePoolSays.from_template_and_values(base, {}, client=Mock()))
        assert configuration.working_dir == folder


def _ask_for_a_run(base: dict[str, Any], of_deployment: dict[str, Any], of_run: dict[str, Any]) -> None:
    """Prefect's own check, in its server, which takes three seconds to import."""
    from prefect.server.api.validation import validate_job_variables_for_deployment_flow_run
    from prefect.server.schemas.actions import DeploymentFlowRunCreate
    from prefect.server.schemas.core import WorkPool

    work_pool = WorkPool(name="gpu", type="any", base_job_template=base, default_queue_id=uuid4())
    deployment = Mock(job_variables=of_deployment, work_queue=Mock(work_pool=work_pool))
    run = DeploymentFlowRunCreate.model_validate({"job_variables": of_run})
    asyncio.run(validate_job_variables_for_deployment_flow_run(Mock(), deployment, run))


def test_our_deployments_set_nothing_for_their_runs() -> None:
    assert not any(deployment["work_pool"].get("job_variables") for deployment in DEPLOYMENTS)


def test_an_image_gets_nothing_that_git_does_not_keep() -> None:
    """Nor git's own folder, nor the keys that docs/operate.md lets you write into `regional.env`."""
    left_out = {line.removeprefix("**/").rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert ignored | {".git", "*.env"} <= left_out


def test_docker_asks_for_a_gpu() -> None:
    job = rendered(Docker, "docker")
    # docker-py's own check of the arguments, and what it would send.
    sent = _create_container_args({"image": job.image, "version": "1.45", **job.container_create_kwargs})
    (request,) = sent["host_config"]["DeviceRequests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", 1, [["gpu"]])
    assert sent["host_config"]["ShmSize"] == 2 * 2**30


def test_kubernetes_asks_for_gpus_on_nodes_that_have_them() -> None:
    manifest = rendered(Kubernetes, "kubernetes", gpus=2, shared_memory="8Gi").job_manifest
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert manifest["spec"]["backoffLimit"] == 0, "Kubernetes and Prefect would both start it again"
    pod = manifest["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert container["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert container["envFrom"] == [{"secretRef": {"name": "regional", "optional": True}}]


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_templates_hold_no_secret(kind: str) -> None:
    env = template(kind)["variables"]["properties"]["env"]["default"]
    assert not [name for name in env if any(word in name for word in ("KEY", "SECRET", "TOKEN", "AUTH"))]


def test_the_automation_leaves_other_peoples_runs_and_slow_servers_alone() -> None:
    automation = silent_runs()
    trigger = cast("Any", automation.trigger)
    assert trigger.within >= timedelta(seconds=3 * 30)
    assert trigger.match_related.model_dump() == {"prefect.resource.id": [f"prefect.tag.{tag}" for tag in TAGS]}
    assert TAG in TAGS
    assert {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "AwaitingRetry")} < trigger.expect


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for part in cast("dict[str, object]", value).values() for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in cast("list[object]", value) for text in _texts(part)]
    return [value] if isinstance(value, str) else []
