"""Label Studio's JSON, with brushes, polygons and ellipses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from repvit_sam_jax.inference import formats, rle

from . import brush
from .collected import Collected, Size, ellipse, photo_size, read_json, reading

LABELS = "labels"
"""Types of regions end with it, such as `brushlabels`; the value has the classes under that name."""
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
"""What Label Studio calls an uploaded file."""


def read_labelstudio(path: Path, photos: Path) -> Collected:
    """An export of the form `JSON`, of one picture a task. Of several people's annotations the last ones count; tasks
    that were not annotated yet, as `write_labelstudio` makes them, have their predictions.

    A photo is looked for under the path that the task has, its last part, and that without what Label Studio puts
    before the names of uploaded files.

    Raises:
      ValueError: the file has another form, or a region is of a turned picture.
    """
    collected = Collected(photos)
    with reading(path, "Label Studio's form"):
        for task in read_json(path):
            where = f"{path}: task {task.get('id', len(collected.found))}"
            given = task.get("annotations", task.get("predictions"))
            if given is None:
                raise ValueError(f"{where} has no annotations; export it as JSON, not as JSON-MIN")
            kept = [one for one in given if not one.get("was_cancelled")]
            if len(kept) > 1:
                collected.leave_out(where, f"has annotations of {len(kept)} times, of which the last are taken")
            regions = [region for region in kept[-1]["result"] if "original_width" in region] if kept else []
            sizes = {(int(region["original_height"]), int(region["original_width"])) for region in regions}
            if len(sizes) > 1:
                raise ValueError(f"{where} has regions of pictures of different sizes")
            name = _photo(task, photos)
            known = (photos / name).is_file()
            size = collected.open(name, next(iter(sizes), photo_size(photos / name) if known else None), where)
            for region in regions:
                _read_region(collected, name, size, region, f"{where}, region {region.get('id')}")
    return collected


def _photo(task: dict[str, Any], photos: Path) -> str:
    """The name of a task's photo, under which it is there; if it is not, its last part."""
    data = task["data"]
    given = data.get("image") or next(value for value in data.values() if isinstance(value, str) and "." in value)
    address = urlsplit(given)
    whole = PurePosixPath(parse_qs(address.query).get("d", [unquote(address.path)])[0].lstrip("/"))
    last = task.get("file_upload") or whole.name
    uploaded = _UPLOAD.fullmatch(last)
    for name in (whole.as_posix(), whole.name, last, *([uploaded[1]] if uploaded else [])):
        if (photos / name).is_file():
            return name
    return uploaded[1] if uploaded else whole.name


def _read_region(collected: Collected, name: str, size: Size, region: dict[str, Any], where: str) -> None:
    value, kind = region["value"], region["type"]
    if region.get("image_rotation"):
        raise ValueError(f"{where}: the picture is turned by {region['image_rotation']} degrees; turn the file itself")
    labels: Sequence[str] = value.get(kind) or value.get("labels") or ["object"]
    if len(labels) > 1:
        collected.leave_out(where, f"has several classes, of which {labels[0]} is taken: {', '.join(labels)}")
    shape, label = kind.removesuffix(LABELS), str(labels[0])
    across, down = size[1] / 100, size[0] / 100
    if shape == "brush" and value.get("format") == "rle":
        try:
            mask = brush.decode(value["rle"], size)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        collected.add(name, rle.mask_to_counts(mask), label, where)
    elif shape == "polygon":
        collected.polygon(name, [[x * across, y * down] for x, y in value["points"]], label, where)
    elif shape == "ellipse":
        center, radii = (value["x"] * across, value["y"] * down), (value["radiusX"] * across, value["radiusY"] * down)
        collected.polygon(name, ellipse(center, radii, value.get("rotation", 0)), label, where)
    else:
        collected.leave_out(where, f"is a {shape}, which has no mask")


def write_labelstudio(path: Path, collected: Collected, prefix: str = "/data/local-files/?d=") -> None:
    """Tasks with the masks as predictions, brush strokes that can be corrected.

    Args:
      path: the JSON file.
      collected: photos and masks.
      prefix: what goes before a photo's name; the usual one is that of files on the server's own disk.
    """
    tasks = []
    for name, found in collected.found.items():
        about = found["image"]
        result = []
        for number, (record, mask) in enumerate(zip(found["annotations"], formats.masks_of(found), strict=True)):
            value = {"format": "rle", "rle": brush.encode(mask)}
            label = collected.categories[record["category_id"] - 1]
            result.append(
                {
                    "id": f"mask{number:06d}",
                    "type": f"brush{LABELS}",
                    "from_name": "tag",
                    "to_name": "image",
                    "original_width": about["width"],
                    "original_height": about["height"],
                    "image_rotation": 0,
                    "value": {**value, f"brush{LABELS}": [label]},
                }
            )
        predictions = [{"model_version": "repvit_sam_jax", "result": result}]
        tasks.append({"data": {"image": f"{prefix}{name}"}, "predictions": predictions})
    formats.write(path, json.dumps(tasks).encode())
