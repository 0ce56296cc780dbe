"""The tasks of `repvit-sam eval` while a run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from repvit_sam_jax import Sam, SamPredictor
from repvit_sam_jax.evals import run
from repvit_sam_jax.evals.segmenters import Segmenter
from repvit_sam_jax.evals.tasks import find_data, open_task
from repvit_sam_jax.evals.tasks.protocol import Task
from repvit_sam_jax.weights import reparam

from .evaluation import LeftError, gathered
from .recipe import Recipe
from .state import TrainState


class Tasks:
    """Measures states of a run by the tasks that its recipe names, in deploy form and float32, on the first process."""

    def __init__(self, recipe: Recipe, student: Sam, root: Path | None) -> None:
        """Open the tasks.

        Raises:
          ValueError: there is no folder of data, or a task can't be opened.
        """
        if root is None:
            raise ValueError(f"recipe {recipe.name} names evals, {', '.join(recipe.evals)}: give --evals-root DIR")
        self._limit, self._student, self._tasks = recipe.evals_limit, student, list[tuple[Task, run.Place]]()
        for name in recipe.evals:
            found = find_data(root, name)
            if found is None:
                raise ValueError(f"--evals-root {root} has no folder of the data of {name}")
            self._tasks.append((open_task(name, *found), run.Place(*found, Path(name))))

    def __call__(
        self, state: TrainState, folder: Path, stopping: Callable[[], bool]
    ) -> dict[str, dict[str, float]] | None:
        """Numbers by task, None if `stopping` tells to leave; results are kept in `folder`, as of `repvit-sam eval`."""
        params = gathered(state.result)
        if jax.process_index():
            return {}
        params = jax.tree.map(np.asarray, params)
        if self._student.config.has_batch_norm:
            params = reparam.fuse(params)
        deployed = dataclasses.replace(self._student, form="deploy", dtype="float32")
        about = {"model": deployed.config.name, "step": int(state.step)}
        segmenter = Segmenter("student", SamPredictor(deployed, jax.device_put(params)), about)
        found: dict[str, dict[str, float]] = {}
        try:
            for task, place in self._tasks:
                at = dataclasses.replace(place, out=folder / place.out)
                result = run.run(_UntilLeft(task, stopping), segmenter, at, self._limit)
                found[task.name] = {name: float(value) for name, value in result.numbers.items()}
        except LeftError:
            return None
        return found


class _UntilLeft:
    """A task that ends with `LeftError` as soon as it is to be left."""

    def __init__(self, task: Task, stopping: Callable[[], bool]) -> None:
        self._task, self._stopping = task, stopping

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def load(self, key: str) -> Any:
        if self._stopping():
            raise LeftError
        return self._task.load(key)
