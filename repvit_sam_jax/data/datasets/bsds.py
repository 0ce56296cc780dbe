"""BSDS500: photos, and the boundaries that several people drew on each (Arbelaez et al., PAMI 2011)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from ... import transforms
from . import layout

WHAT = "BSDS500 (github.com/BIDS/BSDS500), with images/SPLIT/*.jpg and groundTruth/SPLIT/*.mat"

Boundaries = Bool[np.ndarray, "h w"]


class Bsds:
    """A split of the data set."""

    def __init__(self, folder: Path, split: str = "test") -> None:
        """Find the photos and their truths.

        Args:
          folder: the data set's, or one above its `images` and `groundTruth`.
          split: `train`, `val` or `test`.

        Raises:
          ValueError: the folder has another layout, or lacks photos or truths.
        """
        needed = [f"images/{split}", f"groundTruth/{split}"]
        places = (".", "data", "BSDS500/data", "BSR/BSDS500/data")
        root = layout.find_root(folder, places, needed, WHAT)
        photos, truths = (root / place for place in needed)
        self._photos, self._truths = layout.by_stem(photos, ".jpg", ".png"), layout.by_stem(truths, ".mat")
        self.names = layout.paired(self._photos, self._truths, (str(photos), str(truths)))
        """Sorted as strings, as the benchmark sorts them."""

    def photo(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """A photo in RGB."""
        return transforms.load_image(self._photos[name])

    def truths(self, name: str) -> list[Boundaries]:
        """Boundaries, one array an annotator. Raises ValueError if the file holds none."""
        path = self._truths[name]
        content = _read_mat(path, "groundTruth")
        try:
            found = [np.asarray(cell["Boundaries"][0, 0]) > 0 for cell in content[0]]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no Boundaries of annotators") from error
        if not found:
            raise ValueError(f"{path} holds the boundaries of nobody")
        return found


def read_map(path: Path) -> Float[np.ndarray, "h w"]:
    """A detector's edge map, from 0 to 1: a picture with 8 bits, or a `.mat` file with `ucm2`, of twice the size.

    Raises:
      ValueError: it is neither.
    """
    if path.suffix.lower() == ".mat":
        return _read_mat(path, "ucm2")[2::2, 2::2].astype(np.float64)
    return layout.read_gray(path) / 255


def _read_mat(path: Path, name: str) -> Num[np.ndarray, "..."]:
    from scipy.io import loadmat

    try:
        return loadmat(path)[name]
    except Exception as error:  # its errors share no class of their own
        raise ValueError(f"{path} is no .mat file with {name} (up to version 7): {error}") from error
