"""The paper's zero-shot evaluations, and the field's common ones, each a protocol over a segmenter."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "h w 3"]

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
    "uvo": ("UVO", "uvo"),
    "duts": ("DUTS-TE", "DUTS"),
    "mvtec": ("mvtec", "MVTec-AD", "mvtec_anomaly_detection"),
    "prompted": ("coco", "COCO"),
    "lvis": ("lvis", "coco", "COCO"),
}
"""Names of folders beside the task's own that data are found under."""


class Subject(Protocol):
    """What is measured: a `Segmenter`, or for edges another detector."""

    @property
    def name(self) -> str:
        """In tables."""

    @property
    def about(self) -> Mapping[str, Any]:
        """As JSON can hold it."""


class Task(Protocol):
    """An evaluation on a data set: what is asked of a segmenter for each of its items, and how answers are counted.

    An item is a photo, a video, or what else is looked at as one. It is read (in a thread), segmented (on the device,
    several at once), scored (perhaps in another process), and its record kept; records give the numbers.
    """

    name: str
    settings: Mapping[str, Any]
    """What numbers depend on besides the model, as JSON can hold it."""
    keys: Sequence[str]
    """Names of the items, in order."""
    group: int
    """Items that are segmented at once."""
    score: Callable[[Any], Any]
    """An answer -> its record, as JSON can hold it; a function of a module, so that other processes know it."""

    def load(self, key: str) -> Any:
        """An item. Raises ValueError or OSError, which names the file, if it can't be read."""

    def segment(self, subject: Any, items: Sequence[Any]) -> Sequence[Any]:
        """Answers, one an item; they can be pickled."""

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """Numbers, and counts of what they are over. Raises ValueError if there is nothing to count."""

    def panels(self, item: Any) -> dict[str, Picture]:
        """Pictures of an item, and of its truth, by title."""

    def panel(self, item: Any, answer: Any) -> Picture:
        """A picture of an answer."""


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
