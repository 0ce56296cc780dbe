"""MobileSAM's encoder: against PyTorch layer by layer, at other sizes, and its parts against slow plain versions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.parity import parity
from convert.synthetic import write
from repvit_sam_jax import PRESETS, Sam, split_batch_stats
from repvit_sam_jax.models.encoders import tiny_vit
from repvit_sam_jax.models.encoders.blocks import in_windows
from repvit_sam_jax.weights import reparam
from tests.helpers.measures import relative_rms
from tests.helpers.models import encode, encode_train, random_params

pytestmark = pytest.mark.torch
TINY = PRESETS["tiny_mobile_sam"]
SLOW = pytest.mark.slow(group="models")


@pytest.mark.parametrize("image_size", [160, pytest.param(128, marks=SLOW)])
def test_parity_per_stage(tmp_path, image_size):
    """Windows that are padded (16 and 8 are no multiples of 3 and 5), both strides of merging, both forms."""
    write(tmp_path / "model.pt", TINY)
    report = parity(tmp_path / "model.pt", image_size=image_size)
    intermediates = {row.name for row in report.rows}
    expected = {"stem", "layers.0.blocks.1", "layers.0.downsample", "layers.2.blocks.2", "layers.3.blocks.1"}
    assert intermediates >= expected
    assert "layers.3.downsample" not in intermediates
    assert {row.form for row in report.rows if not row.case} == {"train", "deploy"}
    assert {row.tolerance for row in report.rows} == {1e-5}
    assert report.passed, report.to_text()


def test_biases_follow_the_official_enumeration():
    """The official table is filled in the order in which offsets are first met, row by row."""
    window = 3
    points = [(y, x) for y in range(window) for x in range(window)]
    met: dict[tuple[int, int], int] = {}
    expected = [[met.setdefault((abs(a - c), abs(b - d)), len(met)) for c, d in points] for a, b in points]
    np.testing.assert_array_equal(tiny_vit._offsets(window), expected)


@pytest.mark.parametrize("size", [3, 4, 7])
def test_windows_equal_a_loop(size):
    x = np.random.default_rng(0).normal(size=(2, size, size, 4)).astype(np.float32)

    def attention(windows):  # something that mixes a window's tokens and depends on their order
        weights = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
        return windows + (windows * weights).sum((1, 2), keepdims=True)

    expected = np.zeros_like(x)
    padded = np.pad(x, ((0, 0), (0, -size % 3), (0, -size % 3), (0, 0)))
    for top in range(0, size, 3):
        for left in range(0, size, 3):
            found = attention(padded[:, top : top + 3, left : left + 3])
            room = expected[:, top : top + 3, left : left + 3]
            room[:] = found[:, : room.shape[1], : room.shape[2]]
    np.testing.assert_allclose(in_windows(attention, jnp.asarray(x), 3), expected, rtol=1e-5)


def test_training_updates_statistics_of_every_stage(rng):
    model = Sam(TINY, "train")
    params = random_params(model)
    _, new = encode_train(model, params, rng.normal(size=(1, 128, 128, 3)).astype(np.float32))
    stats = params["batch_stats"]
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    counts = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(new) if path[-1].key == "count"]
    before = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(stats) if path[-1].key == "count"]
    np.testing.assert_array_equal(np.array(counts), np.array(before) + 1)


@SLOW
def test_gradients_reach_all_that_is_used(rng):
    model = Sam(TINY, "train")
    params = random_params(model)
    trained, stats = split_batch_stats(params)
    images = rng.normal(size=(2, 128, 128, 3)).astype(np.float32)

    def loss(trained):
        embeddings, _ = model.encode_train({**trained, "batch_stats": stats}, images)
        return jnp.square(embeddings).mean() + jnp.abs(embeddings[..., :3]).mean()

    encoder = jax.jit(jax.grad(loss))(trained)["image_encoder"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(encoder["layers"]))
    assert not any(np.abs(leaf).max() for name in ("head", "norm_head") for leaf in jax.tree.leaves(encoder[name]))


def test_bfloat16(rng):
    params = reparam.fuse(random_params(Sam(TINY, "train")))
    images = jnp.asarray(rng.normal(size=(1, 128, 128, 3)), jnp.float32)
    half = encode(Sam(TINY, dtype="bfloat16"), params, images)
    assert half.dtype == jnp.float32
    assert relative_rms(half, encode(Sam(TINY), params, images)) < 5e-2
