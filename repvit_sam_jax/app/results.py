"""What visitors take with them: a mask as PNG, COCO's JSON, polygons, or YOLO's labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import SUFFIXES, Format
from ..inference import formats, rle
from .session import Session


class File(NamedTuple):
    """A file to save."""

    name: str
    content: bytes


def result(session: Session, form: Format) -> File:
    """The mask of the prompt, or those of everything, whichever is shown.

    Args:
      session: with a photo and masks.
      form: as `formats.content`; but a `png` of everything has the number of each pixel's annotation in 16 bits, 0 for
        none, small masks over large ones.

    Raises:
      ValueError: there is no mask.
    """
    photo, records = session.photo, session.records
    if photo is None or (records is None and session.now.answer is None):
        raise ValueError("there is no mask to save yet; click on an object, or search everything")
    stem = Path(photo.name).stem or "photo"
    if form == "png" and records is not None:
        return File(f"{stem}_mask.png", formats.png(_numbers(records, photo.size)))
    found = formats.found_in(photo.name, photo.size, [_record(session)] if records is None else records)
    name = f"{stem}_{'mask' if form == 'png' else form}{SUFFIXES[form]}"
    return File(name, formats.content(found, form))


def _record(session: Session) -> dict[str, Any]:
    now = session.now
    assert now.answer is not None
    score = now.answer.predicted_iou[now.chosen]
    return formats.answer_to(session.mask(), score, now.points, now.labels, now.box)


def _numbers(records: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    numbers = np.zeros(size, np.uint16)
    for number, record in enumerate(records, start=1):  # largest first
        numbers[rle.counts_to_mask(rle.read_segmentation(record["segmentation"], size), size)] = number
    return numbers
