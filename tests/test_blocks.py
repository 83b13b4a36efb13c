"""Blocks of a real Prefect server: where a machine's store and models are, who says so, and how mistakes are told."""

# pyright: reportArgumentType=false
# pydantic takes text for secrets, as people write them.

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from prefect_regional_diffusion import ModelCatalog, RegionalStore
from prefect_regional_diffusion.sampling_core.errors import BadInput, RegionalError, ServerError
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.text import plain_text
from prefect_regional_diffusion.sampling_core.text.plain_text import plain
from prefect_regional_diffusion.tasks.inputs.model_names import find_model
from prefect_regional_diffusion.tasks.inputs.path_policy import out_place, store_place, trust_caller
from prefect_regional_diffusion.tasks.machine.model_catalog import catalog, forget_catalog
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.store_settings import forget_store_block, store_settings
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model
from prefect_regional_diffusion.tasks.storage.credentials import storage_options
from tests.forked import run
from tests.processes import ROOT, ask, environment, post, regional
from tests.s3 import KEY, SECRET, objects, s3_server

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def no_keys_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "_keys", set())


@pytest.fixture
def with_block(server: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Saves a block under a new name on the running server, and has this machine read it, with settings beside it."""

    def save(block: Block, **variables: str) -> str:
        name = f"b-{uuid4().hex[:8]}"
        setting = {RegionalStore: "STORE_BLOCK", ModelCatalog: "CATALOG_BLOCK"}[type(block)]
        block.save(name)  # pyright: ignore[reportUnusedCoroutine]
        for variable, value in ({setting: name} | variables).items():
            monkeypatch.setenv(f"REGIONAL_{variable}", value)
        settings.cache_clear()
        return name

    with temporary_settings({PREFECT_API_URL: server}):
        yield save
        forget_store_block()
        forget_catalog()


def change(slug: str, name: str, **data: Any) -> None:
    """Write something else into a block, as whoever has the server's auth string can."""
    with get_client(sync_client=True) as client:
        block = client.read_block_document_by_name(name, slug).id
    ask(f"{PREFECT_API_URL.value()}/block_documents/{block}", {"data": data, "merge_existing_data": False}, "PATCH")
    forget_store_block()
    forget_catalog()


def test_what_is_not_set_here_is_the_block_s(with_block: Callable[..., str]) -> None:
    with_block(
        RegionalStore(
            store="s3://latents/team",
            out="s3://pictures/team",
            s3_endpoint="https://minio.example.org",
            s3_region="eu-central-1",
            s3_key="block-key",
            s3_secret="block-secret",
        ),
    )
    assert (store_place(None), out_place(None)) == ("s3://latents/team", "s3://pictures/team")
    assert store_place("s3://latents/team/below") == "s3://latents/team/below"
    with pytest.raises(BadInput, match="REGIONAL_ALLOWED_STORES"):
        store_place("s3://latents/others")
    assert storage_options("s3://latents/team") == {
        "max_concurrency": 1,
        "key": "block-key",
        "secret": "block-secret",
        "endpoint_url": "https://minio.example.org",
        "client_kwargs": {"region_name": "eu-central-1"},
    }


def test_a_variable_wins_over_the_block_and_the_block_over_the_default(with_block: Callable[..., str]) -> None:
    with_block(
        RegionalStore(store="s3://latents/team", s3_region="x", s3_key="block-key", s3_secret="block-secret"),
        S3_REGION="here",
        S3_KEY="own-key",
        S3_SECRET="own-secret",
    )
    found = store_settings()
    assert (found.store, found.s3_region, found.out) == ("s3://latents/team", "here", "renders")
    assert storage_options("s3://a")["key"] == "own-key"


def test_key_and_secret_are_never_of_two_accounts(with_block: Callable[..., str]) -> None:
    with_block(RegionalStore(s3_key="block-key", s3_secret="block-secret"), S3_KEY="own-key")
    with pytest.raises(BadInput, match="REGIONAL_S3_SECRET: None is not allowed"):
        storage_options("s3://latents")


def test_options_of_other_file_systems_are_secret_and_reach_them(with_block: Callable[..., str]) -> None:
    with_block(RegionalStore(options={"token": {"private_key": "hunter2-of-google"}}))
    assert storage_options("gs://bucket/x") == {"token": {"private_key": "hunter2-of-google"}}
    assert plain("refused hunter2-of-google") == "refused …"


def test_without_a_block_of_that_name_there_is_one_line(with_block: Callable[..., str], monkeypatch: Any) -> None:
    with_block(RegionalStore())
    monkeypatch.setenv("REGIONAL_STORE_BLOCK", "nobody")
    settings.cache_clear()
    with pytest.raises(ServerError) as refused:
        store_place(None)
    assert str(refused.value) == (
        "REGIONAL_STORE_BLOCK nobody does not exist: the server has no such Regional Store block"
    )


def test_a_server_that_does_not_answer_is_told_in_one_line(with_block: Callable[..., str], monkeypatch: Any) -> None:
    with_block(RegionalStore())
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    with (
        temporary_settings({PREFECT_API_URL: "http://user:hunter2-pass@127.0.0.1:9/api"}),
        pytest.raises(ServerError) as refused,
    ):
        store_place(None)
    line = str(refused.value)
    assert re.match(r"REGIONAL_STORE_BLOCK b-[0-9a-f]+ cannot be read from the server: [^\n]+$", line)
    assert "hunter2" not in line


SECRET_TEXT = "hunter2-very-secret-hunter2"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"s3_key": "abcdefgh"}, "s3_secret: '…' is not allowed; allowed: a value if s3_key has one, and none without"),
        ({"s3_secret": SECRET_TEXT}, "s3_secret: '…' is not allowed; allowed: a value if s3_key has one"),
        ({"s3_key": [SECRET_TEXT], "s3_secret": SECRET_TEXT}, "s3_key: '…' is not allowed"),
        ({"options": SECRET_TEXT}, "options: '…' is not allowed"),
        ({"store": f"s3://KEY:{SECRET_TEXT}@b"}, "store: 's3://…@b' is not allowed; allowed: an address without user"),
        ({"store": f"s3://b?X-Amz-Signature={SECRET_TEXT}"}, "store: 's3://b?X-Amz-Signature=…' is not allowed"),
        ({"out": ""}, "out: '' is not allowed"),
        ({"s3_endpoint": "minio:9000"}, "s3_endpoint: 'minio:9000' is not allowed; allowed: an http:// or https://"),
        ({"s3_endpoint": f"https://u:{SECRET_TEXT}@h"}, "s3_endpoint: 'https://…@h' is not allowed"),
        ({"s3_region": 3}, "s3_region: 3 is not allowed"),
        ({"bucket": "latents"}, ": 'bucket' is not allowed; allowed: fields store, out, s3_endpoint"),
    ],
    ids=range(11),
)
def test_a_field_of_a_store_that_is_wrong_is_named_with_its_block(
    with_block: Callable[..., str], data: dict[str, Any], line: str
) -> None:
    name = with_block(RegionalStore())
    change("regional-store", name, **data)
    with pytest.raises(BadInput) as refused:
        store_settings()
    said = str(refused.value)
    assert said.startswith(f"regional-store/{name}{'' if line.startswith(':') else '.'}{line}")
    assert "\n" not in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"models": {"embedded": "/a"}}, r"models: .* allowed: names other than embedded"),
        ({"models": {"../x": "/a"}}, r"models\.\.\./x\.\[key\]: '\.\./x' is not allowed"),
        ({"models": {"x": f"s3://K:{SECRET_TEXT}@b"}}, r"models\.x: 's3://…@b' is not allowed"),
        ({"models": ["x"]}, r"models: \['x'\] is not allowed"),
        ({"roots": ["relative"]}, r"roots\.0: 'relative' is not allowed; allowed: an absolute path, or s3://"),
        ({"roots": ["http://h/x"]}, r"roots\.0: 'http://h/x' is not allowed"),
    ],
    ids=range(6),
)
def test_a_field_of_a_catalog_that_is_wrong_is_named_with_its_block(
    with_block: Callable[..., str], data: dict[str, Any], line: str
) -> None:
    name = with_block(ModelCatalog())
    change("model-catalog", name, **data)
    with pytest.raises(BadInput, match=f"^model-catalog/{name}\\.{line}") as refused:
        catalog()
    assert "hunter2" not in str(refused.value)


def test_whoever_makes_a_block_is_told_at_once() -> None:
    with pytest.raises(ValidationError, match="a value if s3_key has one"):
        RegionalStore(s3_key="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValidationError, match="an absolute path, or s3://bucket/prefix"):
        ModelCatalog(roots=["models"])


def refusal(name: str, kind: type[RegionalError] = BadInput) -> str:
    with pytest.raises(kind) as refused:
        find_model("model", name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_name_of_the_catalog_is_read_where_the_machine_lets_jobs_read(
    with_block: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path_factory.mktemp("models")
    (models / "small").symlink_to(EMBEDDED)
    for part in ("one", "two"):
        (models / part).mkdir()
    name = with_block(
        ModelCatalog(models={"small": str(EMBEDDED), "one": str(models / "one")}, roots=[str(models), str(EMBEDDED)])
    )
    # A block on the server opens nothing: not even what it calls its roots.
    assert "(REGIONAL_CATALOG_ROOTS); the catalog's place for it is not under these" in refusal("small")
    assert str(EMBEDDED) not in refusal("small")
    assert "is not allowed" in refusal(str(models / "one"))

    # The machine's own roots do, whoever names them.
    monkeypatch.setenv("REGIONAL_MODEL_FOLDERS", str(EMBEDDED))
    settings.cache_clear()
    assert open_model("small").fingerprint() == open_model("embedded").fingerprint()
    assert "the catalog's place for it is not under these" in refusal("one")

    # And so does the machine where it lets the catalog have roots, as far as that goes.
    monkeypatch.setenv("REGIONAL_MODEL_FOLDERS", "")
    monkeypatch.setenv("REGIONAL_CATALOG_ROOTS", str(models))
    settings.cache_clear()
    assert find_model("model", "one").place == str(models / "one")
    assert find_model("model", str(models / "two")).place == str(models / "two")
    assert "the catalog's place for it is not under these" in refusal("small")
    change("model-catalog", name, models={"etc": "/etc/ssl"}, roots=["/"])
    assert "the catalog's place for it is not under these" in refusal("etc")
    assert "is not allowed" in refusal("/etc/ssl")


def test_the_catalog_changes_nothing_that_a_machine_has_by_that_name(
    with_block: Callable[..., str], workdir: Path
) -> None:
    (workdir / "mine").mkdir()
    with_block(ModelCatalog(models={"mine": "/elsewhere", "gone": str(workdir / "gone-too")}))
    assert find_model("model", "mine").place == str(workdir / "mine")
    with trust_caller():
        line = refusal("gone", RegionalError)
    assert line == "model: gone does not exist: this machine has nothing at the catalog's place for it"


def test_a_name_may_stand_for_a_repository_of_the_hub(
    with_block: Callable[..., str], workdir: Path, monkeypatch: Any
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(workdir / "hub"))
    with_block(ModelCatalog(models={"sd": "org/name@v1"}))
    assert "org/name@v1 does not exist, nor does such a repository in the Hugging Face cache" in refusal(
        "sd", RegionalError
    )


def test_servers_and_clients_find_both_by_the_entry_point_of_the_package(tmp_path: Path) -> None:
    """Without torch or anything else of ours: Prefect loads it in all processes that look for blocks."""
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "prefect.collections"
    ]
    (module,) = entry_points.values()
    code = (
        "import sys, importlib, prefect.blocks.core; before = set(sys.modules);"
        f"importlib.import_module({module!r});"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True)
    assert done.stdout == "['prefect_regional_diffusion'] False\n", done.stderr
    assert import_module(module).RegionalStore is RegionalStore
    for kind in (RegionalStore, ModelCatalog):
        block_type = kind._to_block_type()
        assert None not in (block_type.logo_url, block_type.documentation_url)
        assert f"from prefect_regional_diffusion import {kind.__name__}" in (block_type.code_example or "")


@pytest.mark.timeout(600)
def test_a_run_whose_store_a_block_names_is_drawn_and_gone_on_with(
    server: str, env: dict[str, str], with_block: Callable[..., str], tmp_path: Path
) -> None:
    """Latents and pictures in S3, by a block alone; a second job goes on from the first one's states."""
    with s3_server(tmp_path, "latents") as port:
        endpoint = f"http://127.0.0.1:{port}"
        name = with_block(
            RegionalStore(
                store="s3://latents/team",
                out="s3://latents/pictures",
                s3_endpoint=endpoint,
                s3_key=KEY,
                s3_secret=SECRET,
            )
        )
        job = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 4, "sampler": "euler"}
        (tmp_path / "job.json").write_text(json.dumps(job))
        env = env | {"REGIONAL_STORE_BLOCK": name, "REGIONAL_KEEP": "all", "AWS_EC2_METADATA_DISABLED": "true"}

        def rendered() -> dict[str, Any]:
            done = run(regional("render", "job.json", "--json", "--chunk", "1"), cwd=tmp_path, env=env)
            assert done.returncode == 0, done.stderr
            assert SECRET not in done.stdout + done.stderr
            return json.loads(done.stdout)

        first = rendered()
        assert first["store"] == "s3://latents/team"
        assert all(image.startswith("s3://latents/pictures/") for image in first["images"])
        stored = objects(endpoint, "latents", "")
        assert {key.partition("/")[0] for key in stored} == {"team", "pictures"}
        (tmp_path / "job.json").write_text(
            json.dumps(
                job
                | {
                    "base_only_steps": 1,
                    "regions": [{"prompt": "a red circle", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}],
                }
            )
        )
        second = rendered()
        assert (second["steps_restored"], second["steps_computed"]) == (1, 3)
    shown = post(server, "block_documents/filter", {"block_documents": {"name": {"any_": [name]}}})
    assert "s3://latents/team" in json.dumps(shown)
    assert SECRET not in json.dumps(shown)
