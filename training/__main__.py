"""Make the embedded model from nothing: `python -m training [--work DIR]` (about three hours on two cores)."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.autoencoder import train_autoencoder
from training.denoiser import train_denoiser
from training.export import export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training/work"), help="folder for what is being trained")
    parser.add_argument("--out", type=Path, default=Path("sampling_core/models/embedded"), help="where the model goes")
    parser.add_argument("--autoencoder-steps", type=int, default=2000)
    parser.add_argument("--shallow-steps", type=int, default=2500)
    parser.add_argument("--deep-steps", type=int, default=28500)
    options = parser.parse_args()
    train_autoencoder(options.work, options.autoencoder_steps)
    train_denoiser(options.work, 2, options.shallow_steps, cool=False)
    train_denoiser(options.work, 3, options.deep_steps, cool=True)
    export(options.work, options.out)


if __name__ == "__main__":
    main()
