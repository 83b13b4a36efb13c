"""Thousands of mutated model folders: each opens, or is refused in one line, and nothing else is opened."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model
from tests.watching import Memory, paths_touched

TEXTS = [
    *("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"),
    *("model_index.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"),
]
WEIGHTS = [
    *("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    "text_encoder/model.safetensors",
]
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**30, 0.5, 1e308, -1e308, float("inf"), float("nan"), "", "x" * 10_000),
    *("../../etc/passwd", "/etc/passwd", "somebody/kernel", "\ud800", "\n\x1b[31m", [], {}, [[]], [None], [10**9] * 9),
    *({"a": {"b": 1}}, [1] * 100, {"auto_map": "evil.Evil"}, "DownBlock2D", 2**31, 2**63),
]
KEYS = [
    *(
        "auto_map",
        "transformers_weights",
        "text_config",
        "_attn_implementation",
        "quantization_config",
        "chat_template",
    ),
    *("chat_template", "vocab_file", "tokenizer_file", "\x1b[31m\n", "k" * 5000, "added_tokens_decoder", "__class__"),
]
HOSTILE_HEADER: list[Any] = [
    *HOSTILE,
    "F4",
    "F8_E4M3",
    "I64",
    "BOOL",
    "C64",
    [0, 2**62],
    [2**32, 2**32],
    [0, 0],
    [5, 1],
]


def mutated(value: Any, chance: random.Random, hostile: list[Any]) -> Any:
    """The value with one thing in it replaced, added or removed, at any depth."""
    inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    if not inside or chance.random() < 0.15:
        return chance.choice(hostile)
    key = chance.choice(list(inside))
    how = chance.random()
    if how < 0.6:
        inside = {**inside, key: mutated(inside[key], chance, hostile)}
    elif how < 0.8 and isinstance(value, dict):
        inside = {**inside, chance.choice(KEYS): chance.choice(hostile)}
    else:
        inside = {name: item for name, item in inside.items() if name != key}
    return inside if isinstance(value, dict) else list(inside.values())


def changed_bytes(content: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut or repeated."""
    at = chance.randrange(max(len(content), 1))
    return chance.choice(
        [
            content[:at],
            content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
            content[:at] + content[at // 2 :],
        ]
    )


@pytest.fixture
def folder(workdir: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, workdir / "model"))


def opens_or_is_refused(folder: Path) -> None:
    try:
        open_model("model").fingerprint()
    except RegionalError as error:
        said = str(error)
    else:
        return
    assert said.isprintable(), said
    assert len(said) < 1000, said


@pytest.mark.parametrize("name", TEXTS)
def test_mutated_configurations(name: str, folder: Path) -> None:
    file, chance = folder / name, random.Random(name)
    original = json.loads(file.read_text())
    open_model("model").fingerprint()
    memory = Memory()
    with paths_touched() as touched:
        for _ in range(300):
            content = json.dumps(mutated(original, chance, HOSTILE)).encode()
            file.write_bytes(content if chance.random() < 0.8 else changed_bytes(content, chance))
            opens_or_is_refused(folder)
    assert memory.grown() < 2**28
    assert {path for path in touched if not path.startswith((str(folder), "/proc/self/", "/dev/fd/"))} == set()


@pytest.mark.parametrize("name", WEIGHTS)
def test_mutated_headers_of_weights(name: str, folder: Path) -> None:
    file, chance = folder / name, random.Random(name)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    open_model("model").fingerprint()
    memory = Memory()
    with paths_touched() as touched:
        for _ in range(300):
            changed = json.dumps(mutated(header, chance, HOSTILE_HEADER)).encode()
            if chance.random() < 0.2:
                changed = changed_bytes(changed, chance)
            told = len(changed) if chance.random() < 0.9 else chance.choice([0, 2**22, 2**40, 2**63, 2**64 - 1])
            file.write_bytes(told.to_bytes(8, "little") + changed + rest[: 2**16])
            # Sparse: as long as it was, and no work to write.
            with file.open("r+b") as stream:
                stream.truncate(8 + len(changed) + len(rest))
            opens_or_is_refused(folder)
    assert memory.grown() < 2**28
    assert {path for path in touched if not path.startswith((str(folder), "/proc/self/", "/dev/fd/"))} == set()
