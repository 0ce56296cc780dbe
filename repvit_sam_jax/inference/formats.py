"""Masks of photos as files: PNG, SA-1B's and COCO's JSON with runs or polygons, and the labels of YOLO.

What is written is `Found`, a photo and its masks in SA-1B's form: {"image": {"file_name", "width", "height"},
"annotations": records}, where a record has a `segmentation` in any of COCO's forms, and whatever else is known of the
mask. A record's `category_id` counts from 1 among the categories, and is 1 if it has none.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt16
from PIL import Image

from ..config import SUFFIXES, Format
from ..files import write_atomically
from . import rle
from .masks import box_of
from .polygons import Polygon, joined, mask_to_polygons

RECORDS = "records.json"
"""The file in COCO's form in a folder."""

Found = Mapping[str, Any]
Size = tuple[int, int]


def found_in(name: str, size: Size, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A photo of `size` (height, width) and its masks, as `Found`; NaN, which JSON lacks, becomes None."""
    about = {"file_name": name, "width": size[1], "height": size[0]}
    return {"image": about, "annotations": [{k: _finite(v) for k, v in record.items()} for record in records]}


def answer_to(
    mask: Bool[np.ndarray, "h w"],
    predicted_iou: float,
    points: Sequence[Sequence[float]],
    labels: Sequence[int],
    box: Sequence[float] | None,
) -> dict[str, Any]:
    """The record of a mask and its prompt, in pixels of the photo, with compressed runs; `bbox` is COCO's, XYWH."""
    x1, y1, x2, y2 = box_of(mask) or (0, 0, -1, -1)
    return {
        "segmentation": rle.counts_to_coco(rle.mask_to_counts(mask), mask.shape),
        "area": int(np.count_nonzero(mask)),
        "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1],
        "predicted_iou": float(predicted_iou),
        "point_coords": [list(point) for point in points],
        "point_labels": list(labels),
        **({} if box is None else {"prompt_box": list(box)}),
    }


def masks_of(found: Found) -> Iterator[Bool[np.ndarray, "h w"]]:
    """The masks of a photo. Raises ValueError as `rle.read_segmentation`."""
    size = _size(found)
    for record in found["annotations"]:
        yield rle.counts_to_mask(rle.read_segmentation(record["segmentation"], size), size)


def png(pixels: Bool[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]) -> bytes:
    """A mask as a black and white PNG; numbers as one in 16 bits."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def coco_file(
    found: Sequence[Found],
    categories: Sequence[str] = ("object",),
    *,
    photos: str | None = None,
    polygons: bool = False,
) -> dict[str, Any]:
    """What a file in COCO's form holds: photos, and their records as annotations.

    Args:
      found: each photo and its masks.
      categories: their names.
      photos: the folder of the photos, relative to the file; kept as `info.photos`, where this library looks for
        photos that are not beside the file.
      polygons: segmentations as polygons along the edges of pixels, whose union is the mask to the pixel; otherwise
        they stay as they are. An empty mask has no polygon and keeps its runs.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, of_photo in enumerate(found, start=1):
        images.append({"id": number, **of_photo["image"]})
        for record in _with_polygons(of_photo) if polygons else of_photo["annotations"]:
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append({**about, **record})
    named = [{"id": number, "name": name} for number, name in enumerate(categories, start=1)]
    info = {} if photos is None else {"info": {"photos": photos}}
    return {**info, "images": images, "annotations": annotations, "categories": named}


def yolo_labels(found: Found) -> str:
    """A line a mask, `class x1 y1 x2 y2 ...`: the class from 0, corners as shares of the photo's width and height.

    A line is one polygon, and one object to whoever reads it. So parts of a mask, cut through their holes, are joined
    along lines that are gone there and back: the area is the mask's. Six decimals keep each corner within a twentieth
    of a pixel up to 100,000 pixels a side. An empty mask has no line.
    """
    height, width = _size(found)
    lines = []
    for record, mask in zip(found["annotations"], masks_of(found), strict=True):
        if corners := joined(mask_to_polygons(mask)):
            shares = np.reshape(corners, (-1, 2)) / (width, height)
            lines.append(" ".join([str(record.get("category_id", 1) - 1), *(f"{v:.6f}" for v in shares.ravel())]))
    return "".join(f"{line}\n" for line in lines)


def content(found: Found, form: Format) -> bytes:
    """The file with the masks of one photo, all in one; of PNG the one mask."""
    if form == "png":
        (mask,) = masks_of(found)
        return png(mask)
    if form == "yolo":
        return yolo_labels(found).encode()
    return as_json(found if form == "rle" else coco_file([found], polygons=form == "polygons"))


def write_folder(
    folder: Path,
    found: Mapping[str, Found],
    form: Format,
    categories: Sequence[str] = ("object",),
    *,
    photos: str | None = None,
) -> list[str]:
    """Write the masks of photos into a folder that is there.

    - `png`: `masks/NAME/mask_0000.png` and so on, white in black;
    - `rle`: `rle/NAME.json`, SA-1B's file of a photo;
    - `coco`, `polygons`: `records.json`, see `coco_file`;
    - `yolo`: `labels/NAME.txt`, see `yolo_labels`, and `data.yaml` with the classes. Programs that read it expect the
      photos in `images/`.

    Args:
      folder: where to.
      found: photos by the names of their files, without a suffix.
      form: one of these.
      categories: names of the categories.
      photos: as `coco_file`.

    Returns:
      What was written, files or folders, relative to the folder.
    """
    if form in ("coco", "polygons"):
        write(
            folder / RECORDS,
            as_json(coco_file(list(found.values()), categories, photos=photos, polygons=form != "coco")),
        )
        return [RECORDS]
    if form == "yolo":
        write(folder / "data.yaml", f"train: images\nval: images\nnames: {json.dumps(list(categories))}\n".encode())
    inner = {"png": "masks", "rle": "rle", "yolo": "labels"}[form]
    (folder / inner).mkdir(exist_ok=True)
    for name, of_photo in found.items():
        if form == "png":
            for number, mask in enumerate(masks_of(of_photo)):
                write(folder / inner / name / f"mask_{number:04d}.png", png(mask))
        else:
            write(folder / inner / f"{name}{SUFFIXES[form]}", content(of_photo, form))
    return [inner, "data.yaml"] if form == "yolo" else [inner]


def _with_polygons(found: Found) -> Iterator[dict[str, Any]]:
    for record, mask in zip(found["annotations"], masks_of(found), strict=True):
        polygons: list[Polygon] = mask_to_polygons(mask)
        yield {**record, "segmentation": polygons or record["segmentation"]}


def _size(found: Found) -> Size:
    return found["image"]["height"], found["image"]["width"]


def _finite(value: Any) -> Any:
    """None for NaN, an empty mask's stability."""
    return None if isinstance(value, float) and math.isnan(value) else value


def as_json(tree: Any) -> bytes:
    """A file of JSON. Raises ValueError for NaN, which it lacks."""
    return json.dumps(tree, indent=1, allow_nan=False).encode()


def relative(photos: Path, folder: Path) -> str:
    """The folder of photos as seen from another, with slashes."""
    try:
        return Path(os.path.relpath(photos.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return photos.resolve().as_posix()


def write(path: Path, data: bytes) -> None:
    """Write a file, all or nothing."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
