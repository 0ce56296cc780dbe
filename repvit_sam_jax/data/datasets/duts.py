"""DUTS-TE: photos, and a mask of the salient object in each (Wang et al., CVPR 2017)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ... import transforms
from . import layout

WHAT = "DUTS-TE (saliencydetection.net/duts), with DUTS-TE-Image/*.jpg and DUTS-TE-Mask/*.png"


class Duts:
    """The 5019 photos of the test set, or as many as there are."""

    def __init__(self, folder: Path) -> None:
        """Find the photos and their masks.

        Args:
          folder: the data set's, or one above it.

        Raises:
          ValueError: the folder has another layout, or lacks photos or masks.
        """
        needed = ["DUTS-TE-Image", "DUTS-TE-Mask"]
        root = layout.find_root(folder, (".", "DUTS-TE"), needed, WHAT)
        photos, truths = (root / place for place in needed)
        self._photos, self._truths = layout.by_stem(photos, ".jpg"), layout.by_stem(truths, ".png")
        self.names = layout.paired(self._photos, self._truths, (str(photos), str(truths)))
        """Sorted as strings."""

    def photo(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """A photo in RGB."""
        return transforms.load_image(self._photos[name])

    def truth(self, name: str) -> UInt8[np.ndarray, "h w"]:
        """Its mask in gray, whose brightest pixel may be below 255. Raises ValueError if it can't be read."""
        return layout.read_gray(self._truths[name])
