"""What comes over a server names nothing outside its roots, and no secrets: each refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_regional_diffusion.sampling_core.errors import BadInput, RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.inputs.job_files import read_jobs
from prefect_regional_diffusion.tasks.inputs.path_policy import image_place, out_place, store_place
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.storage.credentials import storage_options
from prefect_regional_diffusion.tasks.storage.store import Store

OUTSIDE = [
    "/etc/passwd",
    "secret.png",
    "in/../secret.png",
    "in/../../secret.png",
    "~/secret.png",
    "~root/secret.png",
    "in/link.png",
    "in/folder/secret.png",
    "in/loop",
    "in-evil/x.png",
    "in/x\0.png",
    "in/x\n.png",
    "in/x.png::in/x.png",
    "\\\\server\\share\\x.png",
    "//server/share/x.png",
    "",
]
URLS = [
    "file:///etc/passwd",
    "file:/etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "http://localhost:4200/api",
    "https://example.org/x.png",
    "HTTP://localhost/x.png",
    "ftp://localhost/x.png",
    "gopher://localhost/x.png",
    "local://etc/passwd",
    "memory://x.png",
    "data:image/png;base64,AAAA",
    "github://user:repo@main/x.png",
    "simplecache::http://localhost/x.png",
    "zip://x.png::http://localhost/x.zip",
    "x.png::http://localhost",
    "s3://other/x.png",
    "s3://allowed-evil/x.png",
    "s3://allowed",
    "s3://allowed/masks-evil/x.png",
    "s3://allowed/masks/../x.png",
    "s3://allowed/masks/./../x.png",
    "s3://allowed/masks/%2e%2e/x.png",
    "s3://allowed/masks//x.png",
    "s3://allowed/masks/x.png?versionId=1",
    "s3://allowed/masks/x.png#a",
    "s3://allowed/masks/x.png\\..",
    "S3://allowed/masks/x.png",
    "s3a://allowed/masks/x.png",
    "s3:allowed/masks/x.png",
    "http://s3://allowed/masks/x.png",
]
WITH_SECRETS = [
    "s3://KEY:hunter2@allowed/masks",
    "s3://KEY:hun/ter2@allowed/masks",
    "s3:KEY:hunter2@allowed/masks",
    "s3://allowed/masks?secret=hunter2",
    "s3://KEY:hunter2",
    "https://user:hunter2@allowed/masks",
]


@pytest.fixture
def roots(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Roots `in` and s3://allowed/masks; beside them, what nobody may name. Links in `in` lead there."""
    root = workdir / "in"
    for folder in (root, workdir / "in-evil", workdir / "out"):
        folder.mkdir()
        Image.new("L", (16, 16), 255).save(folder / "x.png")
    Image.new("L", (16, 16), 255).save(workdir / "secret.png")
    (root / "link.png").symlink_to(workdir / "secret.png")
    (root / "folder").symlink_to(workdir)
    (root / "loop").symlink_to("loop")
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", "in, s3://allowed/masks")
    monkeypatch.setenv("REGIONAL_ALLOWED_STORES", "in,s3://allowed/masks")
    monkeypatch.setenv("REGIONAL_ALLOWED_OUTPUTS", "in,s3://allowed/masks")
    return root


def refused(call: Any, *arguments: Any) -> RegionalError:
    with pytest.raises(RegionalError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return error.value


def not_allowed(call: Any, *arguments: Any) -> BadInput:
    error = refused(call, *arguments)
    assert isinstance(error, BadInput)
    return error


@pytest.mark.parametrize("name", OUTSIDE + URLS)
def test_what_lies_outside_is_refused_for_everything(name: str, roots: Path) -> None:
    assert refused(image_place, "regions.0.mask.image", name).field == "regions.0.mask.image"
    assert refused(open_model, name, "regions.0.model").field == "regions.0.model"
    if name:  # empty is what a form sends for "the worker's own"
        assert refused(store_place, name).field == "store"
        assert refused(out_place, name).field == "out"


@pytest.mark.parametrize("url", WITH_SECRETS)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str, roots: Path) -> None:
    for call in (store_place, out_place, open_model, lambda name: image_place("init_image", name)):
        assert "hun" not in str(refused(call, url))
    if "@" in url:
        assert "REGIONAL_S3_SECRET" in str(refused(store_place, url))


def test_what_lies_inside_is_opened_as_it_was_resolved(roots: Path) -> None:
    (roots / "inner.png").symlink_to("x.png")
    for name in ("in/x.png", "in/../in/x.png", str(roots / "inner.png"), "in/folder/in/x.png"):
        assert image_place("init_image", name) == str(roots / "x.png")
    assert image_place("init_image", "s3://allowed/masks/a b.png") == "s3://allowed/masks/a b.png"
    assert store_place("in/new/store") == str(roots / "new/store")
    assert store_place(f"file://{roots}/store") == str(roots / "store")
    assert store_place("s3://allowed/masks/") == "s3://allowed/masks"
    assert out_place("in/../in") == str(roots)


def test_the_machines_own_places_are_always_allowed(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_STORE", "s3://mine/store")
    assert store_place(None) == store_place("") == store_place("s3://mine/store") == "s3://mine/store"
    assert store_place("s3://mine/store/part") == "s3://mine/store/part"
    assert refused(store_place, "s3://mine").field == "store"
    assert out_place(None) == "renders"
    assert out_place("renders/mine") == str(workdir / "renders/mine")
    assert refused(out_place, ".").field == "out"


def test_without_settings_a_job_names_what_lies_in_the_working_directory(workdir: Path) -> None:
    Image.new("L", (16, 16), 255).save("x.png")
    assert image_place("init_image", "x.png") == str(workdir / "x.png")
    assert "REGIONAL_ASSET_ROOTS (.)" in str(refused(image_place, "init_image", "../x.png"))


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "memory", "file"])
def test_even_a_root_gives_no_requests_but_to_object_stores(
    scheme: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", f"{scheme}://host/images")
    assert refused(image_place, "init_image", f"{scheme}://host/images/x.png")


JOB: dict[str, Any] = {"prompt": "a blue background", "denoise": 0.5}
MASK = {"x": 0, "y": 0, "width": 1, "height": 1}


@pytest.mark.parametrize(
    "field", ["init_image", "protect.0.image", "regions.0.mask.color_map", "regions.0.model", "model"]
)
def test_every_field_that_names_something_is_checked(field: str, roots: Path) -> None:
    """Through `prepare`, which is what a flow begins with."""
    region = {"prompt": "a red circle", "mask": MASK}
    secret = str(roots.parent / "secret.png")
    job: dict[str, Any] = JOB | {"init_image": "in/x.png", "regions": [region]}
    job |= {
        "init_image": {"init_image": secret},
        "protect.0.image": {"protect": [{"image": secret}]},
        "regions.0.mask.color_map": {"regions": [region | {"mask": {"color_map": secret, "color": [255, 255, 255]}}]},
        "regions.0.model": {"regions": [region | {"model": secret}]},
        "model": {"model": secret},
    }[field]
    error = not_allowed(lambda: prepare(parse_job(job)))
    assert (error.field, error.value) == (field, secret)


def test_a_pattern_finds_job_files_and_reads_nothing_else(workdir: Path) -> None:
    """Over a server too, where a line of what was read would be in the error."""
    for name in ("jobs/one.yaml", "jobs/two.yml", "jobs/three.JSON", "jobs/.hidden.yaml", ".git/config.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"prompt": "a blue background"}' if name.startswith("jobs/") else "hunter2")
    Path("notes.txt").write_text("hunter2")
    Path("env.yaml").symlink_to("notes.txt")
    for pattern in ("jobs/*", "jobs/**/*", "*/*"):
        assert [named.name for named in read_jobs(pattern)] == ["one", "three", "two"]
    for pattern in ("*.txt", "env.yaml", "*", "**/*", "jobs"):
        error = not_allowed(read_jobs, pattern)
        assert error.allowed == "a pattern that finds only .yaml, .yml, .json files"
        assert "hunter2" not in str(error)
    for pattern in (".git/*", ".*/*.yaml", "jobs/.hidden.yaml", ".git/config.yaml"):
        assert f"files: {pattern} finds no job files in {workdir}; hidden ones" in str(refused(read_jobs, pattern))
    for pattern in ("", ".", "../*.yaml", "/etc/*.yaml"):
        assert "below the folder" in not_allowed(read_jobs, pattern).allowed


def test_long_names_of_job_files_are_cut(workdir: Path) -> None:
    (workdir / "deep").mkdir()
    for name in (f"{'a' * 200}.yaml", f"{'b' * 100}1.yaml", f"deep/{'b' * 100}2.yaml"):
        Path(name).write_text("prompt: a blue background")
    names = [named.name for named in read_jobs("**/*.yaml")]
    assert names == ["a" * 80, ("b" * 100 + "1.yaml")[-80:], ("b" * 100 + "2.yaml")[-80:]]


def test_credentials_reach_the_file_system_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_options("s3://bucket").keys().isdisjoint({"key", "secret", "endpoint_url"})
    monkeypatch.setenv("REGIONAL_S3_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("REGIONAL_S3_REGION", "eu")
    monkeypatch.setenv("REGIONAL_S3_KEY", "AKIAHUNTER")
    monkeypatch.setenv("REGIONAL_S3_SECRET", "hunter2")
    settings.cache_clear()
    assert storage_options("s3://bucket") == {
        "key": "AKIAHUNTER",
        "secret": "hunter2",
        "endpoint_url": "http://127.0.0.1:9",
        "client_kwargs": {"region_name": "eu"},
        "max_concurrency": 1,
    }
    for url in ("/a/folder", "file:///a/folder", "memory://x", "gs://bucket"):
        assert storage_options(url) == {}
    shown = f"{settings()!r} {settings()} {settings().model_dump_json()}"
    assert "hunter2" not in shown
    assert "AKIAHUNTER" not in shown
    monkeypatch.delenv("REGIONAL_S3_SECRET")
    settings.cache_clear()
    error = str(refused(Store, "s3://bucket"))
    assert error.startswith("REGIONAL_S3_SECRET: ")
    assert "AKIAHUNTER" not in error
