"""What somebody plants who may write to a store: tensors, records, links. And a job that is drawn from such a store."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from prefect_regional_diffusion.flows.common.pending_writes import PendingWrites
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.build_masks import build_masks
from prefect_regional_diffusion.tasks.encode import encode_prompts
from prefect_regional_diffusion.tasks.runtime.job_inputs import FORMAT
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress, newest

JOB = parse_job(
    {
        "prompt": "a green background",
        "width": 64,
        "height": 64,
        "steps": 4,
        "sampler": "dpmpp_2m",
        "regions": [{"prompt": "a red background", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}],
    }
)


def hashed(word: str) -> str:
    """What names something in a store; the words are for people who read this."""
    return sha256(word.encode()).hexdigest()


def placed(file: Path, data: bytes) -> Path:
    """A file with this content, in folders that are made for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def tensor_file(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header: a JSON value, or bytes."""
    header_bytes = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header_bytes)) + header_bytes + data


def header_of(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def signed(tensors: dict[str, Tensor]) -> bytes:
    """A whole file with the digest that its content should have, as anybody can make it."""
    total = sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.numpy().tobytes())
    return save(tensors, metadata={"sha256": total.hexdigest()})


def run_record(**changes: Any) -> dict[str, Any]:
    """What a store knows of a finished run of three steps, the first of which is a fork."""
    fields = {"name": "n", "job_hash": hashed("job"), "steps": 3, "begun": 1.0, "finished": 2.0}
    return fields | {"segments": [[0, hashed("base")], [1, hashed("one")]]} | changes


def picture_record(**changes: Any) -> dict[str, Any]:
    """What a store says of a finished job."""
    fields = {"format": FORMAT, "job": {"prompt": "x"}, "files": {}, "job_hash": hashed("job")}
    fields |= {"model_fingerprint": hashed("m"), "latents": f"latents/{hashed('one')}/00003"}
    fields |= {"pictures": [], "devices": [], "numerics": "cpu", "versions": {}}
    return fields | {"run": f"runs/{hashed('run')}"} | changes


def plant_record(root: Path, key: str, record: Any) -> Path:
    """A record in a store; bytes as they are."""
    return placed(root / f"{key}.json", record if isinstance(record, bytes) else json.dumps(record).encode())


def sparse(file: Path, size: int) -> None:
    """A file that says it has so many bytes, and takes no room."""
    placed(file, b"")
    os.truncate(file, size)


def ready(store: Path) -> RenderContext:
    """A run that is ready to be sampled; its tasks are called as plain functions."""

    async def flow() -> RenderContext:
        async with PendingWrites() as writes:
            run = await writes.first_result(partial(build_masks.fn, JOB, str(store)))
            await writes.first_result(partial(encode_prompts.fn, [run]))
            return run

    return asyncio.run(flow())


def found(run: RenderContext) -> RunProgress:
    """The run with what the store has of it.

    It is no task's result: where a loop ends, Python puts its task, and all numbers of a result, into a message that
    nobody reads (`signal.signal` tries whether the handler of before is one of its names).
    """
    progress = list[RunProgress]()

    async def look() -> None:
        progress.append(await newest(run))

    asyncio.run(look())
    return progress[0]


def whole_state(run: RenderContext) -> dict[str, Tensor]:
    """A state of the run that is as it should be, after two steps."""
    batch = RunBatch([RunProgress(run, run.sampling_run.initial_state())])
    batch.advance(2)
    return {name: tensor.clone() for name, tensor in batch.members[0].to_tensors().items()}


FLOAT8 = {"x": torch.zeros(1, 4, 8, 8).to(torch.float8_e4m3fn)}
