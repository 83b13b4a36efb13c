"""`sample_advanced`: how the Impact Pack calls a sampler for a range of steps, with its recovery sampler.

Mirrors KSamplerAdvancedWrapper and KSamplerWrapper (Impact Pack 7.10.6) and KSamplerAdvanced (ComfyUI 0.3.64).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from sampling_core._types import AnyMask, Embedding, Latent
from sampling_core.draws import Shape, span
from sampling_core.errors import BadInput
from sampling_core.evaluate import Count, Network
from sampling_core.guidance import Guidance
from sampling_core.levels import Level, ModelLevels
from sampling_core.nodes.masks import composite, noise_mask, repeated
from sampling_core.nodes.passes import Pass, Result, as_walked, original_solver, run
from sampling_core.noise import initial_noise
from sampling_core.schedules import original_sigmas

RecoveryMode = Literal["DISABLE", "ratio additional", "ratio between"]
_WHOLE_PATH = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde_gpu")
"""SDE samplers whose Brownian path the Impact Pack spans over the whole schedule, not over the call's part of it."""
SPECIAL = ("uni_pc", "uni_pc_bh2", *_WHOLE_PATH)
"""Samplers that get a recovery pass."""


class Networks(NamedTuple):
    """What passes are evaluated with: networks and levels by model name, embeddings by prompt."""

    networks: Mapping[str, Network]
    levels: Mapping[str, ModelLevels]
    embeddings: Mapping[str, Embedding]
    channels: int = 4
    """Channels of the latents that the networks take."""

    def fit(self, latent: Latent) -> Latent:
        """An empty latent (all zeros) with as many channels as the networks take; any other as it is."""
        if latent.shape[1] == self.channels or bool(latent.any()):
            return latent
        return repeated(latent.transpose(0, 1), self.channels).transpose(0, 1)


class Setting(NamedTuple):
    """A KSAMPLER_ADVANCED: model, sampler and guidance, without steps or seed."""

    model: str
    sampler: str
    scheduler: str
    guidance: Guidance
    sigma_factor: float = 1.0
    """All sigmas of a call are multiplied by it."""


class Recovery(NamedTuple):
    """The second pass of special samplers: `additional_mode`, `additional_sampler`, `additional_sigma_ratio`.

    `ratio additional` repeats the step's sigmas times `ratio`; `ratio between` gives the first pass
    `1 - ratio` of them.
    """

    mode: RecoveryMode = "ratio additional"
    sampler: str = "AUTO"
    ratio: float = 1.0

    def sampler_after(self, special: str) -> str:
        """The recovery sampler; AUTO takes `dpm_fast` after one-step and UniPC methods, else `dpmpp_2m`."""
        if self.sampler != "AUTO":
            return self.sampler
        return "dpm_fast" if special in {"uni_pc", "uni_pc_bh2", "dpmpp_sde", "dpmpp_sde_gpu"} else "dpmpp_2m"


NO_RECOVERY = Recovery("DISABLE")


class Call(NamedTuple):
    """One call: step range [start, end) of a schedule of `steps`, and what becomes of the noise.

    `mask` is 1 where the latent may change, in pixels or cells. `noise` [b, c, h, w] takes the place of
    the seed's own. Without `leftover`, the last level is sigma 0 and the last prediction is returned.
    """

    steps: int
    start: int
    end: int
    seed: int
    add_noise: bool
    leftover: bool
    mask: AnyMask | None = None
    noise: Latent | None = None
    recovery: Recovery = NO_RECOVERY
    batch_index: tuple[int, ...] | None = None


class Stretch(NamedTuple):
    """The part of a schedule that a call walks (sigmas), and the span of its Brownian path."""

    sigmas: tuple[float, ...]
    path: tuple[float, float]


def stretch(sigmas: Sequence[float], call: Call) -> Stretch | None:
    """The call's part of the whole schedule; None where it starts past the end and changes nothing."""
    whole = list(sigmas)
    part = whole
    if call.end < len(whole) - 1:
        part = whole[: call.end + 1]
        if not call.leftover and part:
            # The originals write this zero into the schedule itself, and so shorten the Brownian path.
            part[-1] = whole[call.end] = 0.0
    if call.start >= len(part) - 1:
        return None
    return Stretch(tuple(part[call.start :]), span(tuple(Level(1.0, sigma) for sigma in whole)))


def sample_advanced(setting: Setting, call: Call, latent: Latent, using: Networks) -> tuple[Latent, Count]:
    """The call on a boundary latent [b, c, h, w]: its result, and what it cost.

    Raises BadInput for unknown samplers and schedulers, impossible seeds, and a recovery without mask.
    """
    recovery = call.recovery
    special = setting.sampler in SPECIAL and recovery.mode != "DISABLE"
    ratio = 1.0 - recovery.ratio if special and recovery.mode == "ratio between" else 1.0
    reached, count = latent, Count()
    if ratio > 0:
        reached, count = _separated(setting, call, latent, using, ratio * setting.sigma_factor)
    if not special or recovery.ratio <= 0:
        return reached, count
    if call.mask is None:
        raise BadInput("additional_mode", recovery.mode, "DISABLE where there is no mask")
    reached = composite(latent, reached, 0, 0, _flat(call.mask))
    again = setting._replace(sampler=recovery.sampler_after(setting.sampler))
    # The recovery pass adds the seed's own noise anew, whatever noise the first one was given.
    reached, cost = _separated(again, call._replace(noise=None), reached, using, recovery.ratio * setting.sigma_factor)
    return reached, count.plus(cost)


def _separated(setting: Setting, call: Call, latent: Latent, using: Networks, ratio: float) -> tuple[Latent, Count]:
    """One pass of the Impact Pack: sigmas times `ratio`; without leftover noise, the last prediction."""
    part = stretch(original_sigmas(using.levels[setting.model], setting.sampler, setting.scheduler, call.steps), call)
    if part is None or part.sigmas == (0.0,):
        return latent, Count()
    # In float32, as the originals have them: a Brownian path moves by the root of a difference.
    sigmas = (torch.tensor(part.sigmas, dtype=torch.float32) * ratio).tolist()
    path = part.path if setting.sampler in _WHOLE_PATH else None
    result = masked_pass(setting, call, latent, using, sigmas, path)
    return (result.x if call.leftover else result.denoised), result.cost


def masked_pass(
    setting: Setting,
    call: Call,
    latent: Latent,
    using: Networks,
    sigmas: Sequence[float],
    path: tuple[float, float] | None = None,
) -> Result:
    """One pass over these sigmas, the noise and the mask being those of the call."""
    original_solver(setting.sampler)
    latent = using.fit(latent)
    levels, shape = using.levels[setting.model], _shape(latent)
    ladder = tuple(levels.level(sigma) for sigma in sigmas)
    noise = call.noise
    if noise is None:
        noise = initial_noise(call.seed, shape, call.batch_index) if call.add_noise else torch.zeros_like(latent)
    work = Pass(
        sampler=setting.sampler,
        ladder=as_walked(setting.sampler, ladder),
        guidance=setting.guidance,
        seed=call.seed,
        noise=noise,
        mask=None if call.mask is None else noise_mask(call.mask, shape),
        levels=levels,
        path=path or span(ladder),
    )
    return run(work, latent, using.networks[setting.model], using.embeddings)


def ksampler(
    setting: Setting, call: Call, latent: Latent, using: Networks, denoise: float = 1.0
) -> tuple[Latent, Count]:
    """ComfyUI's KSampler (Advanced): returns the sampler's x, not its last prediction.

    With `denoise` < 1 the schedule is the end of a longer one, and the range counts from there; at 0
    nothing is sampled.
    """
    if denoise <= 0:
        return latent, Count()
    levels = using.levels[setting.model]
    total = call.steps if denoise > 0.9999 else lengthened(call.steps, denoise)
    sigmas = original_sigmas(levels, setting.sampler, setting.scheduler, total)
    if denoise <= 0.9999:
        sigmas = sigmas[-(call.steps + 1) :]
    part = stretch(sigmas, call)
    if part is None:
        return latent, Count()
    result = masked_pass(setting, call, latent, using, part.sigmas)
    return result.x, result.cost


def wrapped_ksampler(
    setting: Setting, seed: int, steps: int, denoise: float, latent: Latent, mask: AnyMask | None, using: Networks
) -> tuple[Latent, Count]:
    """A KSAMPLER of the Impact Pack: a full run, the end of a longer one where denoise < 1."""
    total = lengthened(steps, denoise)
    if total == 0:
        return latent, Count()
    call = Call(total, total - steps, total, seed, add_noise=True, leftover=False, mask=mask)
    return sample_advanced(setting, call, latent, using)


def lengthened(steps: int, denoise: float) -> int:
    """Steps of the schedule whose last `steps` are taken; rounded down after float division, as recorded."""
    if denoise <= 0:
        raise BadInput("denoise", denoise, "more than 0, at most 1")
    return int(steps / denoise)


def _flat(mask: AnyMask) -> AnyMask:
    """A mask [1, 1, H, W] without its two leading axes."""
    return mask.squeeze(0).squeeze(0) if mask.ndim == 4 else mask


def _shape(latent: Latent) -> Shape:
    batch, channels, rows, columns = latent.shape
    return batch, channels, rows, columns
