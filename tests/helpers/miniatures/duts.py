"""DUTS-TE in miniature."""

from pathlib import Path

import numpy as np
from PIL import Image

from . import photo_of, scene

SALIENT = 2
"""The label of the salient object of every scene."""


def write(folder: Path, photos: int = 3) -> Path:
    """The data set's folder: scenes, in each of which the second object is salient."""
    root = folder / "DUTS-TE"
    for kind in ("Image", "Mask"):
        (root / f"DUTS-TE-{kind}").mkdir(parents=True)
    for number in range(photos):
        labels, name = scene(number), f"ILSVRC2012_test_0000000{number}"
        Image.fromarray(photo_of(labels)).save(root / f"DUTS-TE-Image/{name}.jpg", quality=100, subsampling=0)
        write_truth(root, number, (labels == SALIENT).astype(np.uint8) * 255)
    (root / "DUTS-TE-Image/Thumbs.db").write_bytes(b"as distributed")
    return root


def write_truth(root: Path, number: int, gray: np.ndarray) -> None:
    """A photo's mask in another form."""
    Image.fromarray(gray).save(root / f"DUTS-TE-Mask/ILSVRC2012_test_0000000{number}.png")
