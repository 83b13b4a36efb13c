"""T2I-Adapter (Mou et al. 2023): it reads a picture alone, once; its maps are added in a UNet's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from prefect_regional_diffusion.sampling_core.models.component import DIFFUSERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.configurations import (
    OF_DIFFUSERS,
    Layers,
    NetworkConfiguration,
    PerLevel,
    Shape,
)
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import num_blocks
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights
from prefect_regional_diffusion.sampling_core.models.unet_config import UNet2DConditionModel

AdapterType = Literal["full_adapter", "full_adapter_xl", "light_adapter"]


class Map(NamedTuple):
    """One of the maps: its channels, and pixels of the picture for each of its cells, in each direction."""

    channels: int
    pixels: int


class T2IAdapter(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": "T2IAdapter"}
    NOTES: ClassVar[frozenset[str]] = OF_DIFFUSERS

    in_channels: Literal[1, 3] = 3
    channels: PerLevel
    num_res_blocks: Layers = 2
    downscale_factor: Literal[4, 8, 16, 32] = 8
    adapter_type: AdapterType = "full_adapter"

    @property
    def least_tensors(self) -> int:
        return 4 * self.num_res_blocks * len(self.channels)

    def edges(self) -> dict[str, Shape]:
        unshuffled_channels = self.in_channels * self.downscale_factor**2
        if self.adapter_type == "light_adapter":
            return {"adapter.body.0.in_conv.weight": (self.channels[0] // 4, unshuffled_channels, 1, 1)}
        return {"adapter.conv_in.weight": (self.channels[0], unshuffled_channels, 3, 3)}

    @property
    def maps(self) -> list[Map]:
        """The maps that it makes of a picture, in order."""
        first = self.downscale_factor
        match self.adapter_type:
            case "full_adapter":
                return [Map(width, first * 2**i) for i, width in enumerate(self.channels)]
            case "full_adapter_xl":
                return [Map(width, first * (1 if i < 2 else 2)) for i, width in enumerate(self.channels)]
            case "light_adapter":
                return [Map(width, first * 2**i) for i, width in enumerate([*self.channels, self.channels[-1]])]

    def mismatch_with(self, unet: UNet2DConditionModel, cell: int) -> str:
        """How it differs from a UNet that it is to be added to; empty if it fits.

        `cell` is how many pixels a cell of the UNet's latents has, in each direction.
        """
        places = places_of(unet, cell)
        if self.maps in (places, places[:-1]):
            return ""
        adapter_maps, unet_maps = (
            " ".join(f"{width}x1/{pixels}" for width, pixels in maps) for maps in (self.maps, places)
        )
        return f"maps of {adapter_maps}, not {unet_maps}"


def places_of(unet: UNet2DConditionModel, cell: int) -> list[Map]:
    """Where diffusers' UNet takes maps: one for each block of its encoder, and one for its middle, which may be absent.

    A block with attention takes it before its own map is downsampled, any other block after that.
    """
    maps: list[Map] = []
    last = len(unet.block_out_channels) - 1
    for level, (width, kind) in enumerate(zip(unet.block_out_channels, unet.down_block_types, strict=True)):
        downsamples = kind == "DownBlock2D" and level < last
        maps.append(Map(width, cell * 2 ** (level + downsamples)))
    return [*maps, Map(unet.block_out_channels[-1], cell * 2**last)]


def t2i_adapter(configuration: T2IAdapter) -> Any:
    """The network, with random weights."""
    from diffusers.models.adapter import T2IAdapter as Network

    return Network(**configuration.model_dump())


T2I_ADAPTER = Component(Class("diffusers", ("T2IAdapter",)), DIFFUSERS_STEM, T2IAdapter, t2i_adapter)


def adapter_configuration(weights: Weights) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys. The adapters of SDXL begin with 16 pixels."""
    blocks = num_blocks(weights, "adapter.body.")
    is_light = "adapter.body.0.in_conv.weight" in weights and "adapter.body.0.out_conv.weight" in weights
    first = "adapter.body.0.in_conv.weight" if is_light else "adapter.conv_in.weight"
    width = "out_conv.weight" if is_light else "resnets.0.block1.weight"
    channels = [_size(weights, f"adapter.body.{block}.{width}", 0) for block in range(blocks)]
    # Of each pixel of a cell: 64 or 192, and 256 or 768.
    unshuffled_channels = _size(weights, first, 1)
    edge = 16 if unshuffled_channels in (16**2, 3 * 16**2) else 8
    return {
        "adapter_type": "light_adapter" if is_light else "full_adapter_xl" if edge == 16 else "full_adapter",
        "in_channels": unshuffled_channels // edge**2,
        "channels": channels[:-1] if is_light else channels,
        "downscale_factor": edge,
        "num_res_blocks": num_blocks(weights, "adapter.body.0.resnets."),
    }


def _size(weights: Weights, name: str, axis: int) -> int:
    return weights[name].shape[axis] if name in weights and len(weights[name].shape) > axis else 0
