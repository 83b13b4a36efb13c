"""How much work and memory jobs ask for beside the network, known from their fields alone.

Estimates: what counts is that nothing large is left out, and that equal masks count once, as they are drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from prefect_regional_diffusion.sampling_core.comfyui.masks import PIXELS_PER_CELL
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    MaskGridNKSamplersAdvanced,
    TwoSamplersForMask,
    tiles_of,
)
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_masks import ResolvedMask
from prefect_regional_diffusion.sampling_core.planning.canonical_job import (
    canonical_mask,
    canonical_picture,
    canonical_shape,
)
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS

_NUMBER = 4
"""Bytes of a float32."""
CHANNELS = 4
"""Of the latents of Stable Diffusion."""
_REMEMBERED = 2
"""Latents of each participant: the one at hand, and what its solver remembers."""


def drawn_pixels(job: ResolvedJob, image_pixels: Mapping[str, int]) -> dict[str, int]:
    """Pixels that are visited to draw each distinct mask: the canvas', and those of the mask's image.

    By a name that equal masks share, in other jobs too. `image_pixels` has the sizes of image files by path, as far as
    they are known.
    """
    pixels: dict[str, int] = {}
    for mask in job.masks:
        pixels[content_hash([canonical_mask(mask, {}), mask.size, job.composition])] = _pixels_of(mask, image_pixels)
    for mask in job.protect:
        pixels[content_hash([canonical_shape(mask.shape, {}), *mask.size])] = _pixels_of(mask, image_pixels)
    return pixels


def _pixels_of(mask: ResolvedMask, image_pixels: Mapping[str, int]) -> int:
    return mask.size[0] * mask.size[1] + (0 if mask.file is None else image_pixels.get(mask.file.path, 0))


def tensor_bytes(jobs: Iterable[ResolvedJob]) -> int:
    """Memory that masks, weights and latents of jobs take that are drawn by one process, in bytes."""
    shared: dict[str, int] = {}
    unshared = 0
    for job in jobs:
        shared[_pictures_name(job)] = _mask_bytes(job) + _picture_bytes(job)
        unshared += own_bytes(job)
    return sum(shared.values()) + unshared


def own_bytes(job: ResolvedJob) -> int:
    """Of that, what a job does not share with those that have the same masks and pictures: weights and latents."""
    return _latent_bytes(job) + (_weight_bytes(job) if job.composition != "sequential" else 0)


def most_pictures(job: RenderJob) -> int:
    """How many pictures a job becomes; fewer files where some are equal."""
    return job.pictures * math.prod(tiles_of(job.node))


def finished_bytes(job: RenderJob) -> int:
    """Of all pictures of a job, 8-bit colours: their files are in memory until the last one is drawn."""
    return most_pictures(job) * job.width * job.height * 3


def _pictures_name(job: ResolvedJob) -> str:
    masks = [(canonical_mask(mask, {}), mask.size) for mask in job.masks]
    protect = [canonical_shape(mask.shape, {}) for mask in job.protect]
    controls = [canonical_picture(picture, {}) for picture in job.control_pictures]
    start = [job.init_image, job.init_fit, protect]
    return content_hash([job.composition, job.width, job.height, masks, *start, controls])


def _mask_bytes(job: ResolvedJob) -> int:
    """Of all masks of a job: on the latent lattice, or in pixels as the original nodes take them."""
    cell = PIXELS_PER_CELL if job.composition != "sequential" else 1
    return sum((height // cell) * (width // cell) for height, width in (mask.size for mask in job.masks)) * _NUMBER


def _picture_bytes(job: ResolvedJob) -> int:
    """Of an init image and of controls' pictures in 8-bit colours, and of what is protected."""
    bytes_per_pixel = 0 if job.init_image is None else 3 + (_NUMBER if job.protect else 0)
    return job.width * job.height * (bytes_per_pixel + 3 * len(job.control_pictures))


def _weight_bytes(job: ResolvedJob) -> int:
    """A weight for the base and each region in each stage; a stage begins where a region enters or leaves."""
    windows = [(region.start_at_step, region.end_at_step) for region in job.regions]
    stages = len({job.base_only_steps, *(step for window in windows for step in window if step is not None)}) + 1
    return stages * (len(job.regions) + 1) * _cells(job) * _NUMBER


def _latent_bytes(job: ResolvedJob) -> int:
    """Latents of all participants; of a node's pictures; and of a source of noise that keeps what it has drawn."""
    participants = job.participants
    num_latents = _REMEMBERED * (len(participants) if job.composition == "joint" else 1)
    if job.composition == "sequential":
        num_latents += len(participants)  # each pass' mask
        num_latents += math.prod(tiles_of(job.node)) if isinstance(job.node, MaskGridNKSamplersAdvanced) else 0
    if job.composition == "sequential" or job.noise == "comfyui":
        solvers = [SOLVERS[settings.sampler] for settings in participants]
        inside = job.node.mask_steps or 0 if isinstance(job.node, TwoSamplersForMask) else 0
        steps = max(job.steps, inside) if _whole_passes(job) else 1
        num_latents += (
            steps * max(solver.draws for solver in solvers) if any(solver.order == 0 for solver in solvers) else 0
        )
    return num_latents * job.batch_size * CHANNELS * _cells(job) * _NUMBER


def _whole_passes(job: ResolvedJob) -> bool:
    """Whether one source of noise serves all steps; the regional nodes begin a pass for every step."""
    return job.composition != "sequential" or isinstance(job.node, TwoSamplersForMask | MaskGridNKSamplersAdvanced)


def _cells(job: ResolvedJob) -> int:
    return (job.width // PIXELS_PER_CELL) * (job.height // PIXELS_PER_CELL)
