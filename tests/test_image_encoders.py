"""Folders of image encoders: CLIP's own, and a whole CLIP, of which the image encoder is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.models.image_encoder import ImageEncoderFolder, open_image_encoder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from tests.tiny_ip_adapters import tiny_image_encoder


def opened(folder: str) -> ImageEncoderFolder:
    return open_image_encoder("field", folder, folder, lambda link: link)


@pytest.mark.usefixtures("workdir")
def test_an_encoder_s_tensors_are_compared_when_it_is_loaded() -> None:
    tiny_image_encoder(Path("encoder"))
    tensors = load_file("encoder/model.safetensors")
    for more in ("vision_model.more", "text_model.more"):
        save_file(tensors | {more: torch.ones(1)}, "encoder/model.safetensors", {"format": "pt"})
        with pytest.raises(RegionalError, match=rf"^field: .*weights without a place in its image_encoder .*{more}"):
            opened("encoder").load(Placement())


@pytest.mark.usefixtures("workdir")
def test_an_encoder_is_known_by_what_is_read_of_it() -> None:
    first, same, other = (opened(tiny_image_encoder(Path(name), seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    Path("a/README.md").write_text("notes")
    assert opened("a").fingerprint() == first.fingerprint() == same.fingerprint() != other.fingerprint()


@pytest.mark.usefixtures("workdir")
def test_a_whole_clip_has_an_image_encoder() -> None:
    """As openai/clip-vit-large-patch14 is published, which XLabs' adapters for FLUX are for."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    text = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    configuration = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    whole = CLIPModel(configuration).eval()
    whole.save_pretrained("clip")
    encoder = opened("clip").load(Placement())
    photo = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    mean, deviation = (
        torch.tensor(numbers)[None, :, None, None]
        for numbers in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    values = (photo.permute(2, 0, 1)[None] / 255 - mean) / deviation
    with torch.inference_mode():
        theirs = whole.visual_projection(whole.vision_model(values).pooler_output)
    torch.testing.assert_close(encoder(photo).projected, theirs, atol=1e-5, rtol=0)
    assert not encoder.no_picture().projected.any()
