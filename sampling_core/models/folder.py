"""A diffusers model folder, looked at without loading weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sampling_core.errors import ModelError
from sampling_core.levels import BETA_SCHEDULES, ModelLevels, Prediction, beta_levels
from sampling_core.models import EMBEDDED

PIPELINE = "StableDiffusionPipeline"
INDEX = "model_index.json"
PARTS_WITH_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_WEIGHTS = ("safetensors", "safetensors.index.json")
"""Endings of a single file, and of the index of several."""
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": ("diffusers", ("*Scheduler",)),  # any: it is read for its numbers alone, and never loaded
}
"""Library and classes of each part. An index may name any class, and code of its own: these are all we load."""
_CONFIGURATIONS = {
    **dict.fromkeys(PARTS_WITH_WEIGHTS, ("config.json",)),
    "scheduler": ("scheduler_config.json",),
    "tokenizer": (
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
        *("special_tokens_map.json", "added_tokens.json"),
    ),
}
"""Files of each part that are read beside its weights."""
_NAMING_CODE = ("auto_map", "transformers_weights", "quantization_config", "attn_implementation")
"""Keys of a configuration that make the libraries read other files, fetch kernels or run other code."""
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}


@dataclass(frozen=True)
class ModelFolder:
    """What planning needs to know; `cell` is pixels per latent cell, channels are of the first level."""

    path: Path
    latent_channels: int
    cell: int
    scaling_factor: float
    levels: ModelLevels
    weight_files: tuple[Path, ...]
    unet_channels: int
    vae_channels: int
    trained_pixels: int
    """Edge of the canvases that the model was trained on."""

    def fingerprint(self) -> str:
        """SHA-256 over everything that is read: two folders with the same one draw the same pictures."""
        total = hashlib.sha256()
        for file in self._counted():
            facts = file.stat()
            total.update(f"{file.relative_to(self.path).as_posix()} ".encode())
            total.update(_digest(file, facts.st_size, facts.st_mtime_ns))
        return total.hexdigest()

    def _counted(self) -> list[Path]:
        """The files that determine pictures: weights and configurations, but no other variants, and no notes."""
        files = set(self.weight_files)
        for part, stem in PARTS_WITH_WEIGHTS.items():
            # Of a single file and an index, the libraries of some parts prefer the one, some the other.
            files |= {self.path / part / f"{stem}.{ending}" for ending in _WEIGHTS}
        files |= {self.path / part / name for part, names in _CONFIGURATIONS.items() for name in names}
        return sorted(file for file in files if file.is_file())


def read_files(folder: Path) -> list[Path]:
    """Everything that may be read of a model folder, and what lies beside it."""
    return [folder / INDEX, *(file for part in _PARTS for file in (folder / part).glob("*"))]


@lru_cache(maxsize=256)
def _digest(file: Path, size: int, modified: int) -> bytes:
    """SHA-256 of a file; size and time are part of the question, so that a changed file is read again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def open_folder(model: str) -> ModelFolder:
    """Read the configurations of a model folder. Raises ModelError if it is none, or one that is not supported."""
    try:
        path = EMBEDDED if model == "embedded" else Path(model).expanduser()
        if not (path / INDEX).is_file():
            raise ModelError("model", model, "`embedded`, or a folder with model_index.json (diffusers layout)")
        return _open(path, model)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError("model", model, f"a model folder that can be read ({_reason(error)})") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError("model", model, f"a folder with complete configurations ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]


def _open(path: Path, model: str) -> ModelFolder:
    index = _read(path / INDEX, model)
    pipeline = index["_class_name"]
    if pipeline != PIPELINE:
        raise ModelError("model", f"{model} ({pipeline})", f"a {PIPELINE} folder")
    _check_parts(index, model)
    weights = [file for part, stem in PARTS_WITH_WEIGHTS.items() for file in _weights(path / part, stem, model)]
    for part in PARTS_WITH_WEIGHTS:
        named = [key for key in _NAMING_CODE if _read(path / part / "config.json", model).get(key)]
        if named or (path / part / "adapter_config.json").exists():
            raise ModelError(
                "model", model, f"a folder whose {part} is plain weights (no {', '.join(named) or 'adapter'})"
            )
    vae = _read(path / "vae" / "config.json", model)
    unet = _read(path / "unet" / "config.json", model)
    cell = 2 ** (len(vae["block_out_channels"]) - 1)
    return ModelFolder(
        path=path,
        latent_channels=int(unet["in_channels"]),
        cell=cell,
        scaling_factor=float(vae.get("scaling_factor", 0.18215)),
        levels=_levels(_read(path / "scheduler" / "scheduler_config.json", model), model),
        weight_files=tuple(weights),
        unet_channels=int(unet["block_out_channels"][0]),
        vae_channels=int(vae["block_out_channels"][0]),
        trained_pixels=int(unet["sample_size"]) * cell,
    )


def _read(file: Path, model: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError("model", model, f"a folder with a readable {file.parent.name}/{file.name}") from error
    if not isinstance(content, dict):
        raise ModelError("model", model, f"a folder whose {file.parent.name}/{file.name} is a mapping")
    return content


def _check_parts(index: dict[str, Any], model: str) -> None:
    """Raise ModelError for a part of another class than is known here, or from another library."""
    for part, (library, classes) in _PARTS.items():
        found = index[part]
        name = str(found[1])
        known = name.isidentifier() and any(fnmatchcase(name, pattern) for pattern in classes)
        if len(found) != 2 or found[0] != library or not known:
            allowed = f"{library} {' or '.join(classes)} (code that comes with a model is not run)"
            raise ModelError("model", f"{model} ({part} {found})", allowed)


def _weights(folder: Path, stem: str, model: str) -> list[Path]:
    """The safetensors files of one part: a single one, or the shards of an index. Pickled weights are not read."""
    single, index = (folder / f"{stem}.{ending}" for ending in _WEIGHTS)
    files = [single]
    if index.is_file():
        names = set(_read(index, model)["weight_map"].values())
        if any(Path(name).name != name for name in names):
            raise ModelError("model", model, f"a folder with weights inside it ({folder.name}/{index.name})")
        files = sorted(folder / name for name in names)
    for file in files:
        if not file.is_file():
            raise ModelError("model", model, f"a folder with weights ({folder.name}/{file.name} is missing)")
        try:
            # Reads the header only, and compares it with the file's size.
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ModelError("model", model, f"whole weights ({folder.name}/{file.name}: {error})") from error
    return files


def _levels(schedule: dict[str, Any], model: str) -> ModelLevels:
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ModelError("model", f"{model} (prediction_type {prediction})", ", ".join(_PREDICTIONS))
    betas = str(schedule.get("beta_schedule", "linear"))
    if betas not in BETA_SCHEDULES:
        raise ModelError("model", f"{model} (beta_schedule {betas})", ", ".join(BETA_SCHEDULES))
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        if schedule.get(name):
            raise ModelError("model", f"{model} ({name} is set)", f"a scheduler without {name}")
    return beta_levels(
        _PREDICTIONS[prediction],
        float(schedule.get("beta_start", 0.0001)),
        float(schedule.get("beta_end", 0.02)),
        int(schedule.get("num_train_timesteps", 1000)),
        BETA_SCHEDULES[betas],
    )


def check_alike(models: Mapping[str, str], folders: Mapping[str, ModelFolder]) -> None:
    """Raise ModelError for a model whose latents are not of the first one's kind.

    `models` is field -> name, the job's own first; `folders` is by name.
    """
    first = folders[next(iter(models.values()))]
    for field, name in models.items():
        other = folders[name]
        for what in ("latent_channels", "cell", "scaling_factor"):
            own, wanted = getattr(other, what), getattr(first, what)
            if own != wanted:
                raise ModelError(field, f"{name} ({what} {own})", f"a model with the same latents ({what} {wanted})")
        if other.levels.sigmas != first.levels.sigmas:
            raise ModelError(field, name, "a model trained on the same noise levels as the job's own")
