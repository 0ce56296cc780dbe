"""The curve of a training: held-out mIoU by photos seen, over stages that start from each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from train.recipe import from_json


def draw(runs: Sequence[Path], path: Path) -> None:
    """Draw what the runs' evaluations say, one run after the other.

    Args:
      runs: their folders, of which `recipe.json` and `evaluations.jsonl` are read, in order.
      path: the picture.

    Raises:
      FileNotFoundError: a folder is no run's, or was never evaluated.
    """
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    before = 0
    for run in runs:
        for name in ("recipe.json", "evaluations.jsonl"):
            if not (run / name).is_file() or not (run / name).stat().st_size:
                raise FileNotFoundError(f"{run} is no run that was evaluated: it has no {name}")
        recipe = from_json((run / "recipe.json").read_text())
        found = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        seen = [before + recipe.batch_size * each["step"] for each in found]
        for number, kind in enumerate(found[0]["ground_truth"]):
            values = [100 * each["ground_truth"][kind]["all"] for each in found]
            axis.plot(seen, values, f"C{number}.-", label=kind if run == runs[0] else None)
        if before:
            axis.axvline(before, color="gray", linestyle=":")
        before = seen[-1]
    axis.set(xlabel="photos seen", ylabel="held-out mIoU, %")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
