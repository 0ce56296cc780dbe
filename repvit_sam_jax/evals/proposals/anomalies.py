"""Proposals for MVTec-AD: boxes that a detector took for anomalies, and how salient each place of a photo is.

They come in one `.npz` file, which `numpy.savez_compressed` writes. For each photo, `CLASS/test/TYPE/NUMBER` being its
place in the data set:

    bottle/test/broken_large/000/boxes     float32 [N, 4], XYXY in pixels of the photo; N may be 0
    bottle/test/broken_large/000/scores    float32 [N], the detector's
    bottle/test/broken_large/000/saliency  float16 or float32 [h, w] at any size, resized to the photo's

In place of `saliency` there may be `features` [C, h, w], of unit length at each place, of which
`metrics.anomaly.self_similarity` makes it (SAA+ takes three stages of a Wide ResNet-50 at 256 pixels, [1792, 64, 64],
which for all photos would be 25 GB in half precision: better store the saliency). A photo without boxes needs neither.

`suppress` and `detections` are what SAA+ does between Grounding-DINO and SAM (arXiv 2305.10724;
caoyunkang/Segment-Any-Anomaly, `SAA/model.py`), for who runs the detector.
"""

from __future__ import annotations

import dataclasses
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..metrics import anomaly

THRESHOLD = 0.1
"""What the best logit of a box must exceed, and that of a token to be in the box's phrase."""

AREA_FACTORS = {
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood", "cable", "hazelnut"), 0.9),
    **dict.fromkeys(("metal_nut", "pill", "transistor"), 1.0),
    **dict.fromkeys(("toothbrush", "zipper"), 0.5),
    **{"bottle": 0.3, "capsule": 0.6, "screw": 0.1},
}
"""Class -> the share of the object's area that a box of an anomaly must be below."""


@dataclasses.dataclass(frozen=True, eq=False)
class Proposals:
    """What is proposed for a photo."""

    boxes: Float[np.ndarray, "n 4"]
    """XYXY in pixels."""
    scores: Float[np.ndarray, "n"]
    saliency: Float[np.ndarray, "h w"]
    """At any size."""


class AnomalyFile:
    """The file; saliency is read when a photo is asked for, which several threads may do."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """Read and check boxes and scores, and that all the rest is there.

        Args:
          path: of the file.
          names: of the photos, `CLASS/test/TYPE/NUMBER`; the file may have photos of other classes besides.

        Raises:
          ValueError: there is no such file, it has another form, it lacks a photo, or has others of these classes.
        """
        self._path, self._lock = path, threading.Lock()
        if not path.is_file():
            raise ValueError(f"--proposals {path} is no file; it should be the .npz of boxes, scores and saliency")
        try:
            self._file = np.load(path)
            self._arrays = set(self._file.files)
        except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"--proposals {path} is no .npz file: {error}") from error
        self._check_names(names)
        self._boxes = {name: self._detections(name) for name in names}

    def _check_names(self, names: Sequence[str]) -> None:
        given = {array.rpartition("/")[0] for array in self._arrays}
        if absent := [name for name in names if name not in given]:
            raise ValueError(
                f"{self._path} has nothing for {len(absent)} of the {len(names)} photos, such as {absent[0]}; photos "
                "without a proposal have boxes [0, 4] and scores [0]"
            )
        classes = {name.partition("/")[0] for name in names}
        if others := sorted(name for name in given - set(names) if name.partition("/")[0] in classes):
            raise ValueError(f"{self._path} has proposals for photos that are not in the data, such as {others[0]}")

    def _detections(self, name: str) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, "n"]]:
        boxes, scores = self._read(f"{name}/boxes"), self._read(f"{name}/scores")
        where = f"{self._path}, {name}"
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
            raise ValueError(f"{where}: boxes are [N, 4] and scores [N], got {boxes.shape} and {scores.shape}")
        if not np.isfinite(boxes).all() or not np.isfinite(scores).all():
            raise ValueError(f"{where}: boxes or scores are not finite")
        if bad := [i for i, (x1, y1, x2, y2) in enumerate(boxes) if x2 < x1 or y2 < y1]:
            raise ValueError(f"{where}: box {bad[0]} is inverted, {boxes[bad[0]].tolist()}; boxes are XYXY in pixels")
        kinds = [kind for kind in ("saliency", "features") if f"{name}/{kind}" in self._arrays]
        if len(boxes) and len(kinds) != 1:
            raise ValueError(f"{where}: there should be either saliency or features, got {kinds or 'neither'}")
        return boxes.astype(np.float64), scores.astype(np.float64)

    def read(self, name: str) -> Proposals:
        """What is proposed for a photo. Raises ValueError if its saliency is invalid."""
        boxes, scores = self._boxes[name]
        if not len(boxes):
            return Proposals(boxes, scores, np.zeros((1, 1)))
        kind = "saliency" if f"{name}/saliency" in self._arrays else "features"
        with self._lock:  # also around the distances, which take memory
            values = self._read(f"{name}/{kind}")
            form = "[h, w]" if kind == "saliency" else "[C, h, w]"
            if values.ndim != (2 if kind == "saliency" else 3) or not values.size or not np.isfinite(values).all():
                raise ValueError(f"{self._path}, {name}: {kind} must be finite, {form}, got {values.shape}")
            if kind == "saliency":
                return Proposals(boxes, scores, values.astype(np.float64))
            return Proposals(boxes, scores, anomaly.self_similarity(values, values.shape[1:]))

    def _read(self, array: str) -> np.ndarray:
        try:
            values = self._file[array]
        except KeyError:
            raise ValueError(f"{self._path} lacks {array}") from None
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self._path}: {array} can't be read: {error}") from error
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{self._path}: {array} should be numbers, got {values.dtype}")
        return values


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """What Grounding-DINO answers to a caption on a photo."""

    boxes: Float[np.ndarray, "n 4"]
    """CXCYWH, as shares of the photo's width and height."""
    logits: Float[np.ndarray, "n t"]
    """Of each token of the caption, after the sigmoid; there may be more columns than tokens."""
    tokens: Sequence[str]
    """The caption's, in its tokeniser's words; the first one, which opens the caption, is in no phrase."""


def suppress(
    found: Detections, max_area: float, filter_word: str
) -> tuple[Float[np.ndarray, "k 4"], Float[np.ndarray, "k"]]:
    """Boxes that may be what is looked for, and their best logits.

    Args:
      found: the detector's boxes.
      max_area: the area must be below this, and above 0, as a share of the photo's.
      filter_word: a box whose phrase contains it is dropped.
    """
    scores, areas = found.logits.max(1), found.boxes[:, 2] * found.boxes[:, 3]
    kept = (scores > THRESHOLD) & (areas < max_area) & (areas > 0)
    kept &= np.array([filter_word not in _phrase(logits, found.tokens) for logits in found.logits], bool)
    return found.boxes[kept], scores[kept]


def detections(
    of_object: Detections, of_defects: Sequence[tuple[Detections, str]], factor: float, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "k 4"], Float[np.ndarray, "k"]]:
    """`boxes` and `scores` of a photo, as the file has them.

    Args:
      of_object: for the caption that names the object, whose largest box is the object's area.
      of_defects: for each caption of defects, with the word that a box's phrase must not contain.
      factor: the class's of `AREA_FACTORS`.
      size: (height, width) of the photo.
    """
    objects, _ = suppress(of_object, 1, "PlaceHolder")
    area = max((width * height for _, _, width, height in objects), default=1.0)
    kept = [suppress(found, area * factor, word) for found, word in of_defects]
    boxes = np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _ in kept)])
    centres, sides = boxes[:, :2], boxes[:, 2:]
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], 1) * (size[::-1] * 2)
    return corners.astype(np.float32), np.concatenate([np.zeros(0), *(scores for _, scores in kept)])


def _phrase(logits: Float[np.ndarray, "t"], tokens: Sequence[str]) -> str:
    """The tokens that a box stands for; pieces of a word (`##`) are put together."""
    words = [token for token, logit in zip(tokens[1:], logits[1:], strict=False) if logit > THRESHOLD]
    return " ".join(words).replace(" ##", "")
