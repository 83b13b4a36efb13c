"""Bilinear resizing: what torch has, up to the last bit of float32."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from prefect_regional_diffusion.sampling_core.tensors.resizing import bilinear

SIZE = st.integers(1, 40)


@given(old=st.tuples(SIZE, SIZE), new=st.tuples(SIZE, SIZE), seed=st.integers(0, 99))
def test_it_is_what_torch_has(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    masks = torch.rand(2, 1, *old, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(bilinear(masks, *new), interpolate(masks, new, mode="bilinear"), atol=1e-5, rtol=0)


@given(old=st.tuples(SIZE, SIZE), new=st.tuples(SIZE, SIZE), value=st.sampled_from([0.0, 0.5, 1.0]))
def test_what_is_even_stays_so_to_the_bit(old: tuple[int, int], new: tuple[int, int], value: float) -> None:
    """Torch misses 1 by a bit here and there, and such a cell would get no noise."""
    assert bool((bilinear(torch.full((1, 1, *old), value), *new) == value).all())
