"""Segmentation in the Wild (Zou et al., CVPR 2023): 25 small data sets with instances, in COCO's form."""

from __future__ import annotations

import warnings
from pathlib import Path

from .coco import Coco

SETS = (
    "Airplane-Parts",
    "Bottles",
    "Brain-Tumor",
    "Chicken",
    "Cows",
    "Electric-Shaver",
    "Elephants",
    "Fruits",
    "Garbage",
    "Ginger-Garlic",
    "Hand",
    "Hand-Metal",
    "House-Parts",
    "HouseHold-Items",
    "Nutterfly-Squireel",
    "Phones",
    "Poles",
    "Puppies",
    "Rail",
    "Salmon-Fillet",
    "Strawberry",
    "Tablets",
    "Toolkits",
    "Trash",
    "Watermelon",
)
"""Folders, named as they are distributed."""

ANNOTATIONS = "valid/_annotations_min1cat.coco.json"
"""Categories are numbered from 0: the first one of the exports, which has no objects, is left out ("minus one")."""

WHAT = f"Segmentation in the Wild (computer-vision-in-the-wild.github.io), with SET/{ANNOTATIONS} and photos"


def open_seginw(folder: Path) -> dict[str, Coco]:
    """The sets that are there, by name, in the order of `SETS`; sets that lack are warned of, other folders ignored.

    Raises:
      ValueError: there is none, or one is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"--data {folder} is no folder; it should be that of {WHAT}")
    there = [name for name in SETS if (folder / name / ANNOTATIONS).is_file()]
    if not there:
        raise ValueError(
            f"{folder} is not {WHAT}: it has none of the {len(SETS)} sets, such as {SETS[0]}/{ANNOTATIONS}"
        )
    if missing := [name for name in SETS if name not in there]:
        warnings.warn(
            f"{folder} lacks {len(missing)} of the {len(SETS)} sets, so that the mean is no published one's: "
            f"{', '.join(missing)}",
            stacklevel=2,
        )
    return {name: Coco(folder / name / ANNOTATIONS, [folder / name / "valid"]) for name in there}
