"""Random surfaces of the synthetic scenes: noise between the points of a grid, cells, and means over squares."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def value_noise(rng: np.random.Generator, shape: tuple[int, int], period: float) -> Float[np.ndarray, "h w"]:
    """Random numbers on a grid, and between its points a smooth step from one to the next."""
    grid: np.ndarray = rng.random([int(side / period) + 2 for side in shape], np.float32)
    for axis, side in enumerate(shape):
        low, step = smooth_steps(np.arange(side, dtype=np.float32) / period)
        step = step.reshape((-1, 1) if axis == 0 else (1, -1))
        below, above = np.take(grid, low, axis), np.take(grid, np.minimum(low + 1, grid.shape[axis] - 1), axis)
        grid = below + (above - below) * step
    return grid


_TABLE = 64
"""Side of the table of random numbers that `noise_at` repeats."""


def noise_at(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> Float[np.ndarray, "h w"]:
    """The like at any places, one grid point a unit."""
    table = rng.random((_TABLE, _TABLE), np.float32)
    (i, a), (j, b) = smooth_steps(u), smooth_steps(v)
    i, j, below, right = i % _TABLE, j % _TABLE, (i + 1) % _TABLE, (j + 1) % _TABLE
    upper = table[i, j] + (table[i, right] - table[i, j]) * b
    lower = table[below, j] + (table[below, right] - table[below, j]) * b
    return upper + (lower - upper) * a


def fractal(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, octaves: int) -> Float[np.ndarray, "h w"]:
    """Sums of `noise_at` that are each twice as fine as the one before, and weaker; mostly within [0.2, 0.8]."""
    persistence, amplitude, total = rng.uniform(0.5, 0.85), 1.0, 0.0
    height: np.ndarray = np.zeros(u.shape, np.float32)
    for _ in range(octaves):
        height = height + np.float32(amplitude) * (noise_at(rng, u, v) - 0.5)
        total += amplitude
        # Turned by 37 degrees, so that the grids don't meet.
        u, v = 1.6 * u + 1.2 * v + 7, 1.6 * v - 1.2 * u + 3
        amplitude *= persistence
    return (0.5 + height * np.float32(1.6 / total)).astype(np.float32)


def cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> Float[np.ndarray, "h w"]:
    """A number for each cell about a jittered point of the grid, dark where two meet."""
    table = rng.random((3, _TABLE, _TABLE), np.float32)
    i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    nearest, second, value = np.full(u.shape, 9, np.float32), np.full(u.shape, 9, np.float32), np.zeros_like(u)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            a, b = (i + di) % _TABLE, (j + dj) % _TABLE
            du, dv = i + di + table[0, a, b] - u, j + dj + table[1, a, b] - v
            distance = (du * du + dv * dv).astype(np.float32)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            value = np.where(closer, table[2, a, b], value)
            nearest = np.minimum(nearest, distance)
    return value * np.clip((second - nearest) * 6, 0, 1)


def smooth_steps(position: np.ndarray) -> tuple[np.ndarray, Float[np.ndarray, "*shape"]]:
    """Whole numbers below positions, and smooth steps from there."""
    low = np.floor(position)
    step = position - low
    return low.astype(np.int32), (step * step * (3 - 2 * step)).astype(np.float32)


def smooth(values: np.ndarray, reach: int) -> Float[np.ndarray, "h w *c"]:
    """Means over squares of 2 `reach` + 1 pixels, twice; what lies outside is as the edge."""
    values = values.astype(np.float32)
    for axis in (0, 1, 0, 1):
        side = values.shape[axis]
        index = np.clip(np.arange(-reach - 1, side + reach), 0, side - 1)
        total = np.cumsum(np.take(values, index, axis), axis, dtype=np.float64)
        ends = np.arange(2 * reach + 1, side + 2 * reach + 1)
        values = ((np.take(total, ends, axis) - np.take(total, ends - 2 * reach - 1, axis)) / (2 * reach + 1)).astype(
            np.float32
        )
    return values


def shift(image: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Neighbouring pixels; at the edge, the pixel itself."""
    return np.take(image, np.clip(np.arange(image.shape[axis]) + step, 0, image.shape[axis] - 1), axis)
