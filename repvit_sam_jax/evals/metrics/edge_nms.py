"""Thin edge maps: non-maximum suppression across edges, as Structured Edge Detection has it (arXiv 1406.5549)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import ndimage

SMOOTHING = 4
"""Radius, in pixels, of the triangle filter before the orientation is taken."""
MULTIPLIER = 1.01
"""How much an edge counts more than its neighbours, so that a plateau stays."""
BORDER = 5
"""Pixels along the photo's border in which edges fade."""

EdgeMap = Float[np.ndarray, "h w"]
"""Strength of edges, from 0 to 1."""


def orientation(edges: EdgeMap) -> Float[np.ndarray, "h w"]:
    """The direction across the edge, in radians from 0 to pi, x to the right and y down; float32."""
    weights = np.concatenate([np.arange(1, SMOOTHING + 2), np.arange(SMOOTHING, 0, -1)]) / (SMOOTHING + 1.0) ** 2
    smooth = edges.astype(np.float32)
    for axis in (0, 1):
        smooth = ndimage.convolve1d(smooth, weights, axis, mode="reflect")
    dy, dx = np.gradient(smooth)
    dxx = np.gradient(dx, axis=1)
    dyy, dxy = np.gradient(dy)
    return np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + np.float32(1e-5))), np.float32(np.pi))


def suppress(edges: EdgeMap, angles: Float[np.ndarray, "h w"] | None = None, radius: int = 1) -> EdgeMap:
    """The map with 0 wherever it is stronger nearby, across the edge; it fades towards the photo's border.

    Args:
      edges: the map.
      angles: as `orientation` gives them, which is called if there are none.
      radius: of what is nearby, in pixels.
    """
    edges = edges.astype(np.float32)
    angles = orientation(edges) if angles is None else angles
    rows, columns = np.indices(edges.shape, np.float32)
    stays = np.ones(edges.shape, bool)
    for distance in (*range(-radius, 0), *range(1, radius + 1)):
        neighbour = _interpolate(edges, rows + distance * np.sin(angles), columns + distance * np.cos(angles))
        stays &= edges * np.float32(MULTIPLIER) >= neighbour
    thin = np.where(stays, edges, 0)
    for axis, side in enumerate(edges.shape):
        nearest = np.minimum(np.arange(side), np.arange(side)[::-1])
        fade = np.minimum(nearest / BORDER, 1).astype(np.float32)
        thin = thin * np.expand_dims(fade, 1 - axis)
    return thin


def _interpolate(
    values: EdgeMap, rows: Float[np.ndarray, "h w"], columns: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Bilinear; what lies outside is moved to just within the last row or column."""
    height, width = values.shape
    rows, columns = np.clip(rows, 0, height - 1.001), np.clip(columns, 0, width - 1.001)
    top, left = rows.astype(int), columns.astype(int)
    down, right = rows - top, columns - left
    above = values[top, left] * (1 - right) + values[top, left + 1] * right
    below = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return above * (1 - down) + below * down
