"""Stage 1: the autoencoder, factor 8 and 4 channels, trained on collages."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.canvases import collage, whole


def new_autoencoder() -> AutoencoderKL:
    """A small AutoencoderKL with random weights."""
    return AutoencoderKL(
        block_out_channels=(16, 24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


def pictures(rng: np.random.Generator, count: int, size: int) -> torch.Tensor:
    """Random canvases as [count, 3, size, size] in [-1, 1]; mostly collages, because edges are what is hard."""
    canvases = [(whole if rng.random() < 0.25 else collage)(rng, size, size).picture for _ in range(count)]
    return torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2) * 2 - 1


def train_autoencoder(folder: Path, steps: int, batch: int = 8, seed: int = 1) -> None:
    """Train for `steps` steps and save a diffusers folder with `scaling_factor` measured."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    start = time.monotonic()
    for step in range(steps):
        x = pictures(rng, batch, 96).to(memory_format=torch.channels_last)
        posterior = model.encode(x).latent_dist
        z = posterior.mean
        # A sampler never lands exactly on an encoded latent, so the decoder learns to forgive a little.
        noisy = z + 0.06 * z.detach().std() * torch.randn_like(z)
        error = (model.decode(noisy).sample - x).abs()
        # A plain latent prior: centred, unit scale. The sampled KL term is not needed for that.
        prior = z.mean(dim=(0, 2, 3)).square().mean() + (z.std() - 1).square()
        loss = error.mean() + 2.0 * error.square().mean() + 0.01 * prior
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            rate = (step + 1) / (time.monotonic() - start)
            print(f"autoencoder {step}/{steps} error {error.mean().item():.4f} {rate:.2f} steps/s", flush=True)
    with torch.no_grad():
        z = model.encode(pictures(rng, 64, 128)).latent_dist.mean
    model.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    model.eval().to(memory_format=torch.contiguous_format).save_pretrained(folder / "vae")
