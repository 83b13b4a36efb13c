"""A diffusers model folder, looked at without loading weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampling_core.errors import ModelError
from sampling_core.levels import BETA_SCHEDULES, ModelLevels, Prediction, beta_levels
from sampling_core.models import EMBEDDED

PIPELINE = "StableDiffusionPipeline"
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}
_PARTS_WITH_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


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
        """SHA-256 over all weights and configurations: two folders with the same one draw the same pictures."""
        total = hashlib.sha256()
        configs = (self.path / part / "config.json" for part in _PARTS_WITH_WEIGHTS)
        schedule = self.path / "scheduler" / "scheduler_config.json"
        words = sorted((self.path / "tokenizer").glob("*"))
        for file in (*configs, schedule, *words, *self.weight_files):
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def resolve(model: str) -> Path:
    """The folder behind a job's `model`: `embedded`, or a path."""
    return EMBEDDED if model == "embedded" else Path(model).expanduser()


def open_folder(model: str) -> ModelFolder:
    """Read the configurations of a model folder. Raises ModelError if it is none, or one that is not supported."""
    path = resolve(model)
    if not (path / "model_index.json").is_file():
        raise ModelError("model", model, "`embedded`, or a folder with model_index.json (diffusers layout)")
    pipeline = _read(path / "model_index.json", model).get("_class_name")
    if pipeline != PIPELINE:
        raise ModelError("model", f"{model} ({pipeline})", f"a {PIPELINE} folder")
    weights = [file for part, stem in _PARTS_WITH_WEIGHTS.items() for file in _weights(path / part, stem, model)]
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
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError("model", model, f"a folder with a readable {file.parent.name}/{file.name}") from error


def _weights(folder: Path, stem: str, model: str) -> list[Path]:
    """The safetensors files of one part: a single one, or the shards of an index. Pickled weights are not read."""
    single = folder / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = sorted({folder / name for name in _read(index, model)["weight_map"].values()})
        if all(shard.is_file() for shard in shards):
            return shards
    raise ModelError("model", model, f"a folder with weights ({folder.name}/{stem}.safetensors is missing)")


def _levels(schedule: dict[str, Any], model: str) -> ModelLevels:
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ModelError("model", f"{model} (prediction_type {prediction})", ", ".join(_PREDICTIONS))
    betas = str(schedule.get("beta_schedule", "linear"))
    if betas not in BETA_SCHEDULES:
        raise ModelError("model", f"{model} (beta_schedule {betas})", ", ".join(BETA_SCHEDULES))
    return beta_levels(
        _PREDICTIONS[prediction],
        float(schedule.get("beta_start", 0.0001)),
        float(schedule.get("beta_end", 0.02)),
        int(schedule.get("num_train_timesteps", 1000)),
        BETA_SCHEDULES[betas],
    )
