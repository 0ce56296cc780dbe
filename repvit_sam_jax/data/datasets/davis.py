"""DAVIS-2017: videos, and for each frame the number of the object that a pixel is of (arXiv 1704.00675)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from . import layout

WHAT = (
    "DAVIS-2017 (davischallenge.org, DAVIS-2017-trainval-480p.zip), with ImageSets/2017/val.txt, "
    "JPEGImages/480p/SEQUENCE/*.jpg and Annotations/480p/SEQUENCE/*.png"
)
VOID = 255
"""Label of pixels that are no object's for certain."""


class Davis:
    """A split of the data set at 480p."""

    def __init__(self, folder: Path, split: str = "val") -> None:
        """Find the sequences and their frames.

        Args:
          folder: the data set's, or one above its `ImageSets`.
          split: `train` or `val`.

        Raises:
          ValueError: the folder has another layout, or a sequence lacks frames or annotations.
        """
        needed = [f"ImageSets/2017/{split}.txt", "JPEGImages/480p", "Annotations/480p"]
        root = layout.find_root(folder, (".", "DAVIS", "trainval", "2017/trainval"), needed, WHAT)
        listed, frames, labels = (root / place for place in needed)
        self.names = listed.read_text().split()
        """In the order of the list."""
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"{listed} should list sequences, each once")
        for place in (frames, labels):
            if absent := [name for name in self.names if not (place / name).is_dir()]:
                raise ValueError(f"{place} lacks {len(absent)} of {len(self.names)} sequences, such as {absent[0]}")
        self._frames, self._labels = {}, {}
        for name in self.names:
            photos, truths = layout.by_stem(frames / name, ".jpg"), layout.by_stem(labels / name, ".png")
            stems = layout.paired(photos, truths, (str(frames / name), str(labels / name)))
            self._frames[name], self._labels[name] = [photos[s] for s in stems], [truths[s] for s in stems]

    def frames(self, name: str) -> list[Path]:
        """The photos of a sequence, in order."""
        return self._frames[name]

    def labels(self, name: str) -> list[Path]:
        """The files of its labels, a frame each."""
        return self._labels[name]


def read_labels(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Numbers of objects, 0 for the background; `VOID` becomes background, as in the benchmark.

    Raises:
      ValueError: the file can't be read, or has no palette, so that its numbers would be colours.
    """
    try:
        with Image.open(path) as opened:
            mode, labels = opened.mode, np.array(opened)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's of a broken PNG
        raise ValueError(f"{path} can't be read as a picture: {error}") from error
    if mode != "P":
        raise ValueError(
            f"{path} has no palette (mode {mode}, expected P), so that its values are colours and no numbers of "
            "objects; take the file as it is distributed"
        )
    return np.where(labels == VOID, 0, labels)
