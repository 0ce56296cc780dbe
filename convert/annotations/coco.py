"""COCO's JSON, and SA-1B's, one a photo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repvit_sam_jax.data.datasets.coco import Coco

from .collected import Collected, read_json, reading


def read_coco(path: Path, photos: Path | None) -> Collected:
    """A file with `images`, `annotations` and `categories`; whatever else annotations say of their mask is kept.

    Raises:
      ValueError: as `data.datasets.coco.Coco`.
    """
    data = Coco(path, [photos or path.parent])
    names = {category["id"]: str(category["name"]) for category in data.categories}
    collected = Collected(data.folder, list(names.values()))
    for key in data.keys:
        image = data.images[key]
        collected.open(key, (image["height"], image["width"]), str(path))
        for annotation in data.annotations(key):
            more = _more(annotation, ("id", "image_id"))
            where = f"{path}: annotation {annotation['id']}"
            collected.add(key, annotation["segmentation"], names[annotation["category_id"]], where, **more)
    return collected


def read_sa1b(files: Sequence[Path], photos: Path) -> Collected:
    """Files {"image": {"file_name", "width", "height"}, "annotations": records}, all masks of one category.

    Raises:
      ValueError: a file has another form.
    """
    collected = Collected(photos)
    for path in files:
        with reading(path, "SA-1B's form"):
            content = read_json(path)
            image = content["image"]
            name = image["file_name"]
            collected.open(name, (image["height"], image["width"]), str(path))
            for number, record in enumerate(content["annotations"]):
                more = _more(record, ("id",))
                collected.add(name, record["segmentation"], "object", f"{path}: annotation {number}", **more)
    return collected


def _more(annotation: dict[str, Any], without: Sequence[str]) -> dict[str, Any]:
    measured = ("segmentation", "category_id", "area", "bbox", *without)
    return {name: value for name, value in annotation.items() if name not in measured}
