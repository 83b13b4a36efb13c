"""Tensor types. Axis names are spelled here only.

Axes: `b` pictures, `c` latent channels, `h w` latent cells, `r` network rows, `H W` pixels of the canvas,
`photo_H photo_W` pixels of a file, `window_h window_w` latent cells of a part of the canvas.
"""

from __future__ import annotations

from jaxtyping import Float, UInt8
from torch import Tensor

Latent = Float[Tensor, "b c h w"]
"""A latent in model space (the autoencoder's, shifted and scaled)."""

WindowLatent = Float[Tensor, "b c window_h window_w"]
"""A part of a latent."""

LatentMask = Float[Tensor, "b 1 h w"]
"""A mask for each picture, the same for all channels of its latent."""

Mask = Float[Tensor, "h w"]
"""A mask or weight on the latent lattice, 0 to 1."""

PixelMask = Float[Tensor, "H W"]
"""A mask in pixels, 0 to 1; 1 is inside the region."""

AnyMask = Float[Tensor, "... mask_H mask_W"]
"""One mask [H, W] or several, in pixels or latent cells, as the original nodes take them."""

LatticeMask = Float[Tensor, "... lattice_h lattice_w"]
"""The same, at the size of the latent."""

MaskStack = Float[Tensor, "masks 1 stack_H stack_W"]
"""Several masks with a channel axis."""

ResizedMasks = Float[Tensor, "masks 1 resized_H resized_W"]
"""The same masks at another size."""

Rows = Float[Tensor, "r c h w"]
"""A batch of network inputs or outputs."""

Pixels = UInt8[Tensor, "b H W 3"]
"""Finished pictures, 8-bit RGB."""

RgbImage = UInt8[Tensor, "photo_H photo_W 3"]
"""One picture that came in, 8-bit RGB: a mask image or a colour map."""
