"""Annotations as other programs write them, and what pycocotools reads of a conversion."""

from __future__ import annotations

import json

import numpy as np
from pycocotools.coco import COCO

from convert.annotations import brush
from repvit_sam_jax.inference import rle

SIZES = {"a.png": (37, 53), "sub/b.jpg": (40, 30), "none.png": (20, 25)}
"""(height, width) of photos."""
CLASSES = ["cat", "großer Hund"]
H, W = SIZES["a.png"]


def read_coco(path, capsys):
    """Photo -> (class, mask) of each annotation, by pycocotools; and those that it reads where the file says."""
    opened = COCO(path)
    capsys.readouterr()
    names = {category["id"]: category["name"] for category in opened.loadCats(opened.getCatIds())}
    found = {}
    for image in opened.loadImgs(opened.getImgIds()):
        annotations = opened.loadAnns(opened.getAnnIds(imgIds=image["id"]))
        found[image["file_name"]] = [
            (
                names[one["category_id"]],
                rle.counts_to_mask(rle.read_segmentation(opened.annToRLE(one), size_of(image)), size_of(image)),
            )
            for one in annotations
        ]
    return found


def size_of(image):
    return image["height"], image["width"]


def same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, masks in expected.items():
        assert [label for label, _ in found[name]] == [label for label, _ in masks]
        for (_, mask), (_, other) in zip(found[name], masks, strict=True):
            np.testing.assert_array_equal(mask, other)


def block(x1, y1, x2, y2):
    mask = np.zeros((H, W), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def labelme(path, shapes, **changes):
    about = {
        "version": "5.4.1",
        "flags": {},
        "imagePath": "a.png",
        "imageData": None,
        "imageHeight": H,
        "imageWidth": W,
    }
    path.write_text(json.dumps({**about, "shapes": shapes, **changes}))
    return path


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def region(kind, value, **more):
    about = {"id": "r1", "from_name": "tag", "to_name": "image", "original_width": W, "original_height": H}
    return {**about, "image_rotation": 0, "type": kind, "value": value, **more}


def studio(path, *results, data="/data/upload/1/0a1b2c3d-a.png", **task):
    annotations = [{"id": i, "was_cancelled": False, "result": result} for i, result in enumerate(results)]
    content = {"id": 12, "annotations": annotations, "predictions": [], "data": {"image": data}, **task}
    path.write_text(json.dumps([content]))
    return path


def brushed(mask, label="cat"):
    return region("brushlabels", {"format": "rle", "rle": brush.encode(mask), "brushlabels": [label]})
