"""The boundary between this project and models: the interface of a family, which is all that other code uses of it.

A family (Stable Diffusion, say) opens files as a `Checkpoint`. That knows its `Facts` without weights, and loads its
three parts separately: text encoders, denoiser, autoencoder. Latents are spatial [b, c, h, w] everywhere outside a
family; packing, position ids, time conventions and signs stay inside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch

from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.ip_adapter_file import IPAdapter
from prefect_regional_diffusion.sampling_core.models.latent_affine import LatentAffine
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.partial_canvas import PartialCanvas
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.models.textual_inversion import NO_EMBEDDINGS, Embeddings
from prefect_regional_diffusion.sampling_core.names import EmptyNegative, PromptSyntax, SamplerName, SchedulerName
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels, PredictionType
from prefect_regional_diffusion.sampling_core.tensors.specs import Specs
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Pixels, RgbImage, Rows

Part = Literal["text_encoder", "denoiser", "autoencoder"]
"""What is loaded and let go by itself. Several text encoders of one model are one part."""
PARTS: tuple[Part, ...] = get_args(Part)

GuidanceKind = Literal["cfg", "embedded", "none"]
"""How a model is guided: with a second row for a negative prompt; with the scale as an input (`GUIDANCE` of a
conditioning), in one row; or not at all, because it was distilled at one scale."""


class Canvas(NamedTuple):
    """The size of a picture in pixels."""

    width: int
    height: int


class SizeConditioning(NamedTuple):
    """Sizes that a denoiser takes as an input, in pixels: micro-conditioning (Podell et al. 2023, section 2.2).

    The picture is as one of the training set that was of the `original` size, was resized until it covered the
    `canvas`, and lost `crop_top` rows and `crop_left` columns of pixels at its top and left.
    """

    canvas: Canvas
    original: Canvas
    crop_left: int = 0
    crop_top: int = 0
    aesthetic_score: float | None = None
    """In the place of the canvas' size: how much people like such pictures, of 10. Of the refiner alone."""

    def within(self, top: int, left: int, canvas: Canvas) -> SizeConditioning:
        """The same of a part of the canvas at this place, in pixels: a picture of that size with more cut off."""
        return self._replace(canvas=canvas, crop_top=self.crop_top + top, crop_left=self.crop_left + left)

    @property
    def plain(self) -> bool:
        """Whether it says nothing but the canvas' size."""
        return self == SizeConditioning(self.canvas, self.canvas)


class Defaults(NamedTuple):
    """What suits a model where a job says nothing."""

    width: int
    height: int
    steps: int
    cfg: float
    sampler: SamplerName
    scheduler: SchedulerName


@dataclass(frozen=True)
class Facts:
    """What is known of a model before its weights are read."""

    family: str
    """The name that people know it by."""
    latent_channels: int
    vae_scale_factor: int
    """Pixels per latent cell, in each direction."""
    pixel_multiple: int
    """Width and height of a picture are multiples of this."""
    latent_affine: LatentAffine
    prediction_type: PredictionType
    prompt_tokens: int
    """Tokens of a prompt that are read, begin and end not counted; in other dialects than the plain one, of a chunk."""
    trained_pixels: int
    """Edge of the canvases that the model was trained on."""
    defaults: Defaults
    guidance: GuidanceKind = "cfg"
    empty_negative: EmptyNegative = "encoded"
    refiner: bool = False
    """Whether it was trained on the last noise levels alone, and draws no picture by itself."""
    size_conditioned: bool = False
    """Whether sizes are an input of the denoiser beside its latent (`Checkpoint.size_tensors`)."""
    most_pixels: int | None = None
    """Edge of the largest canvas that the model has positions for; None: it has them for all."""
    prompt_syntaxes: tuple[PromptSyntax, ...] = ("plain",)
    """The dialects in which its prompts may be written."""
    partial: PartialCanvas | None = None
    """Parts of a canvas that its denoiser may evaluate alone; None: it takes whole canvases only."""
    takes_loras: bool = False
    """Whether LoRAs can be added to its networks."""
    takes_controls: bool = False
    """Whether ControlNets and T2I-Adapters can steer its denoiser."""
    takes_image_prompts: bool = False
    """Whether its denoiser can attend to images, by IP-Adapters."""
    takes_prompt_maps: bool = False
    """Whether several prompts can share a row of its denoiser, each with a weight at each cell."""
    embedding_widths: Mapping[str, int] = field(default_factory=dict[str, int])
    """Features of a token for each text encoder, in their order, under the names that textual inversions have."""
    repeatable: frozenset[str] = frozenset()
    """Tensors of an encoded prompt that grow with its chunks, and may be repeated (`Conditioning.repeatable`)."""

    @property
    def narrow_dtype(self) -> torch.dtype:
        """The 16-bit numbers that suit its networks: flow models need the range of bfloat16."""
        return torch.bfloat16 if self.prediction_type == "flow" else torch.float16


@dataclass(frozen=True)
class Reading:
    """A prompt's tokens, begin and end not counted; the model reads `most` of them, which is the text up to `end`."""

    tokens: int
    most: int
    end: int


@runtime_checkable
class TextEncoder(Protocol):
    """All text encoders of a model, loaded."""

    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        """The denoiser's inputs for a prompt: one row, on the CPU, of the checkpoint's `conditioning_specs`.

        The dialect is one of the family's, and `embeddings` has at least what the prompt names. `loras` are what is
        added to each of the text encoders, if there are any.

        None is an empty negative prompt of a family in which that is no prompt at all (`Facts.empty_negative`).
        """
        ...


@runtime_checkable
class Denoiser(Protocol):
    """A network that answers a batch of rows, each at its own level, with denoised predictions."""

    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        """The clean latents [r, c, h, w] that the network predicts.

        `adapters` are what each row has beside its prompt; they are left out where no row has anything.

        `conditioning` has the tensors of the text encoder and of `Checkpoint.size_tensors`, `GUIDANCE` if the scale
        is an input of the model, and `PLACE` if the rows show parts of a canvas.
        """
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """Between pictures and latents in model space, in both directions."""

    def encode(self, picture: RgbImage) -> Latent:
        """The latent [1, c, h, w] of a picture [H, W, 3], 8 bits: the mean of the encoder's distribution."""
        ...

    def decode(self, latent: Latent) -> Pixels:
        """Pictures [b, H, W, 3], 8 bits, from latents [b, c, h, w]. Raises ModelError if any value is not finite."""
        ...


@runtime_checkable
class Checkpoint(Protocol):
    """A model whose files were checked and whose weights are not in memory."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def files(self) -> ModelFiles:
        """All that is read of it."""
        ...

    @property
    def facts(self) -> Facts: ...

    @property
    def numbers(self) -> int:
        """Numbers in all weights."""
        ...

    @property
    def conditioning_specs(self) -> Specs:
        """Names, types and shapes [1, ...] of an encoded prompt of one chunk."""
        ...

    def chunks(self, prompt: str | None, syntax: PromptSyntax, embeddings: Embeddings) -> int:
        """In how many chunks a prompt is encoded: tensors that are `repeatable` are so many times as long."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 over everything that is read: two models with the same one draw the same pictures."""
        ...

    def size_tensors(self, sizes: SizeConditioning) -> Conditioning:
        """Sizes as the denoiser takes them beside the prompt: one row, or no tensors. They are not stored."""
        ...

    def noise_schedule(self, canvas: Canvas, steps: int) -> ModelLevels:
        """The noise levels that the model knows for pictures of this size, drawn in so many steps.

        Families of flow models shift them by one or by both.
        """
        ...

    def working_numbers(self, canvas: Canvas, rows: int) -> int:
        """Roughly how many numbers are in memory beside the weights: in a forward of so many rows, or in decoding."""
        ...

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt the model reads."""
        ...

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt, each once, that its tokenizer has to spell."""
        ...

    def open_lora(self, files: ModelFiles) -> Lora:
        """Compare a LoRA with the model. Reads no tensors. Raises ModelError for one that does not suit it."""
        ...

    def open_control(self, files: ModelFiles) -> ControlFile:
        """Compare a ControlNet or T2I-Adapter with the model, if its family takes them. Reads no tensors.

        Raises ModelError for one that does not suit it.
        """
        ...

    def open_ip_adapter(self, files: ModelFiles) -> IPAdapter:
        """Compare an IP-Adapter with the model. Reads no tensors. Raises ModelError for one that does not suit it."""
        ...

    def check_weights(self, part: Part) -> None:
        """Raise ModelError unless the files have exactly the tensors that a part needs. Reads no tensors."""
        ...

    def part_bytes(self, part: Part, placement: Placement) -> int:
        """Bytes that the weights of a part take in memory, without reading them."""
        ...

    def load_text_encoder(self, placement: Placement) -> TextEncoder:
        """Read the text encoders' weights, and no others. Raises ModelError."""
        ...

    def load_denoiser(self, placement: Placement) -> Denoiser:
        """Read the denoiser's weights, and no others. Raises ModelError."""
        ...

    def load_autoencoder(self, placement: Placement) -> Autoencoder:
        """Read the autoencoder's weights, and no others. Raises ModelError."""
        ...


@runtime_checkable
class Family(Protocol):
    """Models that are opened and loaded in one way."""

    def __call__(self, path: Path, files: ModelFiles) -> Checkpoint:
        """Check a diffusers folder of this family: its configurations, and what its weight files hold.

        Raises ModelError for a folder that is not supported.
        """
        ...
