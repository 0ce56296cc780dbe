"""The stem in strips and in blocks, against two convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvit_sam_jax.ops import stem
from repvit_sam_jax.ops.activations import gelu
from repvit_sam_jax.ops.convolutions import conv3x3


@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (5, "bfloat16"), (16, "float32")])
def test_stem_in_strips_and_in_blocks_equals_the_whole(rows, dtype, rng, monkeypatch):
    monkeypatch.setattr(stem, "ROWS", rows)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernels = [((2 / 9 / c) ** 0.5 * draw(3, 3, b, c)).astype(dtype) for b, c in ((3, 4), (4, 8))]
    biases = [draw(4), draw(8)]

    def plain(x, kernel1, kernel2, bias1, bias2):
        middle = gelu((conv3x3(x, kernel1, 2).astype(jnp.float32) + bias1).astype(dtype))
        return (conv3x3(middle, kernel2, 2).astype(jnp.float32) + bias2).astype(dtype)

    forms = (plain, functools.partial(stem._in_strips, dtype=jnp.dtype(dtype)), stem._in_blocks, stem.stem)
    x = draw(2, 40, 24, 3).astype(dtype)
    whole, *others = jax.jit(lambda x: [form(x, *kernels, *biases) for form in forms])(x)
    for other in others:
        assert other.dtype == whole.dtype
        np.testing.assert_allclose(
            other.astype(jnp.float32), whole.astype(jnp.float32), atol=2e-6 if dtype == "float32" else 2e-2
        )
