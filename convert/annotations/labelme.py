"""labelme's JSON, one a photo.

Coordinates are those of COCO: (0, 0) is the corner of the first pixel. Polygons are filled as pycocotools fills them,
so that outlines differ by up to a pixel from labelme's own export, which draws them.
"""

from __future__ import annotations

import base64
import collections
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from repvit_sam_jax.inference import formats, rle
from repvit_sam_jax.inference.masks import box_of

from .collected import Collected, Size, ellipse, read_json, reading

VERSION = "5.4.0"
"""Of labelme, which is told that its files are of it: masks are known to it from 5.2 on."""


def read_labelme(files: Sequence[Path], photos: Path | None) -> Collected:
    """Files with `shapes`: polygons, rectangles, circles and masks; shapes of one label and `group_id` are one mask.

    Args:
      files: the JSONs.
      photos: the folder of the photos, under their paths in the files or their names; by default paths are relative to
        each file.

    Raises:
      ValueError: a file has another form.
    """
    contents = {}
    for path in files:
        with reading(path, "labelme's form"):
            content = read_json(path)
            contents[path] = content, str(content["imagePath"]).replace("\\", "/")
    if photos is None:
        places = {path: Path(os.path.abspath(path.parent / name)) for path, (_, name) in contents.items()}  # noqa: PTH100
        collected = Collected(Path(os.path.commonpath([place.parent for place in places.values()])))
        names = {path: place.relative_to(collected.photos).as_posix() for path, place in places.items()}
    else:
        collected = Collected(photos)
        names = {p: name if (photos / name).is_file() else Path(name).name for p, (_, name) in contents.items()}
    for path, (content, _) in contents.items():
        with reading(path, "labelme's form"):
            sides, name = (content.get("imageHeight"), content.get("imageWidth")), names[path]
            size = collected.open(name, None if None in sides else (int(sides[0]), int(sides[1])), str(path))
            _read_shapes(collected, name, size, content["shapes"], path)
    return collected


def _read_shapes(collected: Collected, name: str, size: Size, shapes: list[dict[str, Any]], path: Path) -> None:
    groups: dict[Any, list[tuple[str, str, Bool[np.ndarray, "h w"]]]] = collections.defaultdict(list)
    for number, shape in enumerate(shapes):
        label, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
        where = f"{path}: shape {number} ({label})"
        points = [[float(x), float(y)] for x, y in shape["points"]]
        if kind == "mask":
            mask = _pasted(shape["mask"], points, size, where)
        elif kind not in _OUTLINES:
            collected.leave_out(where, f"is a {kind}, which has no area")
            continue
        elif len(outline := _OUTLINES[kind](points)) < 3:
            collected.leave_out(where, f"is a {kind} of {len(points)} points")
            continue
        else:
            try:
                mask = rle.counts_to_mask(rle.read_segmentation([np.ravel(outline).tolist()], size), size)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        group = shape.get("group_id")
        groups[number if group is None else (label, group)].append((label, where, mask))
    for parts in groups.values():
        label, where, _ = parts[0]
        whole = np.logical_or.reduce([mask for _, _, mask in parts])
        collected.add(name, rle.mask_to_counts(whole), label, where)


def _rectangle(points: list[list[float]]) -> list[list[float]]:
    """Of opposite corners; some programs of this form write all four."""
    if len(points) != 2:
        return points if len(points) == 4 else []
    (x1, y1), (x2, y2) = points
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def _circle(points: list[list[float]]) -> list[list[float]]:
    """Of its centre and a point on it."""
    if len(points) != 2:
        return []
    radius = math.dist(*points)
    return ellipse(points[0], (radius, radius))


_OUTLINES: dict[str, Callable[[list[list[float]]], list[list[float]]]] = {
    "polygon": lambda points: points,
    "rectangle": _rectangle,
    "circle": _circle,
}


def _pasted(text: str, points: list[list[float]], size: Size, where: str) -> Bool[np.ndarray, "h w"]:
    """The mask of a picture at its place, between the first and the last of its pixels."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
            part = np.asarray(picture.convert("L")) > 0
        (x1, y1), (x2, y2) = ((round(x), round(y)) for x, y in points)
    except (ValueError, OSError, TypeError) as error:
        raise ValueError(f"{where}: its mask is damaged: {error}") from error
    if part.shape != (y2 - y1 + 1, x2 - x1 + 1) or x1 < 0 or y1 < 0 or x2 >= size[1] or y2 >= size[0]:
        raise ValueError(
            f"{where}: a mask of {part.shape[1]} x {part.shape[0]} pixels from ({x1}, {y1}) to ({x2}, {y2})"
        )
    mask = np.zeros(size, bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = part
    return mask


def write_labelme(folder: Path, collected: Collected, names: dict[str, str], out: Path) -> None:
    """A file a photo, `NAME.json`, with masks as labelme's masks, exactly.

    Args:
      folder: where to write.
      collected: photos and masks.
      names: of the files by the photos' names.
      out: where the folder will be, from which photos are found.
    """
    for name, found in collected.found.items():
        about = found["image"]
        path = out / f"{names[name]}.json"
        shapes = []
        for record, mask in zip(found["annotations"], formats.masks_of(found), strict=True):
            label = collected.categories[record["category_id"] - 1]
            shapes.append({"label": label, **_shape(mask), "group_id": None, "flags": {}, "description": ""})
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(os.path.relpath((collected.photos / name).resolve(), path.resolve().parent)).as_posix(),
            "imageData": None,
            "imageHeight": about["height"],
            "imageWidth": about["width"],
        }
        formats.write(folder / f"{names[name]}.json", json.dumps(content, indent=1).encode())


def _shape(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    x1, y1, x2, y2 = box_of(mask) or (0, 0, 0, 0)
    part = formats.png(mask[y1 : y2 + 1, x1 : x2 + 1])
    return {"shape_type": "mask", "points": [[x1, y1], [x2, y2]], "mask": base64.b64encode(part).decode()}
