"""Prompts drawn from masks inside `jax.jit`, for distillation with prompts in the loop (EdgeSAM, arXiv 2312.06660).

One key serves a whole batch. Draws are independent between prompts and the same however the arrays are sharded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from repvit_sam_jax import Prompts
from repvit_sam_jax.models.prompt_encoder import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT

BOX_NOISE_LIMIT = 20
"""Pixels of the S-frame that the noise moves a side of a box by at most.

"Standard deviation equal to 10% of the box sidelength, to a maximum of 20 pixels" (arXiv 2304.02643, appendix A) could
also be read as a limit of the deviation.
"""

_STRIDE = 4
"""Pixels of the S-frame that a pixel of a low-resolution mask covers, along each axis."""


def draw_point(
    key: PRNGKeyArray, masks: Bool[Array, "*batch h w"]
) -> tuple[Float[Array, "*batch 2"], Bool[Array, "*batch"]]:
    """A point of each mask, every one of its pixels being equally likely.

    Args:
      key: one for all masks.
      masks: low-resolution masks.

    Returns:
      (x, y) in pixels of the S-frame, the centre of the low-resolution pixel: 4 i + 1.5, for SAM counts coordinates
      from the centre of the first pixel. And whether there was a pixel to draw; (0, 0) if there was none. EdgeSAM
      takes the corner, 4 i, which lies outside the mask more often.
    """
    (row, column), found = _draw_pixel(key, masks)
    return _to_coords(row, column, found), found


def first_round(
    key: PRNGKeyArray, batch: Mapping[str, Any], *, box_probability: float = 0.5, box_noise: float = 0.0
) -> Prompts:
    """A box or a foreground point for each mask of a batch.

    Both take two points [B, K, 2, 2], so that there is one static shape: a box is its two corners, a point is followed
    by padding. A mask that is too small to have a pixel at low resolution gets its box. Where the batch's `valid` is
    False, all is padding.

    Args:
      key: one for the whole batch.
      batch: `masks` [B, K, S/4, S/4], `boxes` [B, K, 4], `valid` [B, K] and `size` [B, 2] are used.
      box_probability: of a box rather than a point.
      box_noise: deviation of the normal noise added to each coordinate of a box, as a fraction of its side. SAM's
        training has 0.1, with at most `BOX_NOISE_LIMIT` pixels (arXiv 2304.02643, appendix A); EdgeSAM's has none. What
        leaves the photo is moved back to its edge.
    """
    choice_key, point_key, noise_key = jax.random.split(key, 3)
    valid = jnp.asarray(batch["valid"])
    point, found = draw_point(point_key, jnp.asarray(batch["masks"]))
    is_box = jax.random.bernoulli(choice_key, box_probability, valid.shape) | ~found
    boxes = _jitter(noise_key, jnp.asarray(batch["boxes"]), jnp.asarray(batch["size"]), box_noise)
    point_valid = jnp.stack([valid, valid & is_box], axis=-1)
    labels = jnp.where(is_box[..., None], jnp.array([TOP_LEFT, BOTTOM_RIGHT]), jnp.array([FOREGROUND, NOT_A_POINT]))
    coords = jnp.where(
        is_box[..., None, None], boxes.reshape(*boxes.shape[:-1], 2, 2), jnp.stack([point, point], axis=-2)
    )
    return Prompts(
        jnp.where(point_valid[..., None], coords, 0.0),
        jnp.where(point_valid, labels, NOT_A_POINT).astype(jnp.int32),
        point_valid,
    )


def add_point(
    key: PRNGKeyArray, prompts: Prompts, predicted: Bool[Array, "b k h w"], target: Bool[Array, "b k h w"]
) -> Prompts:
    """The prompts and one more point each, drawn where the two masks disagree.

    The point is foreground if the target holds it, otherwise background. Where the masks agree everywhere, or the
    prompt was all padding, it is padding. Pixels beyond the photo are to be False in both masks. EdgeSAM adds no point
    where fewer than ten pixels differ.

    Raises:
      ValueError: the masks differ in shape.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted masks have shape {predicted.shape}, target masks {target.shape}")
    (row, column), found = _draw_pixel(key, predicted != target)
    inside = jax.vmap(jax.vmap(lambda mask, y, x: mask[y, x]))(target, row, column)
    valid = found & prompts.point_valid.any(-1)
    label = jnp.where(valid, jnp.where(inside, FOREGROUND, BACKGROUND), NOT_A_POINT)
    append = lambda old, new: jnp.concatenate([old, jnp.expand_dims(new, 2).astype(old.dtype)], axis=2)
    return Prompts(
        append(jnp.asarray(prompts.point_coords), _to_coords(row, column, valid)),
        append(jnp.asarray(prompts.point_labels), label),
        append(jnp.asarray(prompts.point_valid), valid),
        prompts.boxes,
        prompts.masks,
    )


def _draw_pixel(
    key: PRNGKeyArray, masks: Bool[Array, "*batch h w"]
) -> tuple[tuple[Int[Array, "*batch"], Int[Array, "*batch"]], Bool[Array, "*batch"]]:
    """(row, column) of the pixel with a random rank in row order: first its row by counts, then its column in it."""
    in_rows = jnp.cumsum(masks.sum(-1), -1)
    count = in_rows[..., -1]
    rank = jax.random.randint(key, count.shape, 0, jnp.maximum(count, 1))
    row = (in_rows <= rank[..., None]).sum(-1)
    row = jnp.where(count > 0, row, 0)
    at = row[..., None]
    before = jnp.where(row > 0, jnp.take_along_axis(in_rows, jnp.maximum(at - 1, 0), -1)[..., 0], 0)
    pixels = jnp.take_along_axis(masks, at[..., None], -2)[..., 0, :]
    column = (jnp.cumsum(pixels, -1) <= (rank - before)[..., None]).sum(-1)
    return (row, jnp.where(count > 0, column, 0)), count > 0


def _to_coords(row: Array, column: Array, found: Array) -> Float[Array, "*batch 2"]:
    centres = _STRIDE * jnp.stack([column, row], axis=-1).astype(jnp.float32) + (_STRIDE - 1) / 2
    return jnp.where(found[..., None], centres, 0.0)


def _jitter(key: PRNGKeyArray, boxes: Array, sizes: Array, noise: float) -> Float[Array, "b k 4"]:
    """Boxes with noise, within the content of (height, width), their corners still in order."""
    corners = boxes.astype(jnp.float32).reshape(*boxes.shape[:-1], 2, 2)
    sides = corners[..., 1:, :] - corners[..., :1, :]
    moves = noise * sides * jax.random.normal(key, corners.shape)
    edges = sizes[:, None, None, ::-1].astype(jnp.float32)
    moved = jnp.clip(corners + jnp.clip(moves, -BOX_NOISE_LIMIT, BOX_NOISE_LIMIT), 0, edges)
    return jnp.sort(moved, axis=-2).reshape(boxes.shape)
