"""A run: from a recipe and data to checkpoints, from wherever it was left."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from repvit_sam_jax import Sam, data
from repvit_sam_jax.files import write_atomically
from repvit_sam_jax.models.model import Params

from . import flops
from .checkpoints import Checkpoints
from .embeddings import EmbeddingCache
from .evaluation import Evaluation
from .inputs import Inputs as Inputs
from .log import Log
from .optim import make_optimizer
from .recipe import OPERATIONAL, Recipe, to_json
from .state import (
    BATCH,
    TrainState,
    abstract,
    abstract_batch,
    abstract_state,
    create,
    initial_params,
    make_mesh,
    make_student,
    place,
    shardings,
)
from .step import Step, check_teacher, make_step
from .tasks import Tasks
from .teacher import Teacher, load_teacher, needed_params, teacher_identity


def train(
    recipe: Recipe, run: Path, inputs: Inputs, *, tensorboard: bool = False, profile: int | None = None
) -> TrainState:
    """`Run(recipe, run, inputs).fit(...)`: the last state."""
    return Run(recipe, run, inputs).fit(tensorboard=tensorboard, profile=profile)


class Run:
    """A recipe on data, in a folder that keeps what is needed to go on.

    With several processes, make it in each of them after `jax.distributed.initialize()`, with a folder that all of them
    see. The folder gets `recipe.json`, `inputs.json`, `metrics.jsonl`, `evaluations.jsonl` and `checkpoints/`.

    Args:
      recipe: what to do.
      folder: new, or of the same recipe and data.
      inputs: where photos come from.

    Raises:
      ValueError: recipe, data, teacher or cache do not fit each other, or the folder is of another recipe or other
        data.
    """

    def __init__(self, recipe: Recipe, folder: Path, inputs: Inputs) -> None:
        self.recipe, self.folder, self.inputs = recipe, folder, inputs
        if recipe.teacher is None and recipe.needs_teacher:
            raise ValueError(f"recipe {recipe.name} needs a teacher: --set teacher=FILE.safetensors")
        self.source, self.held_out = inputs.open()
        if recipe.patience is not None and self.held_out is None:
            raise ValueError(f"recipe {recipe.name}: patience needs held-out photos, which tell whether it gets better")
        self.num_steps = recipe.num_steps(len(self.source))
        self.finished = False
        self.mesh, self.student = make_mesh(recipe), make_student(recipe)
        _claim(folder, recipe, self._about())
        self.teacher = None
        if recipe.teacher is not None:
            self.teacher = load_teacher(recipe.teacher, self.student.config.image_size, recipe.dtype)
        self._teacher_model = self.teacher.model if self.teacher else None
        check_teacher(recipe, self.student, self._teacher_model)
        self.cache = self._open_cache()
        self.optimizer, self.step = _programs(recipe, self.student, self._teacher_model, self.num_steps, self.mesh)
        self.evaluation = None
        if self.held_out is not None:
            given = recipe, self.student, self.teacher, self.held_out, inputs
            self.evaluation = Evaluation(*given, self.mesh)
        self.tasks = Tasks(recipe, self.student, inputs.evals_root) if recipe.evals else None

    def fit(self, *, tensorboard: bool = False, profile: int | None = None) -> TrainState:
        """Go on from the latest checkpoint, if there is one, to the end; `finished` says whether it was reached.

        On SIGTERM the run is saved and left; the same call goes on with it. A run that was killed goes on from its last
        checkpoint, to the same result: batches and random draws depend on the step alone.

        Args:
          tensorboard: also write metrics for TensorBoard, with the package tensorboardX.
          profile: a step from which on five steps are traced by `jax.profiler`, into `folder/profile`.

        Returns:
          the last state.

        Raises:
          TrainingError: a loss is not finite; the message names the step and the photos, and no checkpoint was written
            since the last finite one.
        """
        recipe = self.recipe
        with contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(Checkpoints(self.folder / "checkpoints", recipe.keep, write=True))
            state = _start(recipe, self.student, self.teacher, self.mesh, self.optimizer, checkpoints)
            teacher_params = _teacher_params(recipe, self.teacher, cached=self.cache is not None, mesh=self.mesh)
            first = int(state.step)
            batches = stack.enter_context(contextlib.closing(self._batches(first)))
            stopping = stack.enter_context(_preemption())
            log = Log(self.folder, recipe, self.num_steps, first, tensorboard)
            stack.enter_context(contextlib.closing(log))
            log.seconds_at_peak = self._seconds_at_peak(state, teacher_params)
            if not log.evaluated and (first or recipe.patience):  # perhaps one was given up when the run was left
                self._evaluate(state, first, log, stopping)
            if recipe.patience and checkpoints.latest is None and log.scores:
                checkpoints.save(state, log.scores[-1])
            profiler = stack.enter_context(contextlib.ExitStack())
            for number in range(first, self.num_steps):
                if log.stalled:
                    break
                if number == profile:
                    profiler.enter_context(jax.profiler.trace(str(self.folder / "profile")))
                started = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - started
                state, metrics = self.step(state, teacher_params, batch)
                done = number + 1
                log.add(done, metrics, batch["index"], waited)
                if profile is not None and number == profile + 4:
                    jax.block_until_ready(metrics)
                    profiler.close()
                score = None if stopping() else self._evaluate(state, done, log, stopping)
                leave = stopping()
                if done % recipe.checkpoint_every == 0 or done == self.num_steps or score is not None or leave:
                    log.check()
                    checkpoints.save(state, score)
                if leave and done < self.num_steps:
                    checkpoints.wait()
                    log.note(f"stopped by a signal after step {done}; the same command goes on from there")
                    break
            checkpoints.wait()
        self.finished = int(state.step) >= self.num_steps or log.stalled
        return state

    def _about(self) -> dict[str, Any]:
        """What tells this run from others with the same recipe."""
        about = {
            "photos": self.source.fingerprint,
            "num_photos": len(self.source),
            "teacher": None if self.recipe.teacher is None else teacher_identity(self.recipe.teacher),
            "cached": self.inputs.embeddings is not None,
        }
        return about if self.held_out is None else {**about, "held_out": self.held_out.fingerprint}

    def _open_cache(self) -> EmbeddingCache | None:
        if self.inputs.embeddings is None:
            return None
        if self.teacher is None or not self.recipe.needs_teacher or self.recipe.flip_probability:
            raise ValueError("a cache of embeddings needs the teacher that made it, and photos that are not flipped")
        return EmbeddingCache(self.inputs.embeddings, self.teacher, self.source)

    def _batches(self, first: int) -> Any:
        """On the devices, from a step on."""
        recipe, inputs = self.recipe, self.inputs
        config = data.ExampleConfig(
            self.student.config.image_size,
            recipe.num_masks,
            area_exponent=recipe.prompting.area_exponent,
            flip_probability=recipe.flip_probability,
        )
        reading = dataclasses.replace(
            inputs.reading, process_index=jax.process_index(), process_count=jax.process_count()
        )
        options: dict[str, Any] = {"seed": recipe.seed, "start": first, "reading": reading, "strict": inputs.strict}
        read = data.batches(self.source, config, recipe.batch_size, **options)
        local = read if self.cache is None else self.cache.join(read)
        return data.to_device(local, NamedSharding(self.mesh, BATCH))

    def _seconds_at_peak(self, state: TrainState, teacher_params: Params | None) -> float | None:
        """Time of a step if the devices did nothing but its products; None where their peak is not known."""
        peak = flops.peak(self.mesh.devices.flat[0])
        if peak is None:
            return None
        batch = abstract_batch(self.recipe, self.student, self._teacher_model if self.cache else None)
        given = (state, teacher_params, batch)
        return flops.step_flops(self.recipe, self.student, self._teacher_model, given) / (peak * self.mesh.size)

    def _evaluate(self, state: TrainState, step: int, log: Log, stopping: Callable[[], bool]) -> float | None:
        """The score of a state after a step; None if none is due, or a signal came before its end."""
        if step % self.recipe.evaluate_every and step != self.num_steps:
            return None
        log.check()
        if self.tasks is not None:
            numbers = self.tasks(state, self.folder / "evals" / str(step), stopping)
            if numbers is None:
                return None
            log.tasks(step, numbers)
        if self.evaluation is None:
            return None
        result = self.evaluation(state, stopping)
        return None if result is None else log.evaluation(step, result)


_DEFAULTS: dict[str, dict[str, Any]] = {
    "recipe.json": {f.name: f.default for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING},
    "inputs.json": {},
}
"""What runs of versions that had fewer fields did."""


def _claim(run: Path, recipe: Recipe, about: Mapping[str, Any]) -> None:
    """Write what the run is made of, or check that it is the same as before; nothing binds before the first losses.

    Held-out photos may come later, but not be exchanged: the best checkpoint is the one with the highest score.
    """
    metrics = run / "metrics.jsonl"
    begun = (metrics.exists() and metrics.stat().st_size > 0) or any((run / "checkpoints").glob("[0-9]*"))
    now = {"recipe.json": json.loads(to_json(recipe)), "inputs.json": dict(about)}
    texts = {name: json.dumps(values, indent=1) for name, values in now.items()}
    main = jax.process_index() == 0
    for name, text in texts.items():
        if main and not (begun and (run / name).exists()):
            write_atomically(run / name, functools.partial(Path.write_text, data=text))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("claim")
    for name, values in now.items():
        if not (run / name).exists():
            raise ValueError(f"{run} is not where the first process writes to; all hosts must see the same folder")
        before = {**_DEFAULTS[name], **json.loads((run / name).read_text())}
        free = OPERATIONAL if name == "recipe.json" else values.keys() - before.keys()
        changed = [key for key in values if before.get(key) != values[key] and key not in free]
        if changed:
            told = "\n  ".join(f"{key}: {before.get(key)!r}, now {values[key]!r}" for key in changed)
            raise ValueError(f"{run} is the run of another {name.removesuffix('.json')}; choose a new folder\n  {told}")
        text = texts[name] if name == "recipe.json" else json.dumps({**before, **values}, indent=1)
        if main and (run / name).read_text() != text:
            write_atomically(run / name, functools.partial(Path.write_text, data=text))


def _programs(
    recipe: Recipe, student: Sam, teacher: Sam | None, num_steps: int, mesh: Mesh
) -> tuple[optax.GradientTransformation, Step]:
    """The optimizer and the jitted step of a run.

    Runs of a process that differ in nothing that enters the step, such as the seed or how often they are evaluated,
    share them. So whoever goes on with a run in a notebook waits neither for its trace nor for the compiler again.
    """
    counts: dict[str, Any] = dict.fromkeys(("fsdp", "log_every", "checkpoint_every", "evaluate_every", "keep"), 1)
    counts |= {"epochs": None, "steps": num_steps, "patience": None}
    alike = dataclasses.replace(recipe, name="", seed=0, evals=(), **counts)
    return _built(alike, student, teacher, num_steps, mesh)


@functools.lru_cache(maxsize=4)
def _built(
    recipe: Recipe, student: Sam, teacher: Sam | None, num_steps: int, mesh: Mesh
) -> tuple[optax.GradientTransformation, Step]:
    optimizer = make_optimizer(recipe, num_steps)
    step = jax.jit(
        make_step(recipe, student, teacher, num_steps),
        donate_argnums=0,
        out_shardings=(shardings(mesh, abstract_state(recipe, student, optimizer)), NamedSharding(mesh, P())),
    )
    return optimizer, step


def _start(
    recipe: Recipe, student: Sam, teacher: Teacher | None, mesh: Mesh, optimizer: Any, checkpoints: Checkpoints
) -> TrainState:
    if checkpoints.latest is not None:
        return checkpoints.restore(abstract(mesh, abstract_state(recipe, student, optimizer)))
    return place(mesh, create(recipe, initial_params(recipe, student, teacher), optimizer))


def _teacher_params(recipe: Recipe, teacher: Teacher | None, *, cached: bool, mesh: Mesh) -> Params | None:
    """What the step needs of the teacher, on the mesh."""
    if teacher is None or not recipe.needs_teacher:
        return None
    needed = needed_params(teacher.params, encoder=not cached, decoder=recipe.asks_teacher)
    return None if needed is None else place(mesh, needed)


@contextlib.contextmanager
def _preemption() -> Iterator[Callable[[], bool]]:
    """A function that tells whether to save and leave; all processes call it equally often and hear the same."""
    if jax.process_count() > 1:  # the coordination service holds the signal, and all agree on a call
        calls, left = itertools.count(), threading.Event()

        def reached() -> bool:
            if not left.is_set() and multihost_utils.reached_preemption_sync_point(next(calls)):
                left.set()
            return left.is_set()

        yield reached
        return
    if threading.current_thread() is not threading.main_thread():  # where signals can't be had
        yield lambda: False
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
