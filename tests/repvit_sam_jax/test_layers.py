"""Single layers against PyTorch's, and the two depthwise convolutions against each other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from flax import nnx

from repvit_sam_jax import layers
from repvit_sam_jax.encoders import repvit

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2.5e-7), ("bfloat16", 2**-8), ("float16", 2**-11)])
def test_gelu_is_the_exact_one(dtype, rounding):
    """To a rounding of its input, and its slope likewise."""
    x = jnp.concatenate([jnp.linspace(-9, 9, 40001), jnp.array([0.0, -100.0, 100.0])]).astype(dtype)
    wide = np.asarray(x, np.float64)
    below = scipy.stats.norm.cdf(wide)
    allowed = rounding * np.maximum(np.abs(wide), 1)
    assert (np.abs(np.asarray(layers.gelu(x), np.float64) - wide * below) < allowed).all()
    slope = np.asarray(jax.vmap(jax.grad(layers.gelu))(x), np.float64)
    assert np.abs(slope - below - wide * scipy.stats.norm.pdf(wide)).max() < 4 * rounding


def test_normal_cdf_of_half_precision():
    """Before it is rounded; with the tanh approximation it would be 3e-4 off."""
    x = np.linspace(-9, 9, 40001, dtype=np.float32)
    assert np.abs(layers._normal_cdf(jnp.asarray(x)) - scipy.stats.norm.cdf(x)).max() < 6e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_both_depthwise_forms_equal_pytorch(rng, stride, size):
    x = rng.normal(size=(2, *size, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 5)).astype(np.float32)
    weight = torch.from_numpy(kernel.transpose(2, 0, 1)[:, None].copy())
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), weight, None, stride, 1, groups=5
    )
    expected = expected.numpy().transpose(0, 2, 3, 1)
    forms = (layers._depthwise_conv, layers._depthwise_shifts, layers.depthwise_conv3x3)
    for found in jax.jit(lambda x, kernel: [form(x, kernel, stride) for form in forms])(x, kernel):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_depthwise_gradients_agree(rng):
    x = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4)).astype(np.float32)
    weights = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    gradients = [
        jax.jit(jax.grad(lambda x, k, form=form: (form(x, k, 1) * weights).sum(), (0, 1)))(x, kernel)
        for form in (layers._depthwise_conv, layers._depthwise_shifts, layers.depthwise_conv3x3)
    ]
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients[0], other)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
def test_product_and_its_gradients(shape, rng):
    """On CPU the kernel's gradient is one product of matrices, whatever the axes of its input."""
    x, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in (shape, (5, 7)))
    loss = lambda multiply: lambda x, kernel: jnp.sin(multiply(x, kernel)).sum()
    ours = jax.jit(jax.value_and_grad(loss(layers.product), argnums=(0, 1)))
    plain = jax.value_and_grad(loss(jnp.matmul), argnums=(0, 1))(x, kernel)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours(x, kernel), plain)
    products = [line for line in ours.lower(x, kernel).as_text().splitlines() if "dot_general" in line]
    assert products
    assert all(re.search(r"contracting_dims = \[\d\] x \[\d\]", line) for line in products)
    assert layers.product(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)).dtype == jnp.float32


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


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("size", "chunk"), [((2, 8, 6), 16), ((3, 5, 5), 4096), ((2, 1, 1), 4096), ((1, 7, 7), 20)])
def test_over_pixels_equals_all_at_once(size, chunk, gated, rng, monkeypatch):
    """Chunks that do not divide an image, images smaller than a chunk, and gates of the right image."""
    monkeypatch.setattr(layers, "PIXEL_CHUNK", chunk)
    x = rng.normal(size=(*size, 4)).astype(np.float32)
    gate = rng.normal(size=(size[0], 4)).astype(np.float32) if gated else None
    weights = rng.normal(size=(4, 4)).astype(np.float32)

    def f(x, gate):
        return jnp.tanh(x if gate is None else x * gate) @ weights

    expected = f(x, None if gate is None else gate[:, None, None])
    found = layers.over_pixels(f, x, gate)
    assert found.shape == x.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sizes = [v.aval.shape for e in jax.make_jaxpr(lambda x: layers._in_chunks(f, x, gate))(x).eqns for v in e.invars]
    assert any(len(shape) == 3 and shape[0] >= min(2, size[1] * size[2]) * size[0] for shape in sizes)


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


@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (5, "bfloat16"), (16, "float32")])
def test_stem_in_strips_and_in_blocks_equals_the_whole(rows, dtype, rng, monkeypatch):
    monkeypatch.setattr(repvit, "STEM_ROWS", rows)
    stem = repvit.Stem(8, deploy=True, dtype=jnp.dtype(dtype), rngs=layers.Keys(jax.random.key(0)))
    for conv in (stem.conv1, stem.conv2):
        conv.bias.set_value(jnp.asarray(rng.normal(size=conv.bias.shape), jnp.float32))
    x = jnp.asarray(rng.normal(size=(2, 40, 24, 3)), dtype)
    plain = lambda x: stem.conv2(layers.gelu(stem.conv1(x)))
    whole, *others = jax.jit(lambda x: [form(x) for form in (plain, stem._in_strips, stem._in_blocks)])(x)
    for other in others:
        assert other.dtype == whole.dtype
        np.testing.assert_allclose(
            other.astype(jnp.float32), whole.astype(jnp.float32), atol=2e-6 if dtype == "float32" else 2e-2
        )
