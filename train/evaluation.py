"""Held-out photos, which tell how far a run has come."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from repvit_sam_jax import Sam, data
from repvit_sam_jax.data.sources import Source
from repvit_sam_jax.evals import protocols
from repvit_sam_jax.models.model import Params

from .inputs import Inputs
from .recipe import Recipe
from .state import TrainState
from .teacher import Teacher

EVALUATED = 256
"""Photos of the held-out source that an evaluation takes, at most, but whole batches."""


class Evaluation:
    """Evaluates states of a run, each process on its first device: nothing has to be gathered.

    Raises ValueError at once if the held-out photos have no masks.
    """

    def __init__(
        self, recipe: Recipe, student: Sam, teacher: Teacher | None, source: Source, inputs: Inputs, mesh: Mesh
    ) -> None:
        self._student, self._teacher, self._source, self._reading = student, teacher, source, inputs.reading
        self._config = data.ExampleConfig(student.config.image_size, recipe.prompting.num_prompts, spread=True)
        # As many photos as a device has at work in a step.
        self._size = max(1, min(recipe.batch_size // recipe.micro_batches // mesh.size, len(source)))
        self._count = -(-min(EVALUATED, len(source)) // self._size)
        with self._read() as batches:
            if not any(batch["valid"].any() for batch in itertools.islice(batches, self._count)):
                raise ValueError(f"the first held-out photos, such as {source[0].name}, have no masks to evaluate on")

    def __call__(self, state: TrainState, stopping: Callable[[], bool]) -> protocols.Result | None:
        """The result for a state; None if `stopping` tells to leave between batches."""
        params, teacher = gathered(state.result), self._teacher
        compared = None if teacher is None else (teacher.model, jax.device_put(teacher.params, jax.local_devices()[0]))
        with self._read() as batches, contextlib.suppress(LeftError):
            until_left = self._until_left(batches, stopping)
            return protocols.evaluate(self._student, params, until_left, teacher=compared)
        return None

    def _read(self) -> Any:
        return contextlib.closing(data.one_pass(self._source, self._config, self._size, reading=self._reading))

    def _until_left(self, batches: Any, stopping: Callable[[], bool]) -> Iterator[Any]:
        for batch in itertools.islice(batches, self._count):
            if stopping():
                raise LeftError
            yield batch


class LeftError(Exception):
    """An evaluation was given up."""


def gathered(params: Params) -> Params:
    """Params whole on the first device of this process."""
    first = jax.local_devices()[0]
    if jax.process_count() == 1:
        return jax.device_put(params, first)
    whole = jax.jit(_same, out_shardings=NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, P()))(params)
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole), first)


def _same(tree: Any) -> Any:
    return tree
