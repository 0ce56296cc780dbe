"""What every form is read into: photos by name, their masks as runs, names of categories, and what was left out."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repvit_sam_jax.inference import formats, rle
from repvit_sam_jax.terminal import counted

Size = tuple[int, int]
"""(height, width) in pixels."""
_ORIENTATION = 0x0112
DAMAGE = (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, ValueError)
"""What files of another form raise."""


class Collected:
    """Photos and masks as they are read."""

    def __init__(self, photos: Path, categories: Sequence[str] = ()) -> None:
        """Args: `photos` is the folder that names of photos are relative to; categories, if they are known before."""
        self.photos, self.categories = photos, list(categories)
        self.found: dict[str, dict[str, Any]] = {}
        """By the photo's name, as `formats.Found`."""
        self.left_out: list[str] = []
        """A line each."""
        self._missing: list[str] = []

    def open(self, name: str, size: Size | None, where: str) -> Size:
        """Begin a photo.

        Args:
          name: with slashes.
          size: what the annotations say it has; the photo's own if they say nothing.
          where: the annotations, for messages.

        Returns:
          its size.

        Raises:
          ValueError: the photo is there twice, is none, or has another size.
        """
        if name in self.found:
            raise ValueError(f"{where}: the photo {name} has annotations already")
        path = self.photos / name
        own = photo_size(path) if path.is_file() else None
        if own is None:
            self._missing.append(name)
            if size is None:
                self.check()
        elif size is not None and own != size:
            raise ValueError(f"{where} is of {size[1]} x {size[0]} pixels, and {path} has {own[1]} x {own[0]}")
        known = size or own or (0, 0)
        self.found[name] = formats.found_in(name, known, [])
        return known

    def add(self, name: str, segmentation: Any, category: str, where: str, **more: Any) -> None:
        """A mask of a photo that is open, in any of COCO's forms, or as `rle.Counts`; without a pixel it is left out.

        Raises:
          ValueError: the segmentation is damaged or of another size.
        """
        about = self.found[name]["image"]
        size = about["height"], about["width"]
        try:
            counts = segmentation if isinstance(segmentation, np.ndarray) else rle.read_segmentation(segmentation, size)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not rle.area(counts):
            self.leave_out(where, "has no pixel within the photo")
            return
        x1, y1, x2, y2 = rle.box(counts, size[0])
        measured = {"area": rle.area(counts), "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1]}
        record = {"segmentation": rle.counts_to_coco(counts, size), "category_id": self._number(category)}
        self.found[name]["annotations"].append({**measured, **more, **record})

    def polygon(self, name: str, points: Sequence[Sequence[float]], category: str, where: str) -> None:
        """A polygon of (x, y) in pixels, filled as COCO fills it; of less than three points it is left out."""
        if len(points) < 3:
            self.leave_out(where, f"is a polygon of {len(points)} points")
        else:
            self.add(name, [[float(value) for point in points for value in _pair(point, where)]], category, where)

    def leave_out(self, where: str, why: str) -> None:
        """Note what has no mask."""
        self.left_out.append(f"{where} {why}")

    def check(self) -> None:
        """Raises FileNotFoundError if photos lack, ValueError if there are none."""
        if self._missing:
            raise FileNotFoundError(
                f"{self.photos} lacks {counted(len(self._missing), 'photo')}, first {self._missing[0]}; "
                "give their folder with --photos"
            )
        if not self.found:
            raise ValueError("there are annotations of no photo")

    def _number(self, category: str) -> int:
        if category not in self.categories:
            self.categories.append(category)
        return self.categories.index(category) + 1


def ellipse(center: Sequence[float], radii: tuple[float, float], degrees: float = 0) -> list[list[float]]:
    """An ellipse as a polygon whose corners are a pixel apart."""
    turns = np.linspace(0, 2 * math.pi, max(8, math.ceil(2 * math.pi * max(radii))), endpoint=False)
    x, y = radii[0] * np.cos(turns), radii[1] * np.sin(turns)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.stack([center[0] + x * cos - y * sin, center[1] + x * sin + y * cos], axis=1).tolist()


def photo_size(path: Path) -> Size:
    """(height, width) of a photo as it is shown, from its header. Raises ValueError if it is none."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            return (width, height) if picture.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not an image that Pillow can read") from error


def read_json(path: Path) -> Any:
    """The content of a file. Raises ValueError if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raises ValueError, naming the file and what it was read as, for whatever another form raises."""
    try:
        yield
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(text if str(path) in text else f"{path}, read as {what}: {text}") from error


def _pair(point: Sequence[float], where: str) -> Sequence[float]:
    if len(point) != 2:
        raise ValueError(f"{where}: a point is [x, y], got {point}")
    return point
