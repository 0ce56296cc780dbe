"""Single layers against PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from repvit_sam_jax.models import layers

pytestmark = pytest.mark.torch


def test_batch_norm_follows_pytorch_through_training_and_evaluation(rng):
    """Statistics with a mean a thousand deviations from zero: one-pass variances fail here."""
    ours = layers.BatchNorm(6, dtype=jnp.dtype("float32"))
    theirs = torch.nn.BatchNorm2d(6)
    for _ in range(3):
        x = (100 + 0.1 * rng.normal(size=(4, 5, 5, 6))).astype(np.float32)
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours(jnp.asarray(x), train=True), expected, atol=5e-3)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-5)
    assert int(ours.count[...]) == int(theirs.num_batches_tracked) == 3
    theirs.eval()
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, atol=1e-4)


def test_batch_norm_refuses_a_single_value():
    with pytest.raises(ValueError, match="more than one value"):
        layers.BatchNorm(2, dtype=jnp.dtype("float32"))(jnp.ones((1, 1, 1, 2)), train=True)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_layer_norm_equals_pytorch(rng, epsilon):
    x = (50 + 0.01 * rng.normal(size=(4, 32))).astype(np.float32)
    norm = layers.LayerNorm(32, epsilon=epsilon, dtype=jnp.dtype("float32"), rngs=layers.Keys(jax.random.key(0)))
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (32,), eps=epsilon).numpy()
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=2e-3)


def test_norms_of_the_neck_equal_pytorch(rng):
    """Of values so small that the epsilon is as large as their variance."""
    neck = layers.Neck(4, 8, dtype=jnp.dtype("float32"), rngs=layers.Keys(jax.random.key(0)))
    x = (1e-3 * rng.normal(size=(2, 3, 3, 8))).astype(np.float32)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (8,), eps=1e-6)
    for norm in (neck.norm1, neck.norm2):
        np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-5)


def test_squeeze_width_is_that_of_the_official_blocks():
    """Pairs of (channels, hidden) from the official state dicts."""
    known = {40: 8, 48: 16, 56: 16, 64: 16, 80: 24, 96: 24, 112: 32, 128: 32, 160: 40, 320: 80, 448: 112, 640: 160}
    assert {channels: layers.squeeze_width(channels) for channels in known} == known


def test_keys_differ_and_repeat():
    keys = layers.Keys(jax.random.key(1))
    first, second = keys.params(), keys.params()
    assert not jnp.array_equal(jax.random.key_data(first), jax.random.key_data(second))
    again = layers.Keys(jax.random.key(1)).params()
    assert jnp.array_equal(jax.random.key_data(first), jax.random.key_data(again))


@pytest.mark.parametrize(
    ("shape", "variance", "reference"),
    [
        ((3, 3, 8, 12), 2 / (9 * 12), nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")),
        ((7, 5), 1 / 7, nnx.initializers.lecun_normal()),
        ((3, 3, 64, 128), 2 / (9 * 128), nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")),
    ],
)
def test_first_weights(shape, variance, reference):
    """Those of Flax's initializers, to the last bit, if both are optimized, which `make test` leaves out elsewhere."""
    optimized = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    found = optimized(lambda key: layers.scaled_normal(key, shape, variance))(jax.random.key(3))
    expected = optimized(lambda key: reference(key, shape, jnp.float32))(jax.random.key(3))
    np.testing.assert_array_equal(found, expected)
