"""DAVIS-2017 in miniature."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from . import COLOURS, photo_of


def write(folder: Path, sequences: Mapping[str, np.ndarray]) -> Path:
    """The data set's folder, from labels [T, h, w] by name, where 255 is void over background."""
    root = folder / "DAVIS"
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in sequences))
    for name, labels in sequences.items():
        photos, truths = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        for place in (photos, truths):
            place.mkdir(parents=True)
        for t, frame in enumerate(labels):
            photo = photo_of(np.where(frame == 255, 0, frame))
            Image.fromarray(photo).save(photos / f"{t:05}.jpg", quality=100, subsampling=0)
            write_labels(truths / f"{t:05}.png", frame)
    return root


def write_labels(path: Path, labels: np.ndarray) -> None:
    """A PNG with a palette, as all annotations are."""
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(np.resize(COLOURS, (256, 3)).tobytes())
    picture.save(path)
