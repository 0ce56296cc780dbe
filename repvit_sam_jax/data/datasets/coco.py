"""COCO (Lin et al., ECCV 2014), LVIS v1 (Gupta et al., CVPR 2019), and others' annotations in COCO's form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_masks

from ... import transforms
from ...inference import rle
from ..sources import photo_folders
from . import layout

COCO = "COCO (cocodataset.org), with annotations/instances_val2017.json and val2017/*.jpg"
LVIS = (
    "LVIS v1 (lvisdataset.org), with annotations/lvis_v1_val.json and COCO's photos val2017/*.jpg and train2017/*.jpg"
)

Annotation = Mapping[str, Any]


class Coco:
    """Photos with annotated objects. Segmentations are read only when they are asked for: there are many."""

    def __init__(self, path: Path, folders: Sequence[Path]) -> None:
        """Read annotations and find their photos.

        Args:
          path: a JSON file of COCO's form, with `images`, `annotations` and `categories`.
          folders: where the photos may be, beside the file's own places (`sources.photo_folders`); the first one that
            holds the first photo should hold all.

        Raises:
          ValueError: the file has another form, ids are no integers, unknown or there twice, or photos lack.
        """
        self.path = path
        content = layout.read_json(path, "annotations in COCO's form")
        try:
            self.categories = [dict(entry) for entry in content["categories"]]
            images = sorted(content["images"], key=lambda image: image["id"])
            annotations = content["annotations"]
            known = {
                what: self._ids(entries, what)
                for what, entries in (("categories", self.categories), ("images", images), ("annotations", annotations))
            }
            self._annotations: dict[int, list[Annotation]] = {number: [] for number in known["images"]}
            for annotation in annotations:
                if annotation["category_id"] not in known["categories"]:
                    raise ValueError(f"annotation {annotation['id']} is of a category that is not listed")
                if annotation["image_id"] not in known["images"]:
                    raise ValueError(f"annotation {annotation['id']} is of an image that is not listed")
                self._annotations[annotation["image_id"]].append(annotation)
            self.images = {_name(image): _checked(image) for image in images}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has not COCO's form: {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not images or len(self.images) < len(images):
            raise ValueError(f"{path} lists {'a photo twice' if images else 'no images'}")
        self.keys = list(self.images)
        """Photos' paths within `folder`, in the order of the images' ids, as pycocotools takes them."""
        self.folder = self._find([*folders, *photo_folders(path, content)])

    def _ids(self, entries: Sequence[Annotation], what: str) -> set[int]:
        ids = {entry["id"] for entry in entries}
        if len(ids) < len(entries) or not all(isinstance(number, int) for number in ids):
            raise ValueError(f"ids of {what} must be integers, each there once")
        return ids

    def _find(self, folders: Sequence[Path]) -> Path:
        folder = next((folder for folder in folders if (folder / self.keys[0]).is_file()), folders[0])
        if missing := [name for name in self.keys if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} lacks {len(missing)} of the {len(self.keys)} photos that {self.path} lists, such as "
                f"{missing[0]}"
            )
        return folder

    def photo(self, key: str) -> UInt8[np.ndarray, "h w 3"]:
        """A photo in RGB. Raises ValueError if its size is not the annotations'."""
        photo, image = transforms.load_image(self.folder / key), self.images[key]
        if photo.shape[:2] != (image["height"], image["width"]):
            raise ValueError(
                f"{self.folder / key} is {photo.shape[1]} x {photo.shape[0]} pixels, but {self.path} says "
                f"{image['width']} x {image['height']}"
            )
        return photo

    def annotations(self, key: str) -> list[dict[str, Any]]:
        """Objects of a photo, in the file's order, with a compressed RLE as `segmentation`.

        Where they lack, `iscrowd` is 0 (LVIS has none), `area` that of the mask, and `bbox` the box around it. Ids stay
        as they are, 0 too.

        Raises:
          ValueError: a segmentation is damaged, or of another size than the photo.
        """
        image = self.images[key]
        size, found = (image["height"], image["width"]), []
        for annotation in self._annotations[image["id"]]:
            try:
                counts = rle.read_segmentation(_drawn(annotation.get("segmentation"), size), size)
            except ValueError as error:
                raise ValueError(f"{self.path}: annotation {annotation['id']}: {error}") from error
            mask = rle.counts_to_coco(counts, size)
            measured = {"iscrowd": 0, "area": rle.area(counts), "bbox": coco_masks.toBbox(mask).tolist()}
            found.append({**measured, **annotation, "segmentation": mask})
        return found

    def truth(self, keys: Iterable[str]) -> dict[str, Any]:
        """COCO's form of annotations, of these photos only."""
        keys = list(keys)
        return {
            "images": [self.images[key] for key in keys],
            "annotations": [annotation for key in keys for annotation in self.annotations(key)],
            "categories": self.categories,
        }


def open_coco(folder: Path) -> Coco:
    """COCO's val2017, or the one JSON file of COCO's form in a folder, with photos beside it or in a folder below.

    Raises:
      ValueError: the folder holds neither, or photos lack.
    """
    needed = ["annotations/instances_val2017.json", "val2017"]
    given = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if len(given) == 1 and not (folder / needed[0]).is_file():
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return Coco(given[0], [folder, *below])
    root = layout.find_root(folder, (".",), needed, f"{COCO}, or one JSON file of its form with photos")
    return Coco(root / needed[0], [root / needed[1]])


def open_lvis(folder: Path) -> Coco:
    """LVIS' validation set, whose photos lie in COCO's val2017 and train2017. Raises ValueError as `open_coco`."""
    places = ("annotations/lvis_v1_val.json", "lvis_v1_val.json")
    file = next((place for place in places if (folder / place).is_file()), places[0])
    root = layout.find_root(folder, (".",), [file, "val2017"], LVIS)
    data = Coco(root / file, [root])
    needed = {"neg_category_ids", "not_exhaustive_category_ids"}
    if not all(needed <= set(image) for image in data.images.values()) or "frequency" not in data.categories[0]:
        raise ValueError(
            f"{data.path} is not LVIS': images have {' and '.join(sorted(needed))}, categories a frequency"
        )
    return data


def _name(image: Mapping[str, Any]) -> str:
    """A photo's path; LVIS v1 has none but in its address."""
    return str(image["file_name"]) if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])


def _checked(image: Mapping[str, Any]) -> Mapping[str, Any]:
    if not all(isinstance(image[side], int) and image[side] > 0 for side in ("height", "width")):
        raise ValueError(f"image {image['id']} has no height and width")
    return image


def _drawn(segmentation: Any, size: tuple[int, int]) -> Any:
    """A segmentation without polygons of less than three points, which enclose nothing; perhaps an empty one."""
    if not isinstance(segmentation, list):
        return segmentation
    drawn = [polygon for polygon in segmentation if not isinstance(polygon, list) or len(polygon) >= 6]
    return drawn or {"size": list(size), "counts": [size[0] * size[1]]}
