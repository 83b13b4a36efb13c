"""Stage 2: text encoder and UNet, trained together on latents of whole scenes and collages."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.canvases import collage, whole
from training.scenes import CELL, vocabulary
from training.words import MAX_TOKENS, new_tokenizer

WIDTH = 96
# Canvas sizes (rows, columns; latent cells) and how often a step draws each.
BUCKETS = {
    (16, 16): 0.40,
    (16, 24): 0.12,
    (24, 16): 0.12,
    (24, 24): 0.14,
    (16, 32): 0.06,
    (32, 16): 0.06,
    (32, 32): 0.10,
}
CELLS_PER_BATCH = 16 * 16 * 16


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(levels: int) -> UNet2DConditionModel:
    """A UNet with 2 or 3 resolutions; attention to the prompt on all but the first."""
    below = levels - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, *[WIDTH] * below),
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * below),
        up_block_types=(*["CrossAttnUpBlock2D"] * below, "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def deepen(shallow: dict[str, torch.Tensor], deep: UNet2DConditionModel) -> None:
    """Put a trained 2-level UNet into a 3-level one; only the new, coarsest level starts from random weights.

    Two levels learn colours and textures, but their shapes are blobs; the third sees the whole shape.
    """
    weights = deep.state_dict()
    for name, value in shallow.items():
        part, index, *rest = name.split(".")
        # The decoder's blocks count from the coarsest one, so there they move up by one.
        moved = ".".join([part, str(int(index) + 1), *rest]) if part == "up_blocks" else name
        weights[moved] = value
    deep.load_state_dict(weights)


def new_schedule() -> DDPMScheduler:
    """Stable Diffusion's 1000 levels; v-prediction, because its error weighs colours at high noise."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
    )


@dataclass
class Pool:
    """Encoded canvases of one size, refreshed while they are trained on, so that nothing is learnt by heart."""

    rows: int
    columns: int
    latents: list[torch.Tensor] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)

    def add(self, vae: AutoencoderKL, rng: np.random.Generator, count: int, capacity: int) -> None:
        """Draw and encode `count` canvases; over `capacity` they replace random old ones."""
        make = [whole if rng.random() < 0.45 else collage for _ in range(count)]
        canvases = [draw(rng, self.rows * CELL, self.columns * CELL) for draw in make]
        pictures = torch.from_numpy(np.stack([c.picture for c in canvases])).permute(0, 3, 1, 2) * 2 - 1
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
        for latent, canvas in zip(latents, canvases, strict=True):
            weight = torch.from_numpy(canvas.weight)
            if len(self.latents) < capacity:
                self.latents.append(latent)
                self.weights.append(weight)
                self.captions.append(canvas.caption)
            else:
                index = int(rng.integers(capacity))
                self.latents[index], self.weights[index], self.captions[index] = latent, weight, canvas.caption

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Latents [B, 4, rows, columns], weights of their cells [B, 1, rows, columns], captions."""
        count = max(4, CELLS_PER_BATCH // (self.rows * self.columns))
        picks = rng.integers(len(self.latents), size=count)
        weights = torch.stack([self.weights[i] for i in picks])[:, None]
        captions = [loosen(self.captions[i], rng) for i in picks]
        # Only whole scenes may go without a caption: an unconditional collage has no meaning.
        for row, i in enumerate(picks):
            if bool(self.weights[i].all()) and rng.random() < 0.2:
                captions[row] = ""
        return torch.stack([self.latents[i] for i in picks]), weights, captions


def loosen(caption: str, rng: np.random.Generator) -> str:
    """Now and then the same scene in fewer words, as people write prompts."""
    if rng.random() < 0.8:
        return caption
    words = [w for w in caption.split() if w != "a" and not (w in {"plain", "background"} and rng.random() < 0.5)]
    return " ".join(words)


def train_denoiser(
    folder: Path, levels: int, steps: int, *, cool: bool, seed: int = 2, resume: bool = False, peak: float = 1e-3
) -> None:
    """Train a UNet of 2 or 3 levels for `steps` steps; saves averaged weights every 500.

    3 levels start from the 2-level UNet in `folder`, or with `resume` from their own last step. With `cool`,
    the learning rate falls from `peak` over the last quarter of all steps.
    """
    torch.manual_seed(seed + levels)
    rng = np.random.default_rng(seed + levels)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    tokenizer = new_tokenizer(vocabulary(), folder / "tokenizer")
    schedule = new_schedule()
    schedule.save_pretrained(folder / "scheduler")
    model = nn.ModuleDict({"text_encoder": new_text_encoder(tokenizer), "unet": new_unet(levels)})
    first = 0
    if resume or levels == 3:
        saved = load_file(folder / f"training-{levels if resume else 2}.safetensors")
        step = int(saved.pop("step"))
        if resume:
            first = step
            model.load_state_dict(saved)
        else:
            parts = {
                part: {k.removeprefix(f"{part}."): v for k, v in saved.items() if k.startswith(part)} for part in model
            }
            model["text_encoder"].load_state_dict(parts["text_encoder"])
            deepen(parts["unet"], model["unet"])
    model.to(memory_format=torch.channels_last)
    average = deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=1e-3, betas=(0.9, 0.99))
    cooling = steps // 4 if cool else 1
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 200, max(0.02, (steps - first - i) / cooling))
    )
    pools = [Pool(*size) for size in BUCKETS]
    odds = np.array(list(BUCKETS.values()))
    for pool, share in zip(pools, odds, strict=True):
        pool.add(vae, rng, max(48, int(640 * share)), 6000)
    start, recent = time.monotonic(), []
    for step in range(first, steps):
        pool = pools[rng.choice(len(pools), p=odds)]
        pool.add(vae, rng, max(1, 512 // (pool.rows * pool.columns)), 6000)
        latents, weights, captions = pool.batch(rng)
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        noise = torch.randn_like(latents)
        # Colours and shapes are decided at high noise; the rest is soon learnt.
        t = torch.where(torch.rand(len(latents)) < 0.75, torch.randint(350, 1000, (len(latents),)), 0)
        t = torch.where(t > 0, t, torch.randint(0, 1000, (len(latents),)))
        words = model["text_encoder"](tokens.input_ids).last_hidden_state
        answer = model["unet"](schedule.add_noise(latents, noise, t), t, words).sample
        error = (answer - schedule.get_velocity(latents, noise, t)).square().mean(dim=1, keepdim=True)
        loss = (error * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        decay = min(0.999, (step - first + 1) / (step - first + 10))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            speed = (step + 1 - first) / (time.monotonic() - start)
            print(f"denoiser {step + 1}/{steps} loss {np.mean(recent[-500:]):.4f} {speed:.2f} steps/s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save(folder, average, model, levels, step + 1)


def save(folder: Path, average: nn.ModuleDict, model: nn.ModuleDict, levels: int, step: int) -> None:
    """The averaged networks as diffusers folders, and the raw weights to go on from."""
    still = deepcopy(average).to(memory_format=torch.contiguous_format)
    still["text_encoder"].save_pretrained(folder / "text_encoder")
    still["unet"].save_pretrained(folder / "unet")
    raw = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(raw | {"step": torch.tensor(step)}, folder / f"training-{levels}.safetensors")
