"""A second family of models, as unlike Stable Diffusion as it can be: it proves what the rest of the code assumes.

Its pictures can be foretold: the denoiser's answer is one colour for each prompt, which the autoencoder shows exactly.
Number of channels, pixels of a cell and the shift of its schedule are in its model_index.json. There are two text
tensors, and an affine with a scale and a shift for each channel; how noisy a level is depends on the canvas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile
from prefect_regional_diffusion.sampling_core.models.family import (
    Canvas,
    Defaults,
    Facts,
    Part,
    Reading,
    SizeConditioning,
)
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.ip_adapter_file import IPAdapter
from prefect_regional_diffusion.sampling_core.models.latent_affine import LatentAffine
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.textual_inversion import NO_EMBEDDINGS, Embeddings
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels, flow_levels
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec

PIPELINE = "ToyFlowPipeline"
SUITS = Defaults(128, 128, 20, 1.0, "euler", "simple")


@dataclass(frozen=True)
class Toy:
    """A checked model: there is nothing to it but its index."""

    path: Path
    files: ModelFiles
    channels: int
    cell: int
    shift_per_cell: float

    @property
    def facts(self) -> Facts:
        scale = tuple(0.5 + 0.25 * channel for channel in range(self.channels))
        shift = tuple(0.1 * channel for channel in range(self.channels))
        return Facts(
            "Toy",
            self.channels,
            self.cell,
            2 * self.cell,
            LatentAffine(scale, shift),
            "flow",
            3,
            128,
            SUITS,
            size_conditioned=True,
        )

    numbers = 0

    @property
    def conditioning_specs(self) -> dict[str, TensorSpec]:
        shapes = {"pooled_prompt_embeds": (1, self.channels), "prompt_embeds": (1, 3, 2)}
        return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}

    def chunks(self, prompt: str | None, syntax: PromptSyntax, embeddings: Embeddings) -> int:
        return 1

    def size_tensors(self, sizes: SizeConditioning) -> Conditioning:
        return Conditioning({"time_ids": torch.tensor([[float(sizes.canvas.width), float(sizes.canvas.height)]])})

    def fingerprint(self) -> str:
        return self.files.digest("model_index.json").hex()

    def noise_schedule(self, canvas: Canvas, steps: int) -> ModelLevels:
        """Larger canvases are noisier, as in FLUX."""
        cells = (canvas.width // self.cell) * (canvas.height // self.cell)
        return flow_levels(1 + self.shift_per_cell * cells)

    def working_numbers(self, canvas: Canvas, rows: int) -> int:
        return canvas.width * canvas.height * rows

    def reading(self, prompt: str) -> Reading:
        words = prompt.split()
        return Reading(len(words), 3, len(" ".join(words[:3])))

    def unknown_words(self, prompt: str) -> list[str]:
        return []

    def open_lora(self, files: ModelFiles) -> Lora:
        raise files.error("is for a model that takes LoRAs")

    def open_control(self, files: ModelFiles) -> ControlFile:
        raise files.error("is for a model that takes controls")

    def open_ip_adapter(self, files: ModelFiles) -> IPAdapter:
        raise files.error("is for a model that takes image prompts")

    def check_weights(self, part: Part) -> None:
        pass

    def part_bytes(self, part: Part, placement: Placement) -> int:
        return 0

    def load_text_encoder(self, placement: Placement) -> ToyTextEncoder:
        return ToyTextEncoder(self)

    def load_denoiser(self, placement: Placement) -> ToyDenoiser:
        return ToyDenoiser()

    def load_autoencoder(self, placement: Placement) -> ToyAutoencoder:
        return ToyAutoencoder(self)


def color_of(prompt: str) -> Tensor:
    """The colour [3] that a prompt is drawn in, 8 bits."""
    return torch.tensor(list(hashlib.sha256(prompt.encode()).digest()[:3]), dtype=torch.uint8)


@dataclass(frozen=True)
class ToyTextEncoder:
    toy: Toy

    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        """`pooled_prompt_embeds` is the prompt's colour as a clean latent of one cell."""
        color = color_of(prompt or "")[None, None].expand(self.toy.cell, self.toy.cell, 3)
        clean = ToyAutoencoder(self.toy).encode(color)[:, :, 0, 0]
        return Conditioning(
            {"pooled_prompt_embeds": clean, "prompt_embeds": torch.full((1, 3, 2), float(len(prompt or "")))}
        )


class ToyDenoiser:
    def __call__(self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning) -> Tensor:
        assert conditioning["prompt_embeds"].shape == (len(x), 3, 2)
        assert conditioning["time_ids"].shape == (len(x), 2)
        return conditioning["pooled_prompt_embeds"][:, :, None, None].expand_as(x).clone()


@dataclass(frozen=True)
class ToyAutoencoder:
    """A cell's mean colour, over and over in its channels."""

    toy: Toy

    def encode(self, picture: Tensor) -> Tensor:
        means = avg_pool2d(picture.float().permute(2, 0, 1)[None] / 127.5 - 1, self.toy.cell)
        channels = [channel % 3 for channel in range(self.toy.channels)]
        return self.toy.facts.latent_affine.to_model(means[:, channels])

    def decode(self, latent: Tensor) -> Tensor:
        clean = self.toy.facts.latent_affine.to_autoencoder(latent)
        colors = clean[:, [min(channel, self.toy.channels - 1) for channel in range(3)]]
        large = colors.repeat_interleave(self.toy.cell, 2).repeat_interleave(self.toy.cell, 3)
        return ((large + 1) * 127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous()


def open_toy(path: Path, files: ModelFiles) -> Toy:
    index = files.mapping("model_index.json")
    return Toy(path, files, index["channels"], index["cell"], index["shift_per_cell"])


def toy_folder(folder: Path, channels: int = 6, cell: int = 16, shift_per_cell: float = 0.01) -> str:
    """The name of a new model folder."""
    folder.mkdir()
    told = {"_class_name": PIPELINE, "channels": channels, "cell": cell, "shift_per_cell": shift_per_cell}
    (folder / "model_index.json").write_text(json.dumps(told))
    return str(folder)
