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
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import numbered
from prefect_regional_diffusion.sampling_core.models.stored import Weights
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
        seen = self.in_channels * self.downscale_factor**2
        if self.adapter_type == "light_adapter":
            return {"adapter.body.0.in_conv.weight": (self.channels[0] // 4, seen, 1, 1)}
        return {"adapter.conv_in.weight": (self.channels[0], seen, 3, 3)}

    @property
    def maps(self) -> list[Map]:
        """What it finds in a picture, in order."""
        first = self.downscale_factor
        match self.adapter_type:
            case "full_adapter":
                return [Map(width, first * 2**i) for i, width in enumerate(self.channels)]
            case "full_adapter_xl":
                return [Map(width, first * (1 if i < 2 else 2)) for i, width in enumerate(self.channels)]
            case "light_adapter":
                return [Map(width, first * 2**i) for i, width in enumerate([*self.channels, self.channels[-1]])]

    def unlike(self, unet: UNet2DConditionModel, cell: int) -> str:
        """What it has of another kind than a UNet that it shall be added to; empty if it suits it.

        `cell` is how many pixels a cell of the UNet's latents has, in each direction.
        """
        places = places_of(unet, cell)
        if self.maps in (places, places[:-1]):
            return ""
        found, wanted = (" ".join(f"{width}x1/{pixels}" for width, pixels in maps) for maps in (self.maps, places))
        return f"maps of {found}, not {wanted}"


def places_of(unet: UNet2DConditionModel, cell: int) -> list[Map]:
    """Where diffusers' UNet takes maps: one for each block of its encoder, and one for its middle, which may be absent.

    A block with attention takes it before it makes its own smaller, another one after that.
    """
    found: list[Map] = []
    last = len(unet.block_out_channels) - 1
    for level, (width, kind) in enumerate(zip(unet.block_out_channels, unet.down_block_types, strict=True)):
        smaller = kind == "DownBlock2D" and level < last
        found.append(Map(width, cell * 2 ** (level + smaller)))
    return [*found, Map(unet.block_out_channels[-1], cell * 2**last)]


def t2i_adapter(configuration: T2IAdapter) -> Any:
    """The network, with random weights."""
    from diffusers.models.adapter import T2IAdapter as Network

    return Network(**configuration.model_dump())


T2I_ADAPTER = Component(Class("diffusers", ("T2IAdapter",)), DIFFUSERS_STEM, T2IAdapter, t2i_adapter)


def adapter_configuration(weights: Weights) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys. The adapters of SDXL begin with 16 pixels."""
    blocks = numbered(weights, "adapter.body.")
    light = "adapter.body.0.in_conv.weight" in weights and "adapter.body.0.out_conv.weight" in weights
    first = "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"
    width = "out_conv.weight" if light else "resnets.0.block1.weight"
    channels = [_size(weights, f"adapter.body.{block}.{width}", 0) for block in range(blocks)]
    # Of each pixel of a cell: 64 or 192, and 256 or 768.
    seen = _size(weights, first, 1)
    edge = 16 if seen in (16**2, 3 * 16**2) else 8
    return {
        "adapter_type": "light_adapter" if light else "full_adapter_xl" if edge == 16 else "full_adapter",
        "in_channels": seen // edge**2,
        "channels": channels[:-1] if light else channels,
        "downscale_factor": edge,
        "num_res_blocks": numbered(weights, "adapter.body.0.resnets."),
    }


def _size(weights: Weights, name: str, axis: int) -> int:
    return weights[name].shape[axis] if name in weights and len(weights[name].shape) > axis else 0
