"""COCO, LVIS and Segmentation in the Wild in miniature."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from repvit_sam_jax.inference import rle

from . import photo_of, scene

IDS = (724, 139, 285)
"""Of the images, in the file's order."""
CATEGORIES = ({"id": 1, "name": "ellipse"}, {"id": 18, "name": "box"}, {"id": 90, "name": "nowhere"})
CROWD = (slice(0, 6), slice(0, 8))
"""Rows and columns of a crowd region, in the background of the first photo."""


def labels_of(number):
    """Those of the image with this id: object 1 and 3 are ellipses, 2 is a box."""
    return scene(IDS.index(number))


def masks_of(number):
    """Object's masks."""
    return [labels_of(number) == n for n in (1, 2, 3)]


def annotations():
    """Polygons for the objects, and runs for the crowd, as COCO has them; ids begin at 900."""
    found = []
    for number in IDS:
        for kind, mask in zip((1, 18, 1), masks_of(number), strict=True):
            found.append(annotation(len(found) + 900, number, kind, mask, polygons(mask)))
    region = np.zeros((48, 64), bool)
    region[CROWD] = True
    runs = {"size": [48, 64], "counts": [0, *([6, 42] * 8)[:-1], 42 + 56 * 48]}
    return [*found, annotation(len(found) + 900, IDS[0], 1, region, runs) | {"iscrowd": 1}]


def annotation(number, image, category, mask, segmentation):
    """As COCO has it, but for the area, which is exact."""
    about = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
    return {**about, "segmentation": segmentation, "area": int(mask.sum()), "bbox": box_of(mask)}


def polygons(mask):
    """Rectangles, a run of a row each."""
    found = []
    for y, row in enumerate(mask):
        ends = np.flatnonzero(np.diff(row, prepend=False, append=False))
        for a, b in ends.reshape(-1, 2).tolist():
            found.append([a, y, a, y + 1, b, y + 1, b, y])
    assert (rle.counts_to_mask(rle.read_segmentation(found, mask.shape), mask.shape) == mask).all()
    return found


def box_of(mask):
    """[x, y, w, h]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def content():
    """The annotations' file."""
    images = [{"id": n, "file_name": f"{n:012}.jpg", "height": 48, "width": 64} for n in IDS]
    return {"images": images, "annotations": annotations(), "categories": list(CATEGORIES)}


def boxes():
    """A detector's, exact, with scores that fall; crowds are not found."""
    found = [a for a in annotations() if not a["iscrowd"]]
    keys = "image_id", "category_id", "bbox"
    return [{key: a[key] for key in keys} | {"score": 0.95 - 0.05 * i} for i, a in enumerate(found)]


def write(folder: Path, given=None) -> Path:
    """COCO's folder."""
    write_json(folder / "coco/annotations/instances_val2017.json", given or content())
    for number in IDS:
        write_photo(folder / f"coco/val2017/{number:012}.jpg", number)
    return folder / "coco"


def lvis_content():
    """LVIS' form: no names of files, no crowds; of category 18 not all is annotated on the first photo."""
    of_coco = content()
    images = []
    for image, split in zip(of_coco["images"], ("val2017", "train2017", "val2017"), strict=True):
        url = f"http://images.cocodataset.org/{split}/{image.pop('file_name')}"
        images.append({**image, "coco_url": url, "neg_category_ids": [90], "not_exhaustive_category_ids": []})
    images[0]["not_exhaustive_category_ids"] = [18]
    objects = [a for a in of_coco["annotations"] if not a.pop("iscrowd")]
    categories = [{**c, "frequency": f} for c, f in zip(CATEGORIES, "frc", strict=True)]
    return {"images": images, "annotations": objects, "categories": categories}


def write_lvis(folder: Path) -> Path:
    """LVIS' annotations in COCO's folder."""
    given = lvis_content()
    write_json(folder / "coco/annotations/lvis_v1_val.json", given)
    for image in given["images"]:
        write_photo(folder / "coco" / image["coco_url"].partition(".org/")[2], image["id"])
    return folder / "coco"


def write_seginw(folder: Path, names=("Cows", "Airplane-Parts", "Rail")) -> Path:
    """Sets whose categories are numbered from 0, as are their annotations; and a folder that is none."""
    for i, name in enumerate((*names, "Other")):
        given = content()
        given["categories"] = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
        given["images"] = given["images"][i : i + 1] or given["images"]
        there = {image["id"] for image in given["images"]}
        given["annotations"] = seginw_annotations(there)
        write_json(folder / f"seginw/{name}/valid/_annotations_min1cat.coco.json", given)
        for number in there:
            write_photo(folder / f"seginw/{name}/valid/{number:012}.jpg", number)
    return folder / "seginw"


def seginw_annotations(images):
    """Objects of these images."""
    mine = [a for a in annotations() if a["image_id"] in images and not a["iscrowd"]]
    return [{**a, "id": i, "category_id": int(a["category_id"] == 18)} for i, a in enumerate(mine)]


def seginw_boxes():
    """A detector's, exact, by set; the sets were written in another order, and each holds one photo."""
    return dict(zip(("Cows", "Airplane-Parts", "Rail"), map(seginw_boxes_of, IDS), strict=True))


def seginw_boxes_of(number):
    """Those of a photo."""
    mine = [box for box in boxes() if box["image_id"] == number]
    return [box | {"category_id": int(box["category_id"] == 18)} for box in mine]


def write_photo(path: Path, number):
    """A JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo_of(labels_of(number))).save(path, quality=100, subsampling=0)


def write_json(path: Path, given) -> Path:
    """The file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given))
    return path
