"""Noise as a function of its seed; the process-wide random state is never touched.

Functions named `original_...` reproduce the original nodes (Impact Pack 7.10.6), oddities included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import VariationMethod
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.resizing import bilinear
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, Latent, Mask

HIGHEST_SEED = 2**64 - 1
LOWEST_SEED = -(2**63)
"""Torch reads a negative seed as 2**64 plus that seed."""


def check_seed(seed: int, field: str = "seed", lowest: int = LOWEST_SEED) -> None:
    """Raise BadInput for a seed that the generator of the noise cannot take."""
    if not lowest <= seed <= HIGHEST_SEED:
        raise BadInput(field, seed, f"an integer from {lowest} to {HIGHEST_SEED}")


def initial_noise(seed: int, shape: tuple[int, int, int, int], batch_index: Sequence[int] | None = None) -> Latent:
    """Unit noise [b, c, h, w], float32, drawn on the CPU as ComfyUI does, so that its seeds carry over.

    `batch_index` says which members of a larger batch these b pictures were: each keeps the noise it
    has there. Members are then drawn one by one, which for a picture whose size is no multiple of 16
    is other noise than the whole batch drawn at once (ComfyUI's prepare_noise).
    """
    check_seed(seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    if batch_index is None:
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    if not batch_index or min(batch_index) < 0:
        raise BadInput("batch_index", list(batch_index), "indices from 0, one per picture")
    by_index: dict[int, Latent] = {}
    for index in range(max(batch_index) + 1):
        noise = torch.randn((1, *shape[1:]), generator=generator, dtype=torch.float32)
        if index in batch_index:
            by_index[index] = noise
    return torch.cat([by_index[index] for index in batch_index])


class Variation(NamedTuple):
    """Another noise that is mixed in: `inside` is its weight [h, w] or, for the original nodes, a mask in any size."""

    inside: AnyMask
    seed: int
    strength: float
    method: VariationMethod


@dataclass(frozen=True)
class InitialNoise:
    """How the noise that a run starts from is made. `draw` makes the tensor.

    Keys of states name the noise by these values and not by its bits: the same seed gives other last bits on
    another kind of processor, and a run must find its own states there.
    """

    seed: int
    shape: tuple[int, int, int, int]
    batch_index: tuple[int, ...] | None = None
    variations: tuple[Variation, ...] = ()
    original: bool = False
    """Variations are mixed in as Impact's touch_noise does, one after the other."""

    def draw(self) -> Latent:
        """The noise [b, c, h, w]. Raises BadInput as `initial_noise` and `original_touch_noise` do."""
        noise = initial_noise(self.seed, self.shape, self.batch_index)
        if self.original:
            for v in self.variations:
                noise = original_touch_noise(noise, v.inside, v.seed, v.strength, v.method)
            return noise
        if not self.variations:
            return noise
        variants = [
            mix_noise(noise, initial_noise(v.seed, self.shape, self.batch_index), v.strength, v.method)
            for v in self.variations
        ]
        return varied_noise(noise, variants, [v.inside for v in self.variations])


def add_noise(clean: Latent, noise: Latent, start: Level, levels: ModelLevels) -> Latent:
    """The latent a run starts from: `alpha * clean + sigma * noise`.

    A model trained on betas never saw pure noise at its last level but noise of total variance
    `1 + sigma^2`, hence the slightly larger factor there.
    """
    at_top = levels.prediction != "flow" and (
        start.sigma > levels.largest or math.isclose(start.sigma, levels.largest, rel_tol=1e-5)
    )
    strength = math.sqrt(1 + start.sigma**2) if at_top else start.sigma
    return start.alpha * clean + strength * noise


def mix_noise(noise: Latent, other: Latent, strength: float, method: VariationMethod) -> Latent:
    """A blend of two noises [b, c, h, w]: the first at strength 0, the other at 1.

    `linear` divides by the blend's standard deviation, so that two independent unit noises blend into
    unit noise. `slerp` turns each picture's noise towards the other at constant speed (Shoemake,
    "Animating rotation with quaternion curves", 1985); noises along one line have no angle to turn
    through and are blended straight.
    """
    blend = original_mix_noise(noise, other, strength, method)
    if method == "linear":
        return blend
    linear_blend = (1 - strength) * noise + strength * other
    has_angle = (_angle(noise, other).sin() > 1e-3).unflatten(1, (1, 1, 1))
    return torch.where(has_angle, blend, linear_blend)


def varied_noise(noise: Latent, variations: Sequence[Latent], weights: Sequence[Mask]) -> Latent:
    """The noise [b, c, h, w] with variations of it where their weights [h, w] (at most 1 together) are not 0.

    Every cell has the variance of `noise`: a blend is divided by its standard deviation relative to the noise's, which
    follows from the Gram matrix of the fields.
    """
    fields = torch.stack([noise, *variations])
    shares = torch.stack([1 - torch.stack(list(weights)).sum(dim=0), *weights])
    flat = fields.flatten(2)
    gram = torch.einsum("kbn,lbn->bkl", flat, flat)
    variance = torch.einsum("khw,lhw,bkl->bhw", shares, shares, gram / gram[:, :1, :1])
    return torch.einsum("kbchw,khw->bchw", fields, shares) / variance.sqrt()[:, None]


def original_mix_noise(noise: Latent, other: Latent, strength: float, method: VariationMethod) -> Latent:
    """Impact's mix_noise. Its slerp of equal noises divides by the sine of 0, and is mostly NaN."""
    if method == "linear":
        blend = (1 - strength) * noise + strength * other
        return blend / math.sqrt((1 - strength) ** 2 + strength**2)
    angle = _angle(noise, other)
    sine = angle.sin()
    start = ((1 - strength) * angle).sin() / sine * noise.flatten(1)
    end = (strength * angle).sin() / sine * other.flatten(1)
    return (start + end).reshape(noise.shape)


def _angle(noise: Latent, other: Latent) -> torch.Tensor:
    """The angle [b, 1] between each picture's two noises; NaN where rounding takes its cosine over 1."""
    first, second = (
        torch.nan_to_num(flat / flat.norm(dim=1, keepdim=True), nan=0.0)
        for flat in (noise.flatten(1), other.flatten(1))
    )
    return (first * second).sum(dim=1, keepdim=True).acos()


def original_touch_noise(
    noise: Latent, mask: AnyMask, variation_seed: int, strength: float, method: VariationMethod
) -> Latent:
    """The noise [b, c, h, w] with a region's variation inside its mask [H, W] (pixels or latent cells).

    Impact's touch_noise; regions apply it in turn. A cell that the resized mask covers in part gets no
    noise at all, and one NaN in the blend spreads over its whole picture.
    Raises BadInput for masks of several pictures.
    """
    if strength <= 0:
        return noise
    check_seed(variation_seed, "variation_seed")
    rows, columns = mask.shape[-2:]
    if mask.numel() != rows * columns:
        raise BadInput("mask", list(mask.shape), "one mask [H, W]")
    inside = bilinear(mask.reshape(1, 1, rows, columns), *noise.shape[2:])
    blend = original_mix_noise(noise, initial_noise(variation_seed, shape_of(noise)), strength, method)
    return (inside == 1).float() * blend + (inside == 0).float() * noise


def shape_of(latent: Latent) -> tuple[int, int, int, int]:
    """Pictures, channels, rows and columns."""
    batch, channels, rows, columns = latent.shape
    return batch, channels, rows, columns
