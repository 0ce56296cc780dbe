"""GELU against the normal distribution of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from repvit_sam_jax.ops import activations


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2.5e-7), ("bfloat16", 2**-8), ("float16", 2**-11)])
def test_gelu_is_the_exact_one(dtype, rounding):
    """To a rounding of its input, and its slope likewise."""
    x = jnp.concatenate([jnp.linspace(-9, 9, 40001), jnp.array([0.0, -100.0, 100.0])]).astype(dtype)
    wide = np.asarray(x, np.float64)
    below = scipy.stats.norm.cdf(wide)
    allowed = rounding * np.maximum(np.abs(wide), 1)
    assert (np.abs(np.asarray(activations.gelu(x), np.float64) - wide * below) < allowed).all()
    slope = np.asarray(jax.vmap(jax.grad(activations.gelu))(x), np.float64)
    assert np.abs(slope - below - wide * scipy.stats.norm.pdf(wide)).max() < 4 * rounding


def test_normal_cdf_of_half_precision():
    """Before it is rounded; with the tanh approximation it would be 3e-4 off."""
    x = np.linspace(-9, 9, 40001, dtype=np.float32)
    assert np.abs(activations._normal_cdf(jnp.asarray(x)) - scipy.stats.norm.cdf(x)).max() < 6e-5
