"""Zero-shot instances on the 25 sets of Segmentation in the Wild, from a detector's boxes (HQ-SAM, arXiv 2306.01567).

The protocol is SysCV/sam-hq's: Grounding DINO's best 100 boxes of a photo prompt for the decoder's single mask each,
whose score is the box's; AP with pycocotools' usual counts, and its plain mean over the sets. The published numbers are
for boxes of Grounding DINO with Swin-B.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.datasets import layout
from ...data.datasets.coco import Coco
from ...data.datasets.seginw import SETS, open_seginw
from ...inference.backends import ENCODE_BATCH
from ..metrics import instances
from ..proposals import boxes as proposals
from ..segmenters import Segmenter
from . import coco
from .protocol import Picture

MOST = 100
"""Boxes of a photo that are taken."""


class SegInW:
    """The task; see the module. Keys are `set/photo`."""

    name, group = "seginw", ENCODE_BATCH

    def __init__(self, sets: Mapping[str, coco.Instances]) -> None:
        self.sets, self.score = sets, coco.score
        self.keys = [f"{name}/{key}" for name, one in sets.items() for key in one.keys]
        self.settings: dict[str, Any] = {"boxes": MOST, "detections": list(instances.SEGINW_DETECTIONS)}
        self.settings |= {"score": "box", "sets": list(sets)}

    def load(self, key: str) -> coco.Item:
        """A photo with its boxes."""
        name, _, photo = key.partition("/")
        return self.sets[name].load(photo)

    def segment(self, subject: Segmenter, items: Sequence[coco.Item]) -> list[list[dict[str, Any]]]:
        """Results in COCO's form, of each photo."""
        return coco.segment(subject, items, weighted=False)

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """AP of each set, and their mean. Sets none of whose photos, or not all and no object, were done are left out.

        Raises:
          ValueError: a set has no object at all, or there is no set left.
        """
        found = {}
        for name, of_set in itertools.groupby(records, lambda key: key.partition("/")[0]):
            done = {key.partition("/")[2]: records[key] for key in of_set}
            precision = self.sets[name].average_precision(done)["AP"]
            if np.isfinite(precision) or len(done) == len(self.sets[name].keys):
                found[name] = precision
        counts = {"photos": len(records), "boxes": sum(map(len, records.values()))}
        numbers = {"mean AP": instances.mean_precision(found)} | {f"{name} AP": found[name] for name in found}
        return numbers, {f"of {len(SETS)} sets": len(found)} | counts

    def panels(self, item: coco.Item) -> dict[str, Picture]:
        """The photo, and its objects."""
        return next(iter(self.sets.values())).panels(item)

    def panel(self, item: coco.Item, answer: Sequence[Mapping[str, Any]]) -> Picture:
        """The masks whose scores are not low."""
        return next(iter(self.sets.values())).panel(item, answer)


def open_task(data: Path, proposals: Path | None = None) -> SegInW:
    """As `tasks.open_task`; proposals are boxes of each set.

    Args:
      data: folder with the sets.
      proposals: a folder with `SET.json`, or a JSON file with an object {SET: list}; see `proposals.boxes`. Those of
        other sets are ignored.
    """
    sets = open_seginw(data)
    given = _read(sets, proposals)
    detections = instances.SEGINW_DETECTIONS
    return SegInW({name: coco.Instances(sets[name], given[name], detections, MOST) for name in sets})


def _read(sets: Mapping[str, Coco], path: Path | None) -> dict[str, dict[int, proposals.Boxes]]:
    if path is None:
        raise ValueError(
            "masks are for a detector's boxes: give --proposals, a folder with SET.json or a JSON file with an object "
            f"{{SET: list}}, each with {proposals.FORM}"
        )
    if path.is_dir():
        return {name: coco.read_boxes(one, path / f"{name}.json", MOST) for name, one in sets.items()}
    content = layout.read_json(path, f"an object {{SET: list}} of {proposals.FORM}")
    if not isinstance(content, dict) or (missing := [name for name in sets if name not in content]):
        what = f"lacks boxes of {', '.join(missing)}" if isinstance(content, dict) else "is no object {SET: list}"
        raise ValueError(f"{path} {what}; each set has {proposals.FORM}")
    return {
        name: proposals.group(content[name], list(one.images.values()), one.categories, MOST, f"{path}, {name}")
        for name, one in sets.items()
    }
