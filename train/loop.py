"""A run: from a recipe and data to checkpoints, from wherever it was left."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from repvit_sam_jax import Sam, data
from repvit_sam_jax.evals import protocols
from repvit_sam_jax.files import write_atomically
from repvit_sam_jax.models.model import Params

from . import flops
from .checkpoints import Checkpoints
from .embeddings import EmbeddingCache
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
from .teacher import Teacher, load_teacher, needed_params

EVALUATED = 256
"""Photos of the held-out source that an evaluation takes, at most, but whole batches."""

SCORE = ("box", "centre")
"""The kinds of prompts whose mean IoU, with one weight each, tells which checkpoint is best."""


class TrainingError(RuntimeError):
    """A run that can't go on as it is."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
      photos: what `data.open_source` takes.
      held_out: likewise, with masks; empty for no evaluation.
      embeddings: folder of a cache of the teacher's embeddings of `photos`, or None.
      strict: stop at a damaged record.
      reading: threads and workers of the input; processes are filled in.
    """

    photos: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    embeddings: Path | None = None
    strict: bool = False
    reading: data.Reading = dataclasses.field(default_factory=data.Reading)


def train(
    recipe: Recipe, run: Path, inputs: Inputs, *, tensorboard: bool = False, profile: int | None = None
) -> TrainState:
    """Run a recipe to its end, from the run's latest checkpoint if it has one.

    With several processes, call it in each of them after `jax.distributed.initialize()`, with a run folder that all of
    them see. The folder gets `recipe.json`, `inputs.json`, `metrics.jsonl`, `evaluations.jsonl` and `checkpoints/`.

    On SIGTERM the run is saved and left; the same call goes on with it. A run that was killed goes on from its last
    checkpoint, to the same result: batches and random draws depend on the step alone.

    Args:
      recipe: what to do.
      run: the run's folder, new or of the same recipe and data.
      inputs: where photos come from.
      tensorboard: also write metrics for TensorBoard, with the package tensorboardX.
      profile: a step from which on five steps are traced by `jax.profiler`, into `run/profile`.

    Returns:
      the last state.

    Raises:
      ValueError: recipe, data, teacher or cache do not fit each other, or the run is of another recipe or other data.
      TrainingError: a loss is not finite; the message names the step and the photos, and no checkpoint was written
        since the last finite one.
    """
    source = data.open_source(inputs.photos)
    num_steps = recipe.num_steps(len(source))
    mesh = make_mesh(recipe)
    student = make_student(recipe)
    teacher = load_teacher(recipe.teacher, student.config.image_size, recipe.dtype) if recipe.teacher else None
    if teacher is None and recipe.needs_teacher:
        raise ValueError(f"recipe {recipe.name} needs a teacher: --set teacher=FILE.safetensors")
    check_teacher(recipe, student, teacher.model if teacher else None)
    about = {
        "photos": source.fingerprint,
        "num_photos": len(source),
        "teacher": teacher and teacher.identity,
        "cached": inputs.embeddings is not None,
    }
    if inputs.held_out:
        about["held_out"] = data.open_source(inputs.held_out).fingerprint
    _claim(run, recipe, about)
    cache = None
    if inputs.embeddings is not None:
        if teacher is None or not recipe.needs_teacher or recipe.flip_probability:
            raise ValueError("a cache of embeddings needs the teacher that made it, and photos that are not flipped")
        cache = EmbeddingCache(inputs.embeddings, teacher, source)
    optimizer, step = _programs(recipe, student, teacher.model if teacher else None, num_steps, mesh)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run / "checkpoints", recipe.keep, write=True))
        state = _start(recipe, student, teacher, mesh, optimizer, checkpoints)
        teacher_params = _teacher_params(recipe, teacher, cached=cache is not None, mesh=mesh)
        first = int(state.step)
        config = data.ExampleConfig(
            student.config.image_size,
            recipe.num_masks,
            area_exponent=recipe.prompting.area_exponent,
            flip_probability=recipe.flip_probability,
        )
        reading = dataclasses.replace(
            inputs.reading, process_index=jax.process_index(), process_count=jax.process_count()
        )
        read = data.batches(
            source, config, recipe.batch_size, seed=recipe.seed, start=first, reading=reading, strict=inputs.strict
        )
        local = read if cache is None else cache.join(read)
        batches = stack.enter_context(contextlib.closing(data.to_device(local, NamedSharding(mesh, BATCH))))
        stopping = stack.enter_context(_preemption())
        log = stack.enter_context(contextlib.closing(_Log(run, recipe, num_steps, first, tensorboard)))
        if (peak := flops.peak(mesh.devices.flat[0])) is not None:
            arguments = (
                state,
                teacher_params,
                abstract_batch(recipe, student, teacher.model if teacher and cache else None),
            )
            work = flops.step_flops(recipe, student, teacher.model if teacher else None, arguments)
            log.seconds_at_peak = work / (peak * mesh.size)
        evaluate = _evaluation(recipe, student, teacher, inputs, mesh)

        def evaluation(state: TrainState, step: int) -> float | None:
            """The score of a state after a step; None if none is due, or a signal came before its end."""
            if evaluate is None or (step % recipe.evaluate_every and step != num_steps):
                return None
            log.check()
            result = evaluate(state, stopping)
            return None if result is None else log.evaluation(step, result)

        if first and not log.evaluated:  # perhaps one was given up when the run was left
            evaluation(state, first)
        profiler = stack.enter_context(contextlib.ExitStack())
        for number in range(first, num_steps):
            if number == profile:
                profiler.enter_context(jax.profiler.trace(str(run / "profile")))
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            state, metrics = step(state, teacher_params, batch)
            done = number + 1
            log.add(done, metrics, batch["index"], waited)
            if profile is not None and number == profile + 4:
                jax.block_until_ready(metrics)
                profiler.close()
            score = None if stopping() else evaluation(state, done)
            leave = stopping()
            if done % recipe.checkpoint_every == 0 or done == num_steps or score is not None or leave:
                log.check()
                checkpoints.save(state, score)
            if leave and done < num_steps:
                checkpoints.wait()
                log.note(f"stopped by a signal after step {done}; the same command goes on from there")
                break
        checkpoints.wait()
    return state


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
        before = json.loads((run / name).read_text())
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
    alike = dataclasses.replace(recipe, name="", seed=0, epochs=None, steps=num_steps, **counts)
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


def _evaluation(
    recipe: Recipe, student: Sam, teacher: Teacher | None, inputs: Inputs, mesh: Mesh
) -> Callable[[TrainState, Callable[[], bool]], protocols.Result | None] | None:
    """The function that evaluates a state, or gives None if its second argument tells it to leave between batches.

    Raises ValueError at once if the held-out photos have no masks.
    """
    if not inputs.held_out:
        return None
    source = data.open_source(inputs.held_out)
    config = data.ExampleConfig(student.config.image_size, recipe.prompting.num_prompts)
    # As many photos as a device has at work in a step.
    size = max(1, min(recipe.batch_size // recipe.micro_batches // mesh.size, len(source)))
    count = -(-min(EVALUATED, len(source)) // size)

    def read() -> Any:
        return contextlib.closing(data.one_pass(source, config, size, reading=inputs.reading))

    with read() as batches:
        if not any(batch["valid"].any() for batch in itertools.islice(batches, count)):
            raise ValueError(f"the first photos of {', '.join(inputs.held_out)} have no masks to evaluate on")

    def evaluate(state: TrainState, stopping: Callable[[], bool]) -> protocols.Result | None:
        # Each process evaluates all photos, on its first device: nothing has to be gathered.
        params = _gathered(state.result)
        compared = None if teacher is None else (teacher.model, jax.device_put(teacher.params, jax.local_devices()[0]))

        def until_left(batches: Any) -> Iterator[Any]:
            for batch in itertools.islice(batches, count):
                if stopping():
                    raise _LeftError
                yield batch

        with read() as batches, contextlib.suppress(_LeftError):
            return protocols.evaluate(student, params, until_left(batches), teacher=compared)
        return None

    return evaluate


class _LeftError(Exception):
    """An evaluation was given up."""


def _gathered(params: Params) -> Params:
    """Params whole on the first device of this process."""
    first = jax.local_devices()[0]
    if jax.process_count() == 1:
        return jax.device_put(params, first)
    whole = jax.jit(_same, out_shardings=NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, P()))(params)
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole), first)


def _same(tree: Any) -> Any:
    return tree


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


class _Log:
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
        self._bar = tqdm(total=num_steps, initial=first, unit="step", disable=not self._main, file=sys.stderr)
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
        self.note(f"step {step}\n{protocols.table(result)}")
        self._since = time.perf_counter()
        return score

    def note(self, text: str) -> None:
        if self._main:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
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
