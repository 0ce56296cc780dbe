"""What an evaluation found, with all that it depends on: JSON, and a table beside the paper's rows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..files import write_atomically
from .metrics import SIZES
from .paper import TABLES


@dataclasses.dataclass(frozen=True)
class Result:
    """Numbers of one model on one task."""

    task: str
    name: str
    """The model's, in tables."""
    numbers: Mapping[str, float]
    """NaN where there is nothing to average."""
    counts: Mapping[str, int]
    """What numbers are over, such as photos and objects."""
    settings: Mapping[str, Any]
    """What numbers depend on besides the model and the data."""
    model: Mapping[str, Any]
    """For a segmenter `weights`, their `sha256`, `model`, `dtype` and `runtime`."""
    data: Mapping[str, Any]
    """The folder, and proposals with their SHA-256; `items` were measured of those `of` which there are."""
    seconds: Mapping[str, float]
    """On the items, together: `segment`, and `score`, which processes share."""
    versions: Mapping[str, str]
    hardware: str

    def write(self, path: Path) -> None:
        """As JSON."""
        text = json.dumps(self.as_json(), indent=1, allow_nan=False)
        write_atomically(path, lambda temporary: temporary.write_text(text + "\n"))

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold: NaN is None."""
        numbers = {name: None if math.isnan(value) else value for name, value in self.numbers.items()}
        return {**dataclasses.asdict(self), "numbers": numbers}

    @classmethod
    def read(cls, path: Path) -> Result:
        """What `write` wrote. Raises ValueError if it is none of this version's."""
        try:
            content = json.loads(path.read_text())
            content["numbers"] = {n: math.nan if v is None else v for n, v in content["numbers"].items()}
            return cls(**content)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is no result of this version: {error}; remove it, or give another --out"
            ) from None


def versions() -> dict[str, str]:
    """Of the packages that numbers depend on, and Python."""
    packages = ("repvit-sam-jax", "jax", "numpy", "scipy", "pycocotools")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def hardware() -> str:
    """The device, and for CPUs how many cores."""
    import jax

    device = jax.devices()[0]
    return f"{device.device_kind}, {os.cpu_count()} cores" if device.platform == "cpu" else str(device.device_kind)


def table(results: Sequence[Result]) -> str:
    """Markdown: a row a model, all of one task, then the paper's; and numbers by size of the objects, if there are."""
    task, layout = results[0].task, TABLES[results[0].task]
    lines = [f"| {task} | {' | '.join(layout.columns)} |", f"|---|{'---:|' * len(layout.columns)}"]
    lines += [f"| {result.name} | {_cells(result, layout.columns.values())} |" for result in results]
    for name, row in layout.paper.items():
        lines.append(f"| *{name}, published* | {' | '.join(f'*{value:.{layout.digits}f}*' for value in row)} |")
    if layout.by_size:
        sizes = ("all", *SIZES)
        lines += ["", f"| mean IoU | | {' | '.join(sizes)} |", f"|---|---|{'---:|' * len(sizes)}"]
        for result, kind in itertools.product(results, layout.by_size):
            lines.append(f"| {result.name} | {kind} | {_cells(result, [f'{kind} {size}' for size in sizes])} |")
    first = results[0]
    shown = ", ".join(f"{count} {what}" for what, count in first.counts.items())
    if first.data["items"] < first.data["of"]:
        shown += f"; {first.data['items']} of {first.data['of']} items: not comparable to published rows"
    return "\n".join([*lines, "", shown])


def _cells(result: Result, names: Iterable[str]) -> str:
    layout = TABLES[result.task]
    values = [layout.scale * result.numbers[name] for name in names]
    return " | ".join("-" if math.isnan(value) else f"{value:.{layout.digits}f}" for value in values)
