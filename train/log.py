"""What a run says about itself: metrics, evaluations, progress."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from repvit_sam_jax.evals import protocols
from repvit_sam_jax.files import write_atomically

from .recipe import Recipe

SCORE = ("box", "centre")
"""The kinds of prompts whose mean IoU, with one weight each, tells which checkpoint is best."""


class TrainingError(RuntimeError):
    """A run that can't go on as it is."""


class Log:
    """Metrics of steps, fetched when they are due, so that the devices need not wait for the host."""

    def __init__(self, run: Path, recipe: Recipe, num_steps: int, first: int, tensorboard: bool) -> None:
        self._run, self._recipe, self._last = run, recipe, num_steps
        self._main = jax.process_index() == 0
        self._steps: list[tuple[int, dict[str, jax.Array], jax.Array]] = []
        self._waited, self._since = 0.0, time.perf_counter()
        self.seconds_at_peak: float | None = None
        metrics = self._truncate(run / "metrics.jsonl", first)
        self._skipped = metrics[-1]["skipped"] if metrics else 0
        evaluations = self._truncate(run / "evaluations.jsonl", first)
        self.evaluated = bool(_agreed(any(line["step"] == first for line in evaluations)))
        self.scores = [line["score"] for line in evaluations]
        self._measured = {line["step"] for line in self._truncate(run / "tasks.jsonl", first)}
        shown = None if self._main else True  # None: on a terminal
        self._bar = tqdm(total=num_steps, initial=first, unit="step", disable=shown, file=sys.stderr)
        self._board = _tensorboard(run, first) if tensorboard and self._main else None

    def _truncate(self, path: Path, last: int) -> list[dict[str, Any]]:
        """Forget what a killed run wrote after the step that it goes on from; returns the lines until then."""
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        try:
            json.loads(lines[-1] if lines else "{}")
        except json.JSONDecodeError:  # torn, by a full disk
            lines.pop()
        kept = [line for line in map(json.loads, lines) if line["step"] <= last]
        if self._main:
            text = "".join(json.dumps(line) + os.linesep for line in kept)
            write_atomically(path, functools.partial(Path.write_text, data=text))
        return kept

    def add(self, step: int, metrics: dict[str, jax.Array], index: jax.Array, waited: float) -> None:
        """Keep the metrics of a step, the numbers of its photos, and how long it waited for them."""
        self._steps.append((step, metrics, index))
        self._waited += waited
        if step % self._recipe.log_every == 0 or step == self._last:
            self.check()

    def check(self) -> None:
        """Write the means of the steps since the last time; raises TrainingError if a loss was not finite."""
        if not self._steps:
            return
        values = [(step, jax.device_get(metrics), index) for step, metrics, index in self._steps]
        self._steps = []
        for step, metrics, index in values:
            if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
                local = sorted(int(i) for shard in index.addressable_shards for i in np.asarray(shard.data))
                raise TrainingError(
                    f"step {step}: the loss is {metrics['loss']}, the norm of its gradient {metrics['grad_norm']}; the "
                    f"photos of this process were number {', '.join(map(str, local))} of the source. "
                    "To go on with a lower learning rate or without these photos, export the last checkpoint in "
                    "training form and start a new run from it (init=FILE decoder=init)"
                )
        elapsed = time.perf_counter() - self._since
        count = len(values)
        means = {name: float(np.mean([metrics[name] for _, metrics, _ in values])) for name in values[0][1]}
        self._skipped += round(means.pop("skipped") * count)
        means["learning_rate"] = float(values[-1][1]["learning_rate"])
        means |= {
            "images_per_second": count * self._recipe.batch_size / elapsed,
            "input_wait": self._waited / elapsed,
            **({} if self.seconds_at_peak is None else {"mfu": count * self.seconds_at_peak / elapsed}),
            "skipped": self._skipped,
        }
        self._write("metrics.jsonl", {"step": values[-1][0], **means})
        self._bar.update(values[-1][0] - self._bar.n)
        self._bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)
        self._waited, self._since = 0.0, time.perf_counter()

    def evaluation(self, step: int, result: protocols.Result) -> float:
        """Write a result; returns its score."""
        score = float(np.mean([result["ground_truth"][kind]["all"] for kind in SCORE]))
        score = float(_agreed(np.float32(score)))
        self._write("evaluations.jsonl", {"step": step, "score": score, **result})
        self.scores.append(score)
        self.note(f"step {step}\n{protocols.table(result)}")
        self._since = time.perf_counter()
        return score

    @property
    def stalled(self) -> bool:
        """Whether the last evaluations, as many as the recipe has patience for, brought no better score."""
        patience = self._recipe.patience
        return patience is not None and len(self.scores) - 1 - _first_best(self.scores) >= patience

    def tasks(self, step: int, numbers: dict[str, dict[str, float]]) -> None:
        """Write numbers of tasks, where NaN is null, unless they are written."""
        if step in self._measured:
            return
        kept = {task: {n: None if math.isnan(v) else v for n, v in of.items()} for task, of in numbers.items()}
        self._write("tasks.jsonl", {"step": step, **kept})
        for task, of_task in numbers.items():
            self.note(f"step {step}, {task}: " + ", ".join(f"{name} {v:.4g}" for name, v in of_task.items()))
        self._since = time.perf_counter()

    def note(self, text: str) -> None:
        """Write a line above the progress bar."""
        if self._main:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End progress bar and board."""
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _write(self, name: str, values: dict[str, Any]) -> None:
        if not self._main:
            return
        with (self._run / name).open("a") as file:
            file.write(json.dumps(values) + os.linesep)
        if self._board is not None:
            for key, value in _scalars(values):
                self._board.add_scalar(key, value, values["step"])


def _first_best(scores: Sequence[float]) -> int:
    """The place of the highest score; -1 if there is none."""
    return max(range(len(scores)), key=scores.__getitem__, default=-1)


def _scalars(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float]]:
    """Numbers with names like `ground_truth/box/all`, but not the step."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{within}{key}/")
        elif isinstance(value, int | float) and key != "step":
            yield within + key, value


def _agreed(value: Any) -> Any:
    """What the first process has, to the last bit."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def _tensorboard(run: Path, first: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package tensorboardX: pip install tensorboardX") from error
    # Events of a killed run after the step that this one goes on from are forgotten.
    return SummaryWriter(str(run / "tensorboard"), purge_step=first + 1 if first else None)
