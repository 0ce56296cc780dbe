"""Chunks against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvit_sam_jax.ops import chunks


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("size", "chunk"), [((2, 8, 6), 16), ((3, 5, 5), 4096), ((2, 1, 1), 4096), ((1, 7, 7), 20)])
def test_over_pixels_equals_all_at_once(size, chunk, gated, rng, monkeypatch):
    """Chunks that do not divide an image, images smaller than a chunk, and gates of the right image."""
    monkeypatch.setattr(chunks, "PIXEL_CHUNK", chunk)
    x = rng.normal(size=(*size, 4)).astype(np.float32)
    gate = rng.normal(size=(size[0], 4)).astype(np.float32) if gated else None
    weights = rng.normal(size=(4, 4)).astype(np.float32)

    def f(x, gate):
        return jnp.tanh(x if gate is None else x * gate) @ weights

    expected = f(x, None if gate is None else gate[:, None, None])
    found = chunks.over_pixels(f, x, gate)
    assert found.shape == x.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sizes = [
        v.aval.shape for e in jax.make_jaxpr(lambda x: chunks.pixels_in_chunks(f, x, gate))(x).eqns for v in e.invars
    ]
    assert any(len(shape) == 3 and shape[0] >= min(2, size[1] * size[2]) * size[0] for shape in sizes)
