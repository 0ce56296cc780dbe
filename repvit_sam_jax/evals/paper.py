"""What is published for each task: columns of its table, and rows of RepViT-SAM's paper (arXiv 2312.05760)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Table:
    """How a task's numbers are shown."""

    columns: Mapping[str, str]
    """Title -> name of the number."""
    scale: int = 1
    """What numbers are multiplied by: 100 for percent."""
    digits: int = 1
    paper: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    """Published rows, as they are printed."""
    by_size: Sequence[str] = ()
    """Names of numbers that there are of all, small, medium and large objects, shown in a table of their own."""


def _rows(*values: Sequence[float]) -> dict[str, Sequence[float]]:
    return dict(zip(("ViT-H", "ViT-B", "MobileSAM", "RepViT-SAM"), values, strict=True))


_CHOICES = ("single", "best")
_NOC = {f"{count}, {choice}": f"{count} {choice}" for count in ("NoC@85", "NoC@90") for choice in _CHOICES}
_PROMPTS = tuple(f"{kind} {choice}" for kind in ("box", "1 click", "3 clicks", "5 clicks") for choice in _CHOICES)

TABLES = {
    "edges": Table(
        {"ODS": "ODS", "OIS": "OIS", "AP": "AP"},
        digits=3,
        paper=_rows((0.768, 0.786, 0.794), (0.743, 0.764, 0.726), (0.756, 0.768, 0.746), (0.764, 0.786, 0.773)),
    ),
    "coco": Table(
        {"AP": "AP", "APs": "APs", "APm": "APm", "APl": "APl"},
        100,
        paper=_rows(
            (46.8, 31.8, 51.0, 63.6), (42.5, 29.8, 47.0, 56.8), (42.7, 27.0, 46.5, 61.1), (44.4, 29.1, 48.6, 61.4)
        ),
    ),
    "seginw": Table({"mean AP": "mean AP"}, 100, paper=_rows((48.7,), (44.8,), (43.9,), (46.1,))),
    "davis": Table(
        {"J&F": "J&F-Mean", "J": "J-Mean", "F": "F-Mean"},
        100,
        paper=_rows((77.4, 74.6, 80.2), (71.3, 68.5, 74.1), (71.1, 68.6, 73.6), (73.5, 71.0, 76.1)),
    ),
    "uvo": Table({"AR100": "AR100"}, 100, paper=_rows((28.8,), (19.1,), (22.7,), (25.3,))),
    "duts": Table({"MAE": "MAE"}, digits=3, paper=_rows((0.046,), (0.121,), (0.147,), (0.066,))),
    "mvtec": Table({"max F1": "max F1"}, 100, 2, paper=_rows((37.65,), (36.62,), (36.44,), (37.96,))),
    "prompted": Table(_NOC | {"AP": "AP"}, digits=3, by_size=_PROMPTS),
    "lvis": Table(_NOC | {"AP": "AP"}, digits=3, by_size=_PROMPTS),
}
"""Rows are those of THU-MIG/RepViT's page of RepViT-SAM; of boxes and clicks it publishes nothing."""
