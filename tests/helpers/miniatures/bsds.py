"""BSDS500 in miniature."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from skimage.morphology import thin

from . import photo_of, scene

SIZE = (192, 256)


def write(folder: Path, photos: int = 3) -> Path:
    """The data set's folder: scenes, each with the boundaries of two annotators, who agree."""
    for number in range(photos):
        labels = scene(number, SIZE, objects=4)
        places = [folder / "BSDS500/data" / kind / "test" for kind in ("images", "groundTruth")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo_of(labels)).save(places[0] / f"{10 * number + 8}.jpg", quality=100, subsampling=0)
        savemat(places[1] / f"{10 * number + 8}.mat", {"groundTruth": _annotators(boundaries(labels), 2)})
    (places[0] / "Thumbs.db").write_bytes(b"as distributed")
    return folder / "BSDS500"


def boundaries(labels: np.ndarray) -> np.ndarray:
    """Pixels that differ from that to the right or below, thin as people draw them."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    found[:-1] |= labels[1:] != labels[:-1]
    return thin(found)


def _annotators(drawn: np.ndarray, count: int) -> np.ndarray:
    """As MATLAB nests them."""
    cells = np.empty((1, count), object)
    for i in range(count):
        cells[0, i] = {"Segmentation": np.zeros(drawn.shape, np.uint16), "Boundaries": drawn.astype(np.uint8)}
    return cells
