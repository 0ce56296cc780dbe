"""As `prompted`, on LVIS v1: 20,000 photos with objects of 1,203 categories, many of them small."""

from __future__ import annotations

from pathlib import Path

from ...data.datasets.coco import open_lvis
from ..metrics import federated
from . import coco, prompted


def open_task(data: Path, proposals: Path | None = None) -> prompted.Prompted:
    """As `tasks.open_task`; proposals, if any, are a file of boxes, see `proposals.boxes`."""
    opened = open_lvis(data)
    boxes = None if proposals is None else coco.read_boxes(opened, proposals, federated.MOST)
    return prompted.Prompted("lvis", opened, boxes, federated.MOST, federated.average_precision)
