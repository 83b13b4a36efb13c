"""Folders of image encoders: the part of CLIP that turns the picture of an image prompt into features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.clip_vision import (
    CLIP_VISION,
    CLIPVisionModelWithProjection,
)
from prefect_regional_diffusion.sampling_core.models.files import Follow, ModelFiles, find_files
from prefect_regional_diffusion.sampling_core.models.loading import NetworkSource, load_network
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage

FOLDER = "image_encoder"
"""What it is called beside adapters, and in messages."""
_OF_TEXT = ("text_model.", "text_projection.", "logit_scale")
"""What the names of a whole CLIP's other tensors begin with."""
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on, by channel, of values 0 to 1."""


class ImageFeatures(NamedTuple):
    """An encoder's features of a picture; float32 on the CPU."""

    projected: Tensor
    """[1, features]: one vector for the whole of it."""
    patches: Tensor
    """[1, positions, features]: the states before the last layer, the first of the whole, then of each patch."""


@dataclass(frozen=True)
class ImageEncoderFolder:
    """A folder whose configuration and headers were checked; no tensors."""

    files: ModelFiles
    configuration: CLIPVisionModelWithProjection
    network: NetworkSource

    def fingerprint(self) -> str:
        """SHA-256 over everything that is read, in hex."""
        sha256 = hashlib.sha256()
        names = {f"{FOLDER}/config.json", *(info.file for info in self.network.weights.values())}
        for name in sorted(names):
            sha256.update(f"{name} ".encode())
            sha256.update(self.files.digest(name))
        return sha256.hexdigest()

    def load(self, placement: Placement) -> ImageEncoder:
        """Read the weights. Raises ModelError."""
        return ImageEncoder(load_network(self.network, placement))


class ImageEncoder:
    """A loaded encoder."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, picture: RgbImage) -> ImageFeatures:
        """The features of a picture [image_size, image_size, 3], 8 bits."""
        values = picture.permute(2, 0, 1)[None].float() / 255
        mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (_MEAN, _DEVIATION))
        return self._features((values - mean) / deviation)

    def no_picture(self) -> ImageFeatures:
        """What stands for no picture, as in diffusers: projected features of zeros, and the patches of a grey one."""
        size = self._network.config.image_size
        features = self._features(torch.zeros(1, 3, size, size))
        return features._replace(projected=torch.zeros_like(features.projected))

    @torch.inference_mode()
    def _features(self, values: Tensor) -> ImageFeatures:
        network = self._network
        output = network(values.to(network.device, network.dtype), output_hidden_states=True)
        return ImageFeatures(
            *(tensor.float().cpu().clone() for tensor in (output.image_embeds, output.hidden_states[-2]))
        )


def open_image_encoder(field: str, name: str, place: str, follow: Follow) -> ImageEncoderFolder:
    """Check a folder with `config.json` and `model.safetensors`, of CLIP's image encoder or of a whole CLIP.

    `name` is what `field` of a job calls it; `follow` gives the real path behind a link, and raises if it may not be
    followed. Raises ModelError.
    """
    if not Path(place).is_dir():
        raise ModelError(field, name, "is a file, not a folder" if Path(place).exists() else "does not exist")
    try:
        folder_files = find_files(name, Path(place), follow, field)
    except OSError as error:
        raise ModelError(field, name, f"cannot be read: {type(error).__name__}") from error
    files = replace(
        folder_files, files=tuple(file._replace(name=f"{FOLDER}/{file.name}") for file in folder_files.files)
    )
    name = f"{FOLDER}/config.json"
    values = files.mapping(name)
    is_whole_clip = values.get("model_type") == "clip"
    configuration = CLIPVisionModelWithProjection.checked(
        _vision_values(values) if is_whole_clip else values, files, name
    )
    network = CLIP_VISION.source(files, FOLDER, configuration)
    if is_whole_clip:
        image_weights = {name: info for name, info in network.weights.items() if not name.startswith(_OF_TEXT)}
        network = replace(network, weights=image_weights)
    return ImageEncoderFolder(files, configuration, network)


def _vision_values(values: Mapping[str, Any]) -> object:
    """What the configuration of a whole CLIP says of its image encoder."""
    vision = values.get("vision_config")
    return vision | {"projection_dim": values.get("projection_dim")} if isinstance(vision, dict) else vision
