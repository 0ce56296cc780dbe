"""Intersection over union of masks, and its mean by the size of the objects."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

COCO_SIZES = (32**2, 96**2)
"""Areas, in pixels of the photo, from which on COCO calls an object medium and large."""

SIZES = ("small", "medium", "large")


def iou(a: Bool[Any, "*batch h w"], b: Bool[Any, "*batch h w"]) -> Float[Any, "*batch"]:
    """Intersection over union of boolean masks, float32; leading axes broadcast.

    Two empty masks have an IoU of 0, as in pycocotools. NumPy arrays give NumPy arrays, JAX arrays may be traced.

    Raises:
      ValueError: an array is not boolean, or the masks differ in height or width.
    """
    for name, mask in (("a", a), ("b", b)):
        if mask.dtype != bool:
            raise ValueError(f"{name} must be boolean masks, got {mask.dtype}; threshold the logits first")
    if a.shape[-2:] != b.shape[-2:]:
        raise ValueError(f"masks of {a.shape[-2:]} and {b.shape[-2:]} pixels can't be compared; resize one of them")
    xp = jnp if isinstance(a, jax.Array) or isinstance(b, jax.Array) else np
    intersection = (a & b).sum((-2, -1)).astype(np.float32)
    return intersection / xp.maximum((a | b).sum((-2, -1)), 1).astype(np.float32)


def mean_by_size(
    values: Float[np.ndarray, "n"], areas: Float[np.ndarray, "n"], bounds: tuple[float, float] = COCO_SIZES
) -> dict[str, Any]:
    """Means over all objects, the small, the medium and the large ones.

    Args:
      values: of what is averaged, such as IoUs.
      areas: of the objects, in pixels of the photo.
      bounds: areas at which medium and large objects begin.

    Returns:
      `all`, `small`, `medium` and `large`, None where there is no such object, and `count`, a dict of the same keys.
    """
    values, sizes = np.asarray(values, np.float64), np.digitize(areas, bounds)
    classes = {"all": values} | {name: values[sizes == i] for i, name in enumerate(SIZES)}
    means: dict[str, Any] = {name: float(chosen.mean()) if len(chosen) else None for name, chosen in classes.items()}
    return {**means, "count": {name: len(chosen) for name, chosen in classes.items()}}
