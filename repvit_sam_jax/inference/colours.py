"""Colours for masks that stay apart, also for readers who do not see all colours."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, UInt8

FIRST = (30, 144, 255)
"""SAM's blue, the colour of a mask that is alone."""

_VISIONS = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
"""Linear RGB as it is seen usually, and without red, green and blue cones (Machado et al., TVCG 2009)."""

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""From linear RGB to OKLab, whose distances are as differences look (bottosson.github.io/posts/oklab)."""


def palette(count: int) -> UInt8[np.ndarray, "n 3"]:
    """RGB colours; the first ones are the same whatever their number, and lie farthest apart.

    Each one is the colour that differs most from those before, for the kind of colour vision that tells it least. From
    `MOST` on they repeat.
    """
    return _palette()[np.arange(count) % MOST]


MOST = 128


@functools.cache
def _palette() -> UInt8[np.ndarray, "n 3"]:
    steps = np.arange(0, 256, 15)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    seen = as_seen(candidates)
    lightness, chroma = seen[0, :, 0], np.hypot(seen[0, :, 1], seen[0, :, 2])
    usable = (lightness > 0.45) & (lightness < 0.93) & (chroma > 0.07)  # neither black on dark photos, nor gray
    candidates, seen = candidates[usable], seen[:, usable]
    chosen = [np.array(FIRST)]
    nearest = _distance(seen, as_seen(chosen[0][None]))
    while len(chosen) < MOST:
        best = int(nearest.argmax())
        chosen.append(candidates[best])
        nearest = np.minimum(nearest, _distance(seen, seen[:, best : best + 1]))
    return np.array(chosen, np.uint8)


def as_seen(colours: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "4 n 3"]:
    """RGB colours in OKLab for usual vision, protanopia, deuteranopia and tritanopia."""
    shares = np.asarray(colours) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("vij,nj->vni", _VISIONS, linear), 0, 1)
    return np.cbrt(seen @ _TO_CONES.T) @ _TO_LAB.T


def _distance(a: Float[np.ndarray, "4 n 3"], b: Float[np.ndarray, "4 1 3"]) -> Float[np.ndarray, "n"]:
    """For the vision that tells least."""
    return np.linalg.norm(a - b, axis=-1).min(0)
