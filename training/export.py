"""Last stage: the trained parts as one diffusers folder that StableDiffusionPipeline loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


def export(work: Path, out: Path) -> None:
    """Write the model in `work` to `out`, in place of an older one; a model card there is kept."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        # Half the bytes in the repository; loaded as float32 all the same, unless asked otherwise.
        unet=UNet2DConditionModel.from_pretrained(work / "unet").half(),
        scheduler=DDIMScheduler.from_config(DDPMScheduler.from_pretrained(work / "scheduler").config, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType] - may be None, its type does not say so
        requires_safety_checker=False,
    ).save_pretrained(out)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(work / "tokenizer" / file, out / "tokenizer" / file)
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
