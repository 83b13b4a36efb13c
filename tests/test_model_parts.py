"""Text encoders, denoiser and autoencoder are loaded when they are needed, each by itself, and let go by itself."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.family import Part
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.encoded_prompts import encoded_prompts
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.model_cache import (
    PartKey,
    autoencoder,
    denoiser,
    let_go,
    open_model,
    text_encoder,
)
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.watching import paths_touched

JOB = {"model": "model", "prompt": "a red background", "width": 64, "height": 64, "steps": 2, "sampler": "euler"}
TEXT, UNET, VAE = "text_encoder", "unet", "vae"
STORES = (".regional/store/first", ".regional/store/second")


@pytest.fixture(autouse=True)
def folder(workdir: Path) -> Path:
    """A copy of the embedded model, `model`; nothing is loaded."""
    loaded_parts.cache_clear()
    return Path(shutil.copytree(EMBEDDED, workdir / "model"))


@contextmanager
def weights_read() -> Generator[list[str]]:
    """The parts whose weights are read meanwhile, in order. Files of `model` are looked at and hashed before."""
    prepare(parse_job(JOB))
    read: list[str] = []
    with paths_touched() as touched:
        yield read
    opened = [Path(path) for path in touched if path.endswith(".safetensors")]
    read += [path.parent.name for path in opened if path.parent.parent.name == "model"]


def drawn(**fields: Any) -> list[str]:
    """The parts that are read to draw a job in a process that has drawn nothing."""
    loaded_parts.cache_clear()
    encoded_prompts.cache_clear()
    with weights_read() as read:
        asyncio.run(render.fn(parse_job(JOB | fields)))
    return read


def test_a_picture_reads_each_part_once_and_in_the_order_of_the_work() -> None:
    assert drawn() == [TEXT, UNET, VAE]


def test_what_the_store_has_needs_no_network() -> None:
    drawn()
    assert drawn(seed=1) == [UNET, VAE], "prompts are in the store"
    assert drawn(seed=1) == [], "the picture is in the store"
    assert drawn(seed=1, prompt="a blue background") == [TEXT, UNET, VAE]


def test_what_a_process_has_encoded_needs_no_text_encoder_for_another_store() -> None:
    job = parse_job(JOB)
    asyncio.run(render.fn(job, store=STORES[0]))
    loaded_parts.cache_clear()
    with weights_read() as read:
        asyncio.run(render.fn(job, store=STORES[1]))
    assert read == [UNET, VAE]
    first, second = ({file.name: file.read_bytes() for file in Path(store, "prompts").rglob("*.*")} for store in STORES)
    assert first == second
    assert len(first) == 2, "the prompt and the negative one"


def test_a_start_image_needs_the_autoencoder_alone() -> None:
    Image.new("RGB", (64, 64), "red").save("start.png")
    assert drawn(init_image="start.png", denoise=0.5) == [VAE, TEXT, UNET]
    assert drawn(init_image="start.png", denoise=0.5, seed=1) == [UNET, VAE]


def test_a_shard_reads_each_part_once() -> None:
    jobs = [NamedJob(name=f"{seed}", job=parse_job(JOB | {"seed": seed})) for seed in range(2)]
    with weights_read() as read:
        asyncio.run(shard.fn(jobs))
    assert read == [TEXT, UNET, VAE]
    with weights_read() as read:
        asyncio.run(shard.fn([NamedJob(name="third", job=parse_job(JOB | {"seed": 3}))]))
    assert read == [], "they stay in memory for the next run"


@pytest.mark.parametrize("keep", ["true", "false"])
def test_text_encoders_may_leave_memory(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_KEEP_TEXT_ENCODERS", keep)
    settings.cache_clear()
    drawn()
    parts = {key.part for key in loaded_parts().keys if isinstance(key, PartKey)}
    assert parts == {"denoiser", "autoencoder"} | ({"text_encoder"} if keep == "true" else set())


def test_what_is_let_go_is_gone() -> None:
    opened = open_model("model")
    key = ModelKey(opened.fingerprint())
    networks: dict[Part, weakref.ref[Any]] = {}
    with (
        text_encoder("model", opened, key) as texts,
        denoiser("model", opened, key) as network,
        autoencoder("model", opened, key) as vae,
    ):
        parts: Any = (texts, network, vae)
        networks["text_encoder"] = weakref.ref(parts[0].inner._encoder)
        networks["denoiser"] = weakref.ref(parts[1].inner._unet)
        networks["autoencoder"] = weakref.ref(parts[2].inner._vae)
    del texts, network, vae, parts
    for part in ("text_encoder", "autoencoder"):
        let_go(part)
        gc.collect()
        assert networks.pop(part)() is None
        assert all(network() is not None for network in networks.values())


def test_an_autoencoder_that_cannot_be_loaded_is_found_before_sampling(folder: Path) -> None:
    """Its headers are whole, and it lacks a tensor that nobody looks at until it is built."""
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"vae lacks"):
        asyncio.run(render.fn(parse_job(JOB)))
    assert not list(Path(".regional/store/latents").rglob("*.safetensors"))
