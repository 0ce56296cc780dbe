"""The paper's zero-shot evaluations, and the field's common ones, each a protocol over a segmenter."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protocol import Task

TASKS = {
    "edges": "edges on BSDS500",
    "coco": "instances on COCO, from a detector's boxes",
    "seginw": "instances on the 25 sets of Segmentation in the Wild, from a detector's boxes",
    "davis": "objects in the videos of DAVIS-2017, from tracked points",
    "uvo": "instances in the videos of UVO, from tracked points",
    "duts": "salient objects on DUTS-TE",
    "mvtec": "anomalies on MVTec-AD, from a detector's boxes and saliency",
    "prompted": "objects of COCO from boxes and clicks",
    "lvis": "objects of LVIS from boxes and clicks",
}
"""Name -> what is measured."""


FOLDERS = {
    "edges": ("BSDS500", "BSR"),
    "coco": ("coco", "COCO"),
    "seginw": ("seginw", "SegInW"),
    "davis": ("DAVIS", "DAVIS-2017", "davis2017"),
    "uvo": ("UVOv1.0", "UVO"),
    "duts": ("DUTS-TE", "DUTS"),
    "mvtec": ("mvtec", "MVTec-AD", "mvtec_anomaly_detection"),
    "prompted": ("coco", "COCO"),
    "lvis": ("lvis", "coco", "COCO"),
}
"""Names of folders beside the task's own that data are found under."""


def open_task(name: str, data: Path, proposals: Path | None = None) -> Task:
    """The task of that name on a folder of data.

    Args:
      name: one of `TASKS`.
      data: the folder of the data set.
      proposals: the file of boxes or tracks that the task starts from, where it does.

    Raises:
      ValueError: there is no such task, the folder has another layout, or proposals are missing, or do not fit.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return importlib.import_module(f".{name}", __name__).open_task(data, proposals)


def find_data(root: Path, name: str) -> tuple[Path, Path | None] | None:
    """A task's folder of data and its proposals, or None if there is no such folder.

    Args:
      root: a folder with one for each task, under the task's name or one of `FOLDERS`; proposals are in `proposals`,
        a file or a folder of the task's name, with any extension.
      name: the task's.
    """
    data = next((root / folder for folder in (name, *FOLDERS[name]) if (root / folder).is_dir()), None)
    if data is None:
        return None
    given = [path for path in sorted((root / "proposals").glob(f"{name}*")) if path.stem == name]
    return data, given[0] if given else None
