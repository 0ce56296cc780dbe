"""Surfaces cut out of photos, for things in synthetic scenes: rock, leaves or water as a camera sees them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from repvit_sam_jax.photos import list_photos
from repvit_sam_jax.transforms import load_image

LONGEST = 1920
"""Longer side of the largest of a photo's sizes, in pixels; what is larger is reduced to it."""

SIZES = 3
"""Of each photo, every one half of the one before."""


@functools.cache
def read_surfaces(folder: Path) -> tuple[Surface, ...]:
    """The photos of a folder, in order of their names.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it contains no photo, or one that is smaller than `LONGEST`.
    """
    files = list_photos(folder)
    if not files:
        raise ValueError(f"{folder} contains no photos")
    return tuple(Surface(load_image(file), file.name) for file in files)


class Surface:
    """A photo in several sizes."""

    def __init__(self, photo: UInt8[np.ndarray, "h w 3"], name: str = "the photo") -> None:
        height, width = photo.shape[:2]
        if max(height, width) < LONGEST:
            raise ValueError(f"{name} is {width} x {height} pixels; surfaces need {LONGEST} on the longer side")
        self.name = name
        self.sizes: Sequence[np.ndarray] = []
        for i in range(SIZES):
            scale = LONGEST / max(height, width) / 2**i
            size = round(width * scale), round(height * scale)
            self.sizes.append(np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX)))

    def cut(self, rng: np.random.Generator, shape: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
        """A random window at a random size, in [0, 1], sometimes mirrored or turned, its colours changed a little.

        It is a third of the photo at most, if it can, to show surfaces more than things that have no masks; a window
        that is larger than the photo shows it mirrored, too.
        """
        fitting = sum(3 * max(shape) <= max(size.shape) for size in self.sizes)
        photo = self.sizes[rng.integers(max(fitting, 1))]
        if rng.random() < 0.3:
            photo = photo.swapaxes(0, 1)
        index = []
        for side, available in zip(shape, photo.shape, strict=False):
            start = int(rng.integers(0, max(available - side, 0) + 1))
            there = (start + np.arange(side)) % (2 * available)
            there = np.minimum(there, 2 * available - 1 - there)
            index.append(there[::-1] if rng.random() < 0.5 else there)
        colours = photo[index[0][:, None], index[1][None]].astype(np.float32) / 255
        grey = colours.mean(-1, keepdims=True)
        colours = grey + np.float32(rng.uniform(0.3, 1.3)) * (colours - grey)
        if rng.random() < 0.3:
            colours = colours[..., rng.permutation(3)]
        gain = rng.uniform(0.6, 1.25) * rng.uniform(0.85, 1.15, 3)
        return np.clip(colours * gain.astype(np.float32), 0, 1)
