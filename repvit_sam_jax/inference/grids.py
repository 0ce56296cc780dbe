"""Grids of points that the mask generator asks about, and numbers among its arguments, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from .masks import point_grid


def read_number(name: str, value: Any, least: float = 0) -> float:
    """A real number of at least so much. Raises ValueError, which names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not value >= least:
        raise ValueError(f"{name} must be at least {least:g}, got {value}")
    return value  # type: ignore[return-value]


def read_count(name: str, value: Any, least: int = 0) -> int:
    """An integer of at least so much, also as a whole float. Raises ValueError, which names the argument."""
    if not math.isfinite(read_number(name, value, least)) or value != int(value):
        raise ValueError(f"{name} must be an integer, got {value}")
    return int(value)


def read_grids(
    points_per_side: Any, given: Sequence[np.ndarray] | None, num_layers: int, downscale_factor: float
) -> list[Float[np.ndarray, "n 2"]]:
    """A grid for the photo and for each layer of crops; ValueError if one is invalid."""
    if (points_per_side is None) == (given is None):
        raise ValueError(
            "give either points_per_side or point_grids, with points_per_side=None; got "
            + ("neither" if given is None else "both")
        )
    if given is None:
        both = points_per_side if isinstance(points_per_side, tuple | list) else (points_per_side,) * 2
        if len(both) != 2:
            raise ValueError(f"points_per_side must be a number, or (along the width, along the height), got {both}")
        whole = [read_count("points_per_side", side) for side in both]
        sides = [[int(side / downscale_factor**layer) for side in whole] for layer in range(num_layers + 1)]
        if empty := [layer for layer, side in enumerate(sides) if min(side) < 1]:
            raise ValueError(
                f"points_per_side={points_per_side} leaves no points in layer {empty[0]}; use more, or a smaller "
                "crop_n_points_downscale_factor"
            )
        return [point_grid(*side) for side in sides]
    if len(given) <= num_layers:
        raise ValueError(
            f"point_grids has {len(given)} grids; crop_n_layers={num_layers} needs {num_layers + 1}, one for the whole "
            "image and one for each layer"
        )
    grids = [np.asarray(grid, np.float64) for grid in given[: num_layers + 1]]
    for layer, grid in enumerate(grids):
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise ValueError(f"point_grids[{layer}] must have shape [N, 2] with at least one point, got {grid.shape}")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError(f"point_grids[{layer}] must lie in [0, 1], as fractions of the image's width and height")
    return grids
