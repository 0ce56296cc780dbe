"""Fusing, for every kind of block, for the whole encoder, and for a model that has been trained a little."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvit_sam_jax import Sam, split_batch_stats
from repvit_sam_jax.config import RepViTBlockConfig
from repvit_sam_jax.models.encoders.repvit import RepViTBlock
from repvit_sam_jax.models.layers import Keys
from repvit_sam_jax.weights import reparam
from tests.helpers.measures import relative_rms
from tests.helpers.models import encode, encode_train, encode_with_intermediates

BLOCKS = {
    "plain": RepViTBlockConfig(1, 16, 16, 1, use_se=False, downsample=False),
    "squeeze-excite": RepViTBlockConfig(1, 16, 16, 1, use_se=True, downsample=False),
    "downsampling": RepViTBlockConfig(1, 16, 24, 2, use_se=False, downsample=True),
    "stride-adjusted": RepViTBlockConfig(1, 16, 24, 1, use_se=False, downsample=True),
}


def randomise(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf if leaf.dtype == jnp.int32 else rng.uniform(0.3, 1.7, leaf.shape).astype(np.float32), tree
    )


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_every_kind_of_block(kind, rng):
    from flax import nnx

    common = {"dtype": jnp.dtype("float32"), "rngs": Keys(jax.random.key(0))}
    block = RepViTBlock(BLOCKS[kind], deploy=False, **common)
    trained = randomise(nnx.to_pure_dict(nnx.state(block, nnx.Param)), 1)
    stats = randomise(nnx.to_pure_dict(nnx.state(block, nnx.BatchStat)), 2)
    nnx.update(block, trained)
    nnx.update(block, stats)
    deployed = RepViTBlock(BLOCKS[kind], deploy=True, **common)
    fused = reparam.fuse({**trained, "batch_stats": stats})
    assert jax.tree.structure(fused) == jax.tree.structure(nnx.to_pure_dict(nnx.state(deployed)))
    nnx.update(deployed, fused)
    x = jnp.asarray(rng.normal(size=(2, 10, 10, 16)), jnp.float32)
    found, expected = jax.jit(lambda x: (deployed(x), block(x)))(x)
    assert relative_rms(found, expected) < 2e-6


def test_whole_encoder_per_stage(tiny_train, tiny, rng):
    images = jnp.asarray(rng.normal(size=(2, 128, 128, 3)), jnp.float32)
    _, expected = encode_with_intermediates(*tiny_train, images)
    _, found = encode_with_intermediates(*tiny, images)
    assert set(found) == set(expected)
    for name in expected:
        assert relative_rms(found[name], expected[name]) < 1e-5, name


def test_after_training(tiny_train, rng):
    """Statistics that training-mode passes have moved still fuse; parameters are random as it is."""
    model, params = tiny_train
    images = jnp.asarray(rng.normal(1.0, 2.0, size=(2, 128, 128, 3)), jnp.float32)
    trained, before = split_batch_stats(params)
    stats = before
    for _ in range(3):
        _, stats = encode_train(model, {**trained, "batch_stats": stats}, images)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before["image_encoder"], stats["image_encoder"])
    assert all(jax.tree.leaves(moved))
    params = {**trained, "batch_stats": stats}
    found = encode(Sam(model.config, "deploy"), reparam.fuse(params), images)
    assert relative_rms(found, encode(model, params, images)) < 1e-5


def test_result_has_the_deploy_form(tiny_train, tiny):
    fused = reparam.fuse(tiny_train[1])
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), fused)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tiny[0].abstract_params())


def test_input_is_left_alone(tiny_train):
    params = jax.tree.map(np.array, tiny_train[1])
    before = copy.deepcopy(params)
    reparam.fuse(params)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_folding_in_float64_is_needed():
    """A scale of 1e-4 beside a mean of 1e4: float32 arithmetic loses digits that the result has room for."""
    rng = np.random.default_rng(0)
    bn = {"scale": np.float32(rng.uniform(0.5, 1, 4)), "bias": np.float32(1e4 * rng.uniform(0.5, 1, 4))}
    stats = {"mean": np.float32(1e4 * rng.uniform(0.5, 1, 4)), "var": np.full(4, 0.7, np.float32), "count": np.int32(1)}
    kernel = rng.normal(size=(3, 4)).astype(np.float32)
    fused = reparam.fuse({"x": {"conv": {"kernel": kernel}, "bn": bn}, "batch_stats": {"x": {"bn": stats}}})["x"]
    scale = bn["scale"].astype(np.float64) / np.sqrt(stats["var"].astype(np.float64) + 1e-5)
    np.testing.assert_array_equal(fused["bias"], np.float32(bn["bias"] - stats["mean"].astype(np.float64) * scale))
    np.testing.assert_array_equal(fused["kernel"], np.float32(kernel * scale))


def _leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.pop("batch_stats"), "no batch_stats"),
        (lambda p: p["batch_stats"]["image_encoder"].pop("stem"), "stem/conv1 should hold"),
        (lambda p: _leaf(p, "batch_stats/image_encoder").update(ghost={"bn": {}}), "ghost"),
        (lambda p: p["batch_stats"].update(ghost={"bn": {}}), "ghost"),
        (lambda p: _leaf(p, "batch_stats/image_encoder/stem/conv1").update(extra={}), "stem/conv1"),
        (lambda p: _leaf(p, "image_encoder/stem/conv1/bn").pop("bias"), "conv1/bn is not a BatchNorm"),
        (lambda p: _leaf(p, "image_encoder/stem/conv1/conv").update(bias=np.zeros(4)), "kernel alone"),
        (lambda p: _leaf(p, "image_encoder/stem/conv1").update(odd=np.zeros(4)), "nothing here folds"),
        (lambda p: _leaf(p, "image_encoder/blocks/1/token_mixer/dw").pop("conv1x1"), "nothing here folds"),
        (lambda p: _leaf(p, "image_encoder/blocks/1/token_mixer/dw/conv1x1").pop("bias"), "conv1x1"),
        (lambda p: _leaf(p, "batch_stats/image_encoder/stem/conv1/bn/var").fill(-1.0), "negative or NaN"),
        (lambda p: _leaf(p, "image_encoder/stem/conv1/bn/bias").fill(np.inf), "too large for float32"),
        (lambda p: _leaf(p, "image_encoder/neck").update(bn={"scale": np.ones(3)}), "neck holds a BatchNorm"),
    ],
)
def test_leftovers_are_errors(tiny_train, spoil, message):
    params = jax.tree.map(np.array, tiny_train[1])
    spoil(params)
    with pytest.raises(reparam.ReparamError, match=message):
        reparam.fuse(params)
