"""Losses of distillation, in float32 whatever the inputs are.

Means are global: a sum over everything that counts in the whole batch by its number, so that neither the sharding nor
the composition of the shards changes a loss. Without anything that counts, losses and gradients are 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def embedding_mse(
    student: Float[Array, "b h w c"], teacher: Float[Array, "b h w c"], positions_valid: Bool[Array, "b h w"] | None
) -> Float[Array, ""]:
    """Mean squared error over positions and channels.

    Args:
      student: image embeddings.
      teacher: the teacher's.
      positions_valid: from `transforms.valid_positions`: without the padding, as EdgeSAM's (arXiv 2312.06660).
        None takes all positions, as RepViT-SAM's (2312.05760) and MobileSAM's (2306.14289). Other than EdgeSAM's, the
        mean is one over all positions of the batch, and not one over images of their own means.

    Raises:
      ValueError: the shapes differ.
    """
    student, teacher = _floats(student, teacher)
    return weighted_mean(jnp.square(student - teacher).mean(-1), positions_valid)


def mask_bce(
    logits: Float[Array, "b p m h w"],
    targets: Bool[Array, "b p m0 h w"] | Float[Array, "b p m0 h w"],
    pixels_valid: Bool[Array, "b h w"] | None = None,
) -> Float[Array, "b p m"]:
    """Binary cross-entropy of each mask, averaged over pixels.

    Args:
      logits: of the student's masks.
      targets: masks, or probabilities in [0, 1]; m0 is M, mask by mask against the teacher's as EdgeSAM distils
        (arXiv 2312.06660), or 1, all of them against the same one.
      pixels_valid: from `transforms.valid_positions` with the masks' side; pixels beyond the photo are left out.

    Raises:
      ValueError: the shapes do not fit each other.
    """
    logits, targets = _mask_floats(logits, targets)
    losses = jax.nn.softplus(logits) - logits * targets
    if pixels_valid is None:
        return losses.mean((-2, -1))
    inside = pixels_valid[:, None, None]
    return jnp.where(inside, losses, 0).sum((-2, -1)) / jnp.maximum(inside.sum((-2, -1)), 1)


def mask_dice(
    logits: Float[Array, "b p m h w"],
    targets: Bool[Array, "b p m0 h w"] | Float[Array, "b p m0 h w"],
    pixels_valid: Bool[Array, "b h w"] | None = None,
) -> Float[Array, "b p m"]:
    """Dice loss of each mask; arguments as in `mask_bce`.

    1 - (2 |X Y| + 1) / (|X| + |Y| + 1) with probabilities X and targets Y (arXiv 1606.04797; the smoothing by 1 is
    that of DETR, Mask2Former and EdgeSAM).
    """
    logits, targets = _mask_floats(logits, targets)
    probabilities = jax.nn.sigmoid(logits)
    if pixels_valid is not None:
        inside = pixels_valid[:, None, None]
        probabilities, targets = jnp.where(inside, probabilities, 0), jnp.where(inside, targets, 0)
    both = (probabilities * targets).sum((-2, -1))
    return 1 - (2 * both + 1) / (probabilities.sum((-2, -1)) + targets.sum((-2, -1)) + 1)


def weighted_mean(values: Float[Array, "*shape"], weights: Array | None) -> Float[Array, ""]:
    """The sum of values times weights of the same shape, over the sum of the weights; 0 if that is 0."""
    if weights is None:
        return values.mean()
    weights = jnp.asarray(weights, jnp.float32)
    total = weights.sum()
    return jnp.where(weights > 0, values * weights, 0).sum() / jnp.where(total > 0, total, 1)


def _floats(student: Array, teacher: Array) -> tuple[Array, Array]:
    if student.shape != teacher.shape:
        raise ValueError(f"the student's embeddings have shape {student.shape}, the teacher's {teacher.shape}")
    return jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)


def _mask_floats(logits: Array, targets: Array) -> tuple[Array, Array]:
    b, p, m, h, w = logits.shape
    if targets.shape not in ((b, p, m, h, w), (b, p, 1, h, w)):
        raise ValueError(
            f"targets must have shape {logits.shape}, or 1 in place of its {m} masks, beside such logits; "
            f"got {targets.shape}"
        )
    return jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32)
