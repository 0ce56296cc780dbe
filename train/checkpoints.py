"""Checkpoints of a run: Orbax, written in the background; the latest few and the best one are kept."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from .state import TrainState

_policies = ocp.training.preservation_policies


class Checkpoints:
    """The folder `checkpoints` of a run. Closing waits for what is being written."""

    def __init__(self, folder: Path, keep: int = 2, *, write: bool = False) -> None:
        """Open them.

        Args:
          folder: where they are; made if `write`.
          keep: how many of the latest stay; the one with the best score stays besides.
          write: whether this is the run itself, which also removes what an interrupted write left.
        """
        latest = _policies.LatestN(keep)
        best = _policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
        )
        if write:
            folder.mkdir(parents=True, exist_ok=True)
        self._orbax = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=_policies.AnyPreservationPolicy([latest, best]),
            cleanup_tmp_directories=write,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            with contextlib.suppress(*[Exception] * self._failed):  # Orbax raises anew what `wait` raised
                self._orbax.close()

    @property
    def latest(self) -> int | None:
        """The last complete checkpoint's step; None if there is none."""
        return None if self._orbax.latest is None else self._orbax.latest.step

    @property
    def best(self) -> int | None:
        """The step of the complete checkpoint with the highest score; None if none has any."""
        scored = [found for found in self._orbax.checkpoints if found.metrics and "score" in found.metrics]
        return max(scored, key=lambda found: found.metrics["score"]).step if scored else None

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Start writing; what was being written before is waited for.

        Raises:
          OSError: an earlier write failed, as by `wait`.
        """
        self.wait()
        step = int(state.step)
        metrics = None if score is None else {"score": score}
        self._saving = step, self._orbax.save_checkpointables_async(step, _parts(state), force=True, metrics=metrics)

    _saving: tuple[int, Any] | None = None
    _failed = False

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
          OSError: it failed, such as by a full disk. Earlier checkpoints stay as they are.
        """
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            saving.result()
        except Exception as error:  # Orbax and TensorStore raise many kinds, a full disk as ValueError
            self._failed = True
            last = "none is complete" if self.latest is None else f"the last complete one is of step {self.latest}"
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self._orbax.directory}: {error}. "
                f"Of this run {last}, from which the same command goes on"
            ) from error

    def restore(self, target: TrainState, step: int | None = None) -> TrainState:
        """The state at a step, the latest one by default, as `target` has it, with the target's shardings.

        Raises:
          ValueError: there is no such checkpoint, or it is of another model or optimizer.
        """
        step = self.latest if step is None else step
        if step is None or step not in [found.step for found in self._orbax.checkpoints]:
            raise ValueError(f"{self._orbax.directory} has no checkpoint{'' if step is None else f' of step {step}'}")
        try:
            found = self._orbax.load_checkpointables(step, _parts(target))
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"checkpoint {step} of {self._orbax.directory} does not fit this recipe: {error}"
            ) from error
        return dataclasses.replace(target, **found.pop("counters"), **found)


def _parts(state: TrainState) -> dict[str, Any]:
    """What Orbax stores under a name each: the fields that hold any array, scalars together."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    counters = {name: parts.pop(name) for name in ("step", "seed")}
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)} | {"counters": counters}
