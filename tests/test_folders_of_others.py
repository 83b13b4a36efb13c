"""Folders as other programs write them open, and give the bits that diffusers' own pipeline gives."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from benchmarks.whole_model import load_whole
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.autoencoder_kl_config import AUTOENCODER_KL
from prefect_regional_diffusion.sampling_core.models.flux_transformer import FLUX_TRANSFORMER
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.sd3_transformer import SD3_TRANSFORMER
from prefect_regional_diffusion.sampling_core.models.unet_config import UNET
from prefect_regional_diffusion.sampling_core.models.z_image_transformer import Z_IMAGE_TRANSFORMER

OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
PROMPTS = ["a red circle on a blue background", "<|endoftext|> red! <cat> it's", "ü 漢字  <CAT>x", "red " * 50, ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | changes))


def rewrite(file: Path, rename: Any, **more: torch.Tensor) -> None:
    tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors | more, file, metadata={"format": "pt"})


def of_2022(folder: Path) -> None:
    """As Stable Diffusion 1.4 to 2.1 were published, as far as names and keys go."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    edit(folder / "tokenizer" / "special_tokens_map.json", unk_token=token, eos_token=token, pad_token="!")
    edit(folder / "tokenizer" / "added_tokens.json", **{"<cat>": 139})
    edit(
        folder / "tokenizer" / "tokenizer_config.json",
        **{"do_lower_case": True, "errors": "replace", "name_or_path": "openai/clip-vit-large-patch14"},
        special_tokens_map_file="./special_tokens_map.json",
        bos_token=token | {"__type": "AddedToken", "content": "<|startoftext|>"},
    )
    rewrite(
        folder / "text_encoder" / "model.safetensors",
        lambda name: f"text_model.{name.removeprefix('text_model.')}",
        **{"text_model.embeddings.position_ids": torch.arange(20)[None]},
    )
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    save_file(
        tensors | {name: torch.cat([tensors[name], tensors[name][:2]])}, folder / "text_encoder/model.safetensors"
    )
    edit(
        folder / "text_encoder" / "config.json",
        **{"_name_or_path": "openai/clip-vit-large-patch14", "dropout": 0.0, "torch_dtype": "float32"},
        **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "transformers_version": "4.21.0.dev0"},
        **{"vocab_size": 140, "num_beams": 1, "id2label": {"0": "LABEL_0"}, "is_decoder": False, "pruned_heads": {}},
    )

    def old(name: str) -> str:
        for new, before in OLD.items():
            name = name.replace(new, before)
        return name

    rewrite(folder / "vae" / "diffusion_pytorch_model.safetensors", old)
    edit(
        folder / "scheduler" / "scheduler_config.json",
        **{"_class_name": "PNDMScheduler", "skip_prk_steps": True, "lambda_min_clipped": float("-inf")},
    )
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )


@pytest.mark.parametrize("year", [2022, 2026])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_the_pipeline(year: int, dtype: torch.dtype, folder: Path) -> None:
    if year == 2022:
        of_2022(folder)
    ours: Any = load_whole(open_folder(str(folder)), Placement(dtype=dtype))
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=dtype, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for prompt in PROMPTS:
        embedding = ours.text_encoder.encode(prompt)["prompt_embeds"]
        expected = tokenizer(prompt, padding="max_length", max_length=20, truncation=True)["input_ids"]
        assert ours.checkpoint.tokenizers[0].ids(prompt) == expected, prompt
        with torch.inference_mode():
            assert torch.equal(embedding, pipeline.text_encoder(torch.tensor([expected]))[0].float()), prompt
    parts = {"unet": ours.denoiser._unet, "vae": ours.autoencoder._vae, "text_encoder": ours.text_encoder._encoder}
    for part, mine in parts.items():
        theirs = getattr(pipeline, part).state_dict()
        assert mine.state_dict().keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.state_dict().items())
        assert not mine.training
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        clean = (latent / pipeline.vae.config.scaling_factor).to(dtype)
        picture = pipeline.vae.decode(clean, return_dict=False)[0].float()
    shown = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(ours.autoencoder.decode(latent), shown)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("kind", [kind.name for kind in KarrasDiffusionSchedulers if kind.name != "EDMEulerScheduler"])
def test_what_schedulers_save_is_known(kind: str, folder: Path) -> None:
    try:
        scheduler = getattr(diffusers, kind).from_pretrained(folder / "scheduler")
    except ImportError as error:
        pytest.skip(str(error))
    scheduler.save_pretrained(folder / "scheduler")
    open_folder(str(folder))


@pytest.mark.parametrize(
    ("built", "component"),
    [
        (UNet2DConditionModel, UNET),
        (AutoencoderKL, AUTOENCODER_KL),
        (SD3Transformer2DModel, SD3_TRANSFORMER),
        (FluxTransformer2DModel, FLUX_TRANSFORMER),
        (ZImageTransformer2DModel, Z_IMAGE_TRANSFORMER),
    ],
)
def test_every_argument_of_a_network_is_in_its_table(built: type[Any], component: Any) -> None:
    table = component.configuration
    known = set(table.model_fields) | set(table.ONLY) | set(table.NOTES)
    assert set(inspect.signature(built.__init__).parameters) - {"self"} <= known
