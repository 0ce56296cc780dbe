"""Prompts from masks: distributions by counting, labels, padding, static shapes, independence of the sharding."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from repvit_sam_jax import Prompts
from tests.helpers.processes import EIGHT_DEVICES, run_python
from tests.helpers.training import make_batch
from train.prompts import BOX_NOISE_LIMIT, add_point, draw_point, first_round

draw = jax.jit(draw_point)
first = jax.jit(first_round, static_argnames=("box_probability", "box_noise"))
add = jax.jit(add_point)
KEY = jax.random.key(0)


def pixels(xy):
    """Row and column of the low-resolution pixels whose centres these are."""
    at = (np.asarray(xy) - 1.5) / 4
    np.testing.assert_array_equal(at, at.round())
    return at[..., 1].astype(int), at[..., 0].astype(int)


def test_points_are_uniform_and_independent(rng):
    mask = np.zeros((6, 7), bool)
    mask[[0, 0, 2, 2, 2, 5], [0, 6, 1, 2, 6, 6]] = True
    xy, found = draw(KEY, np.broadcast_to(mask, (30, 1000, 6, 7)))
    assert found.all()
    row, column = pixels(xy)
    assert mask[row, column].all()
    numbers = np.searchsorted(np.flatnonzero(mask), row * 7 + column)
    assert stats.chisquare(np.bincount(numbers.ravel(), minlength=6)).pvalue > 1e-3
    # Neighbours along both axes: the pairs are uniform too.
    for a, b in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert stats.chisquare(np.bincount((6 * a + b).ravel(), minlength=36)).pvalue > 1e-3


def test_every_pixel_can_be_drawn_and_no_other():
    """Masks of a single pixel each, and one that holds nothing."""
    masks = np.concatenate([np.eye(35, dtype=bool).reshape(35, 5, 7), np.zeros((1, 5, 7), bool)])
    xy, found = draw(KEY, masks)
    np.testing.assert_array_equal(found, [True] * 35 + [False])
    row, column = pixels(xy[:-1])
    np.testing.assert_array_equal(7 * row + column, np.arange(35))
    np.testing.assert_array_equal(xy[-1], [0, 0])
    full = np.ones((2000, 2, 2), bool)
    assert len(np.unique(draw(KEY, full)[0], axis=0)) == 4


def test_keys_matter_and_jit_does_not(rng):
    masks = rng.random((50, 8, 8)) < 0.5
    xy, found = draw_point(KEY, masks)
    chex.assert_trees_all_equal(draw(KEY, masks), (xy, found))
    assert (xy.dtype, found.dtype) == (jnp.float32, bool)
    assert np.any(draw(jax.random.key(1), masks)[0] != xy)
    one_by_one = jax.vmap(draw_point)(jax.random.split(KEY, 50), masks)
    row, column = pixels(one_by_one[0])
    assert masks[np.arange(50), row, column].all()


def test_first_round(rng):
    batch = make_batch(rng, b=40, k=16)
    prompts = first(KEY, batch)
    coords, labels, valid = jax.tree.map(np.asarray, (prompts.point_coords, prompts.point_labels, prompts.point_valid))
    assert (coords.shape, labels.shape, valid.shape) == ((40, 16, 2, 2), (40, 16, 2), (40, 16, 2))
    assert (coords.dtype, labels.dtype, valid.dtype) == (np.float32, np.int32, bool)
    is_box = valid[..., 1]
    is_point = valid[..., 0] & ~is_box
    np.testing.assert_array_equal(is_box | is_point, batch["valid"])
    assert stats.binomtest(int(is_box.sum()), int(batch["valid"].sum())).pvalue > 1e-3
    np.testing.assert_array_equal(np.unique(labels[is_box], axis=0), [[2, 3]])
    np.testing.assert_array_equal(np.unique(labels[is_point], axis=0), [[1, -1]])
    np.testing.assert_array_equal(coords[is_box].reshape(-1, 4), batch["boxes"][is_box])
    row, column = pixels(coords[is_point][:, 0])
    assert batch["masks"][is_point][np.arange(is_point.sum()), row, column].all()
    assert not coords[~valid].any()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_boxes_only_and_points_only(rng, probability):
    batch = make_batch(rng)
    batch["masks"][0, 0] = False  # too small to have a pixel: a box in any case
    valid = np.array(first(KEY, batch, box_probability=probability).point_valid)
    np.testing.assert_array_equal(valid[..., 0], batch["valid"])
    expected = batch["valid"] * probability
    expected[0, 0] = True
    np.testing.assert_array_equal(valid[..., 1], expected)


def test_box_noise(rng):
    """Deviations of a tenth of the side, up to the limit and within the photo, each coordinate by itself."""
    batch = make_batch(rng, b=1, k=4000)
    batch["size"][:] = 1000, 2000
    batch["valid"][:] = True
    batch["boxes"][:] = 400, 500, 500, 800  # sides of 100 and 300: the limit is 2 and 2/3 deviations away
    noisy = functools.partial(first, box_probability=1.0, box_noise=0.1)
    moves = np.asarray(noisy(KEY, batch).point_coords).reshape(-1, 4) - [400, 500, 500, 800]
    for column, deviation in enumerate((10, 30, 10, 30)):
        limit = BOX_NOISE_LIMIT / deviation
        assert np.abs(moves[:, column]).max() == BOX_NOISE_LIMIT
        clipped = np.clip(np.random.default_rng(1).normal(size=20000), -limit, limit)
        assert stats.ks_2samp(moves[:, column] / deviation, clipped).pvalue > 1e-3
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.06
    batch["boxes"][:] = 0, 0, 2000, 1000
    moved = np.asarray(noisy(KEY, batch).point_coords).reshape(-1, 4)
    assert ((moved >= 0) & (moved <= [2000, 1000, 2000, 1000])).all()
    batch["boxes"][:] = 50, 50, 51, 51
    moved = np.asarray(first(KEY, batch, box_probability=1.0, box_noise=2.0).point_coords)
    assert (moved[:, :, 0] <= moved[:, :, 1]).all()


def test_add_point(rng):
    batch = make_batch(rng)
    prompts = first(KEY, batch)
    target = batch["masks"]
    predicted = target ^ (rng.random(target.shape) < 0.02)
    predicted[0, 0] = target[0, 0]  # nothing to correct
    predicted[0, 1, 3, 3] = True  # not a valid prompt
    longer = add(KEY, prompts, predicted, target)
    assert longer.point_coords.shape == (4, 5, 3, 2)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[:, :, :2], longer), prompts)
    chex.assert_trees_all_equal_dtypes(longer, prompts)
    expected = batch["valid"].copy()
    expected[0, 0] = False
    valid = np.asarray(longer.point_valid[:, :, 2])
    np.testing.assert_array_equal(valid, expected)
    assert not np.any(longer.point_coords[:, :, 2][~valid])
    np.testing.assert_array_equal(np.asarray(longer.point_labels[:, :, 2])[~valid], -1)
    row, column = pixels(longer.point_coords[:, :, 2][valid])
    at = (np.arange(valid.sum()), row, column)
    assert (predicted[valid] != target[valid])[at].all()
    labels = np.asarray(longer.point_labels[:, :, 2])[valid]
    np.testing.assert_array_equal(labels, target[valid][at])
    assert set(labels) == {0, 1}
    with pytest.raises(ValueError, match=r"predicted masks have shape \(4, 5, 32, 16\), target masks \(4, 5, 32, 32\)"):
        add_point(KEY, prompts, predicted[..., ::2], target)


def test_added_points_are_uniform_over_the_errors():
    target = np.zeros((1, 20000, 3, 3), bool)
    target[..., 0, :] = True
    predicted = target.copy()
    predicted[..., 0, 0], predicted[..., 2, :] = False, True  # one pixel is lacking, three are too many
    some = Prompts(
        np.zeros((1, 20000, 1, 2), np.float32), np.ones((1, 20000, 1), np.int32), np.ones((1, 20000, 1), bool)
    )
    longer = add(KEY, some, predicted, target)
    row, column = pixels(longer.point_coords[0, :, 1])
    counts = np.bincount(3 * row + column, minlength=9)
    np.testing.assert_array_equal(counts > 0, (predicted != target)[0, 0].ravel())
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-3
    np.testing.assert_array_equal(longer.point_labels[0, :, 1], row == 0)


def test_the_decoder_takes_them(tiny, rng):
    """Padding prompts give finite masks; padding behind a point changes none."""
    model, params = tiny
    batch = make_batch(rng, b=1)
    embeddings = rng.normal(size=(1, 8, 8, 32)).astype(np.float32)
    decode = jax.jit(model.decode)
    prompts = first(KEY, batch, box_noise=0.1)
    masks, scores = decode(params, embeddings, prompts)
    chex.assert_tree_all_finite((masks, scores))
    longer = add(KEY, prompts, batch["masks"], batch["masks"])  # they agree: all of it is padding
    np.testing.assert_allclose(decode(params, embeddings, longer)[0], masks, atol=1e-5)


def test_draws_do_not_depend_on_the_sharding():
    """Eight simulated devices; the losses, which are global means, come along."""
    program = """
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from repvit_sam_jax.transforms import valid_positions
        from tests.helpers.training import make_batch
        from train import losses, prompts

        assert jax.device_count() == 8
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        rng = np.random.default_rng(0)
        batch = make_batch(rng, b=16)
        batch["size"][::3] = 60, 128
        embeddings = rng.normal(size=(2, 16, 8, 8, 4)).astype(np.float32)

        def run(batch, student, teacher):
            first = prompts.first_round(jax.random.key(3), batch, box_noise=0.1)
            second = prompts.add_point(jax.random.key(4), first, ~batch["masks"], batch["masks"])
            valid = valid_positions(batch["size"], 8, 128)
            logits = 2.0 * batch["masks"][:, :, None] - 1.5
            dice = losses.mask_dice(logits, batch["masks"][:, ::-1, None])
            dice = losses.weighted_mean(dice, batch["valid"][:, :, None])
            return (first, second), (losses.embedding_mse(student, teacher, valid), dice)

        expected = jax.jit(run)(batch, *embeddings)
        found = jax.jit(run, in_shardings=NamedSharding(mesh, P("data")))(batch, *embeddings)
        jax.block_until_ready(found)
        assert found[0][0].point_coords.sharding.spec[0] == "data"
        jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
        print("equal")
    """
    assert run_python(program, EIGHT_DEVICES) == ["equal"]
