"""MVTec-AD in miniature."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from . import photo_of, scene

DEFECT = 2
"""The label of the defect in photos that have one."""
SIZE = (64, 64)

TYPES = ("crack", "good")


def write(folder: Path, classes: Sequence[str] = ("bottle", "zipper"), photos: int = 2) -> Path:
    """The data set's folder: for each class as many photos with a defect as without."""
    root = folder / "mvtec_anomaly_detection"
    for name in names(classes, photos):
        labels = labels_of(name)
        place = root / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo_of(labels)).save(place)
        if (labels == DEFECT).any():
            truth = root / f"{name.replace('/test/', '/ground_truth/')}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((labels == DEFECT).astype(np.uint8) * 255).save(truth)
        (root / name.partition("/")[0] / "train/good").mkdir(parents=True, exist_ok=True)
    (root / "license.txt").write_text("as distributed")
    return root


def names(classes: Sequence[str] = ("bottle", "zipper"), photos: int = 2) -> list[str]:
    """`CLASS/test/TYPE/NUMBER` of all photos."""
    return [f"{name}/test/{kind}/{number:03}" for name in classes for kind in TYPES for number in range(photos)]


def labels_of(name: str) -> np.ndarray:
    """The scene of a photo: with two objects, of which the second is the defect, or with one."""
    place, _, kind, number = name.split("/")
    return scene(len(place) + int(number), SIZE, objects=2 if kind == "crack" else 1)


def box_of(labels: np.ndarray, number: int = DEFECT) -> list[int]:
    """XYXY around a label, the ends excluded."""
    rows, columns = np.nonzero(labels == number)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def proposals(photos: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of the file: the box of the defect, and a saliency that is the same everywhere."""
    arrays = {}
    for name in names() if photos is None else photos:
        labels = labels_of(name)
        boxes = [box_of(labels)] if (labels == DEFECT).any() else []
        arrays[f"{name}/boxes"] = np.array(boxes, np.float32).reshape(-1, 4)
        arrays[f"{name}/scores"] = np.full(len(boxes), 0.5, np.float32)
        arrays[f"{name}/saliency"] = np.full((8, 8), 0.25, np.float16)
    return arrays
