"""What the original nodes do with masks: ComfyUI 0.3.64, Impact Pack 7.10.6 and the nodes' own code.

These functions reproduce results, oddities included; `sampling_core.masks.rasterize` is how this project does it.
A mask is 1 where a pass may change the latent. It comes in pixels or in latent cells, as [H, W],
[n, H, W] or [n, 1, H, W]; no function here depends on which, since all of them resize to what they need.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.masks.dilation import dilated
from prefect_regional_diffusion.sampling_core.tensors.resizing import bilinear
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, Latent, LatticeMask, MaskStack

PIXELS_PER_CELL = 8
"""The originals hold every autoencoder to this factor."""


def single_mask(mask: AnyMask) -> AnyMask:
    """[1, H, W] and [1, 1, H, W] as [H, W], as a regional prompt stores its mask.

    Mirrors Impact's REGIONAL_PROMPT. Masks for n > 1 pictures keep their leading axis; what follows
    from it is up to each function.
    """
    for _ in range(mask.ndim - 2):
        if mask.shape[0] == 1:
            mask = mask[0]
    return mask


def _stack(mask: AnyMask) -> MaskStack:
    return mask.reshape(-1, 1, mask.shape[-2], mask.shape[-1])


def _resized(mask: AnyMask, rows: int, columns: int) -> MaskStack:
    return bilinear(_stack(mask), rows, columns)


def repeated(batch: Tensor, count: int) -> Tensor:
    """The first `count` members of [n, ...]; when there are fewer, they start over."""
    return batch[torch.arange(count, device=batch.device) % batch.shape[0]]


def on_lattice(mask: AnyMask, lattice: tuple[int, int]) -> LatticeMask:
    """The mask at the size (rows, columns) that every pass resizes it to: so it is done once, and kept small.

    What has this size already is resized to the same bits, so that passes do the same with it. [h, w], or of several
    masks [n, 1, h, w].
    """
    return single_mask(_resized(mask, *lattice))


def noise_mask(mask: AnyMask, shape: tuple[int, int, int, int]) -> Latent:
    """The mask a masked pass multiplies with, resized to the latent's `shape` [b, c, h, w].

    Mirrors ComfyUI's prepare_mask. The same values for each channel; n masks serve b pictures in turn,
    and when n > b the rest are not used. Soft values stay soft.
    """
    count, channels, rows, columns = shape
    return repeated(_resized(mask, rows, columns), count).expand(-1, channels, -1, -1)


def base_mask(masks: Sequence[Tensor]) -> AnyMask:
    """1 where every region's mask is exactly 0, in the masks' own pixels or cells.

    Mirrors RegionalSampler and RegionalSamplerAdvanced, which round region masks up here but to the
    nearest integer where they grow them: a cell with a value over 0 and up to 0.5 is no one's.
    Raises BadInput without regions, and for masks of different sizes.
    """
    if not masks:
        raise BadInput("regions", [], "at least one region")
    shapes = [tuple(mask.shape) for mask in masks]
    if len(set(shapes)) > 1:
        raise BadInput("regions", shapes, "masks of one size")
    covered = masks[0].ceil() != 0
    # One after the other: all of them together may be gigabytes.
    for mask in masks[1:]:
        covered |= mask.ceil() != 0
    return (~covered).float()


def base_mask_of_two(mask: AnyMask) -> AnyMask:
    """1 where the mask is not exactly 1, in the mask's own pixels or cells.

    Mirrors TwoSamplersForMask and TwoAdvancedSamplersForMask, where the base so keeps a soft edge
    that the mask's sampler works on as well.
    """
    return (mask != 1).float()


def grown_in_mask_pixels(mask: AnyMask, overlap_factor: int) -> MaskStack:
    """A region's mask [H, W], hardened and grown, as [1, 1, W, H]: height and width exchanged.

    Mirrors Impact's erosion_mask (in truth a dilation), behind RegionalSampler and
    RegionalSamplerAdvanced. The factor counts the mask's own pixels, so a mask in latent cells grows
    eight times as far as one in image pixels. Of [n, H, W], n > 1, the first two axes are taken for
    height and width, hence [n, 1, H, n].
    """
    mask = single_mask(mask)
    return _grown(mask, mask.shape[0], mask.shape[1], overlap_factor)


def grown_in_latent_cells(mask: AnyMask, lattice: tuple[int, int], overlap_factor: int) -> MaskStack:
    """The mask [n, H, W], hardened and grown, as [n, 1, w, h] for a lattice (h, w): again exchanged.

    Mirrors mask_erosion of TwoAdvancedSamplersForMask. The factor counts latent cells, eight times
    what the same number means for an image mask in the regional nodes.
    """
    return _grown(mask, *lattice, overlap_factor)


def _grown(mask: AnyMask, height: int, width: int, factor: int) -> MaskStack:
    """The mask squeezed into [n, 1, width, height], hardened (0.5 becomes 0), and dilated.

    A square of `factor` cells dilates it, so an odd factor adds (factor - 1) / 2 cells on every side,
    and an even one a cell less above and to the left than below and to the right; 0 and 1 add none.
    """
    if factor < 0:
        raise BadInput("overlap_factor", factor, "0 or more")
    transposed = _resized(mask, width, height).round()
    return (dilated(transposed, factor) if factor > 1 else transposed).clamp(0, 1)


def composite(
    destination: Latent, source: Tensor, x: int, y: int, mask: AnyMask | None = None, resize_source: bool = False
) -> Latent:
    """The destination [b, c, h, w] with the source [n, c, h', w'] laid over it at (x, y), in pixels.

    Mirrors ComfyUI's LatentCompositeMasked. The position is cut to whole cells of 8 pixels, whatever
    the autoencoder. The mask, resized to the source (not to the destination), weighs the two; without
    one the source covers. What reaches over the destination's edge is dropped. With `resize_source`
    the source first takes the destination's size. The destination itself is left as it is.
    Raises BadInput for a position left of or above the destination, which the node's form refuses.
    """
    for field, position in (("x", x), ("y", y)):
        if position < 0:
            raise BadInput(field, position, "0 or more pixels")
    count, _, rows, columns = destination.shape
    if resize_source:
        source = interpolate(source, size=(rows, columns), mode="bilinear")
    source = repeated(source, count)
    top, left = min(y // PIXELS_PER_CELL, rows), min(x // PIXELS_PER_CELL, columns)
    bottom, right = min(top + source.shape[2], rows), min(left + source.shape[3], columns)
    if mask is None:
        weight = torch.ones_like(source[:, :1])
    else:
        weight = repeated(_resized(mask, source.shape[2], source.shape[3]), count)
    visible = (slice(None), slice(None), slice(bottom - top), slice(right - left))
    weight, source = weight[visible], source[visible]
    result = destination.clone()
    covered = result[:, :, top:bottom, left:right]
    covered.copy_(weight * source + (1 - weight) * covered)
    return result
