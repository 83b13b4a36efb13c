"""A ControlNet or T2I-Adapter, in a folder of diffusers' or in one `.safetensors` file, compared with a model.

A single file is of diffusers' names, or a ControlNet of the first ones (`control_model.*`). What it does not say, the
model that it is for does: a ControlNet was copied from such a model's UNet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.component import DIFFUSERS_STEM
from prefect_regional_diffusion.sampling_core.models.control_rows import AdapterMaps, ControlNetHint
from prefect_regional_diffusion.sampling_core.models.controlnet import (
    CONTROLNET,
    ControlNetModel,
    configuration_from_unet,
)
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles, of_variant
from prefect_regional_diffusion.sampling_core.models.loading import (
    NetworkSource,
    check_network,
    load_network,
    network_bytes,
)
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.single_file.ldm_controlnet import (
    ORIGINAL,
    controlnet_weights,
    hint_channels,
)
from prefect_regional_diffusion.sampling_core.models.t2i_adapter import T2I_ADAPTER, T2IAdapter, adapter_configuration
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights
from prefect_regional_diffusion.sampling_core.models.unet_config import UNet2DConditionModel
from prefect_regional_diffusion.sampling_core.models.weights import read_header
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value

CONFIG = "config.json"
WEIGHTS = f"{DIFFUSERS_STEM}.safetensors"
ControlKind = Literal["ControlNet", "T2I-Adapter"]


class ControlBase(NamedTuple):
    """What a ControlNet or T2I-Adapter must fit: a model's UNet, and the pixels of a latent cell."""

    unet: UNet2DConditionModel
    cell: int


class ControlNetwork(NamedTuple):
    """A ControlNet or T2I-Adapter, loaded."""

    network: Any
    kind: ControlKind
    gray: bool

    @torch.inference_mode()
    def source(self, picture: RgbImage) -> ControlNetHint | AdapterMaps:
        """What it adds to rows that are steered by a picture [H, W, 3], 8 bits, of the canvas' size."""
        image = (_to_gray(picture) if self.gray else picture).permute(2, 0, 1)[None]
        pixels = image.to(self.network.device, torch.float32).div(255).to(self.network.dtype)
        if self.kind == "ControlNet":
            return ControlNetHint(self.network, pixels)
        return AdapterMaps(tuple(self.network(pixels)))


@dataclass(frozen=True)
class ControlFile:
    """Files that suit a model; no tensors."""

    files: ModelFiles
    source: NetworkSource
    configuration: ControlNetModel | T2IAdapter
    file_names: tuple[str, ...]
    """The files that are read, by name."""

    @property
    def kind(self) -> ControlKind:
        return "ControlNet" if isinstance(self.configuration, ControlNetModel) else "T2I-Adapter"

    @property
    def pixel_multiple(self) -> int:
        """Width and height of the pictures that it reads are multiples of this."""
        if isinstance(self.configuration, ControlNetModel):
            return self.configuration.pixels_of_a_cell
        return self.configuration.downscale_factor

    def working_numbers(self, cells: int, rows: int) -> int:
        """Roughly how many numbers are in memory while rows of so many latent cells are answered: those of half a
        UNet, of which what is added stays. The maps of a T2I-Adapter are far fewer.
        """
        if isinstance(self.configuration, T2IAdapter):
            return 0
        return rows * cells * self.configuration.block_out_channels[0] * 12

    def fingerprint(self) -> str:
        """SHA-256, in hex, over everything that is read, and over what the model says where a file does not."""
        sha256 = hashlib.sha256()
        if CONFIG not in self.file_names:
            sha256.update(self.configuration.model_dump_json().encode())
        for name in self.file_names:
            sha256.update(f"{name} ".encode())
            sha256.update(self.files.digest(name))
        return sha256.hexdigest()

    def check_weights(self) -> None:
        """Raise ModelError unless the files have exactly the tensors that the network needs. Reads no tensors."""
        check_network(self.source)

    def weight_bytes(self, placement: Placement) -> int:
        """Bytes that the weights take in memory."""
        return network_bytes(self.source, placement)

    def load(self, placement: Placement) -> ControlNetwork:
        """Read the weights. Raises ModelError."""
        gray = isinstance(self.configuration, T2IAdapter) and self.configuration.in_channels == 1
        return ControlNetwork(load_network(self.source, placement), self.kind, gray)


def open_control(files: ModelFiles, base: ControlBase) -> ControlFile:
    """Compare a folder or a file with a model. Reads headers and configurations, and no tensors. Raises ModelError."""
    is_single_file = len(files.files) == 1 and CONFIG not in files
    if is_single_file and not files.files[0].name.endswith(".safetensors"):
        raise files.error("is no .safetensors file (pickled weights are never read)")
    control = _open_single_file(files, base) if is_single_file else _open_folder(files)
    configuration = control.configuration
    if isinstance(configuration, ControlNetModel):
        problem = configuration.mismatch_with(base.unet)
        if not problem and configuration.pixels_of_a_cell != base.cell:
            problem = f"{configuration.pixels_of_a_cell} pixels for a latent cell, not {base.cell}"
    else:
        problem = configuration.mismatch_with(base.unet, base.cell)
    if problem:
        raise files.error(f"is a {control.kind} for another model ({problem})")
    return control


def _open_folder(files: ModelFiles) -> ControlFile:
    """A folder, of the kind that its configuration names."""
    values = files.mapping(CONFIG)
    kind = values.get("_class_name")
    if kind not in ("ControlNetModel", "T2IAdapter"):
        raise files.error(f"is a {plain_value(kind)}, and neither a ControlNetModel nor a T2IAdapter ({CONFIG})")
    # Many are published as float16 alone.
    if WEIGHTS not in files:
        files = of_variant(files, "fp16")
    weights = _weights_by_name(files, WEIGHTS)
    if kind == "ControlNetModel":
        return _controlnet_file(files, values, weights, (CONFIG, WEIGHTS))
    return _adapter_file(files, values, weights, (CONFIG, WEIGHTS))


def _open_single_file(files: ModelFiles, base: ControlBase) -> ControlFile:
    """A single file, of the kind that its tensors' names show."""
    file = files.files[0].name
    weights = _weights_by_name(files, file)
    if any(name.startswith(ORIGINAL) for name in weights):
        weights = controlnet_weights(weights)
    if any(name.startswith("controlnet_cond_embedding.") for name in weights):
        return _controlnet_file(files, configuration_from_unet(base.unet, hint_channels(weights)), weights, (file,))
    if any(name.startswith("adapter.body.") for name in weights):
        return _adapter_file(files, adapter_configuration(weights), weights, (file,))
    first = plain_value(next(iter(weights), None))
    raise files.error(f"is neither a ControlNet nor a T2I-Adapter in names that are known here (it has {first})")


def _controlnet_file(
    files: ModelFiles, values: Mapping[str, Any], weights: Weights, file_names: tuple[str, ...]
) -> ControlFile:
    configuration = ControlNetModel.checked(dict(values), files, CONFIG)
    files_with_parts = replace(files, parts={"ControlNet": weights})
    return ControlFile(
        files, CONTROLNET.source(files_with_parts, "ControlNet", configuration), configuration, file_names
    )


def _adapter_file(
    files: ModelFiles, values: Mapping[str, Any], weights: Weights, file_names: tuple[str, ...]
) -> ControlFile:
    configuration = T2IAdapter.checked(dict(values), files, CONFIG)
    files_with_parts = replace(files, parts={"T2I-Adapter": weights})
    return ControlFile(
        files, T2I_ADAPTER.source(files_with_parts, "T2I-Adapter", configuration), configuration, file_names
    )


def _weights_by_name(files: ModelFiles, name: str) -> Weights:
    if name not in files:
        raise files.error(f"has no {name}")
    return {info.name: info for info in read_header(files, name)[0]}


def _to_gray(picture: RgbImage) -> Tensor:
    """One channel [H, W, 1], 8 bits, as PIL has it: of grey pixels their own value."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int64)
    return (((picture.to(torch.int64) * weights).sum(-1, keepdim=True) + 2**15) >> 16).to(torch.uint8)
