"""What visitors take with them: a mask as PNG, COCO's JSON, polygons."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ..inference import rle
from ..inference.masks import box_of
from ..inference.polygons import mask_to_polygons
from .session import Session

Kind = Literal["png", "rle", "polygons"]


class File(NamedTuple):
    """A file to save."""

    name: str
    content: bytes


def result(session: Session, kind: Kind) -> File:
    """The mask of the prompt, or those of everything, whichever is shown.

    Args:
      session: with a photo and masks.
      kind: `png`, white in black, or of everything the number of each pixel's annotation in 16 bits, 0 for none, small
        masks over large ones; `rle`, a file in COCO's form with SAM's records; `polygons`, the same with polygons.

    Raises:
      ValueError: there is no mask.
    """
    photo, records = session.photo, session.records
    if photo is None or (records is None and session.now.answer is None):
        raise ValueError("there is no mask to save yet; click on an object, or search everything")
    size, stem = photo.size, Path(photo.name).stem or "photo"
    if kind == "png":
        return File(f"{stem}_mask.png", _png(session.mask() if records is None else _numbers(records, size)))
    if records is None:
        records = [_record(session)]
    if kind == "polygons":
        masks = (rle.counts_to_mask(rle.read_segmentation(r["segmentation"], size), size) for r in records)
        records = [{**r, "segmentation": mask_to_polygons(m)} for r, m in zip(records, masks, strict=True)]
    records = [
        {**r, "stability_score": _finite(r["stability_score"])} if "stability_score" in r else r for r in records
    ]
    about = {"file_name": photo.name, "width": size[1], "height": size[0]}
    text = json.dumps(rle.coco_file([{"image": about, "annotations": records}]))
    return File(f"{stem}_{kind}.json", text.encode())


def _record(session: Session) -> dict[str, Any]:
    """The prompt's mask as a record of SAM's, with the prompt."""
    mask, now = session.mask(), session.now
    assert now.answer is not None
    x0, y0, x1, y1 = box_of(mask) or (0, 0, -1, -1)
    record = {
        "segmentation": rle.counts_to_coco(rle.mask_to_counts(mask), mask.shape),
        "area": int(np.count_nonzero(mask)),
        "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
        "predicted_iou": float(now.answer.predicted_iou[now.chosen]),
        "point_coords": [list(point) for point in now.points],
        "point_labels": list(now.labels),
    }
    return record if now.box is None else {**record, "prompt_box": list(now.box)}


def _numbers(records: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    numbers = np.zeros(size, np.uint16)
    for number, record in enumerate(records, start=1):  # largest first
        numbers[rle.counts_to_mask(rle.read_segmentation(record["segmentation"], size), size)] = number
    return numbers


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _finite(value: Any) -> Any:
    """None for NaN, an empty mask's stability, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value
