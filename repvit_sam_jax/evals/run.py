"""Runs a task on a model: items read ahead, segmented several at once, scored by processes, and kept one by one."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files import sha256_of
from ..inference.photos import read_ahead
from ..parts import Parts
from . import pictures
from .result import Result, hardware, versions
from .tasks.protocol import Subject, Task

WAITING = 2
"""Answers that wait for each process, at most."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run reads and writes."""

    data: Path
    """The data set's folder."""
    proposals: Path | None
    out: Path
    """Folder of the task's results: a JSON file and for the time of a run a folder, both of the model's name."""


def run(
    task: Task, subject: Subject, place: Place, limit: int | None = None, workers: int = 0, num_pictures: int = 0
) -> Result:
    """The numbers of a model on a task.

    Items that an earlier run of the same settings kept are not done again, and a finished result is read.

    Args:
      task: from `tasks.open_task`.
      subject: the model.
      place: its folders.
      limit: items, the first ones; all if None.
      workers: processes that score; 0 for this one.
      num_pictures: items that pictures are kept of, the first ones.

    Raises:
      ValueError: an item that can't be read, nothing to count, or results in the folder that are of other settings.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    keys = list(task.keys)[:limit]
    about: dict[str, Any] = {
        "task": task.name,
        "settings": dict(task.settings),
        "model": dict(subject.about),
        "data": _about(place),
    }
    target = place.out / f"{subject.name}.json"
    drawn = pictures.Kept(place.out, subject.name, keys[:num_pictures])
    if target.is_file() and (done := _finished(target, about, len(keys))):
        for _ in _records(task, subject, [key for key in keys if key in drawn.missing], 0, drawn):
            pass
        return done
    kept = _measure(task, subject, keys, Parts(place.out / subject.name, about), workers, drawn)
    numbers, counts = task.summarise({key: part["record"] for key, part in kept.items()})
    result = Result(
        task.name,
        subject.name,
        numbers,
        counts,
        dict(task.settings),
        dict(subject.about),
        {**about["data"], "items": len(keys), "of": len(task.keys)},
        {name: sum(part["seconds"][name] for part in kept.values()) for name in ("segment", "score")},
        versions(),
        hardware(),
    )
    result.write(target)
    shutil.rmtree(place.out / subject.name)
    return result


def _measure(
    task: Task, subject: Subject, keys: Sequence[str], parts: Parts, workers: int, drawn: pictures.Kept
) -> dict[str, Any]:
    """`record` and `seconds` of each item, those of an earlier run among them."""
    parts.check()
    parts.start()
    left = [key for key in keys if parts.read(key) is None or key in drawn.missing]
    with tqdm(total=len(keys), initial=len(keys) - len(left), unit="item", desc=f"{task.name}, {subject.name}") as bar:
        for key, record, seconds in _records(task, subject, left, workers, drawn):
            parts.write(key, {"record": record, "seconds": seconds})
            bar.update()
    return {key: parts.read(key) for key in keys}


def _about(place: Place) -> dict[str, Any]:
    about: dict[str, Any] = {"folder": str(place.data.resolve())}
    if (given := place.proposals) is not None:
        files = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]
        about |= {"proposals": str(given.resolve()), "proposals_sha256": sha256_of(files)}
    return about


def _finished(target: Path, about: Mapping[str, Any], items: int) -> Result | None:
    """The result of an earlier run, if it is of as many items. Raises ValueError if it has other settings."""
    result = Result.read(target)
    before = {"settings": result.settings, "model": result.model}
    changed = [name for name, value in before.items() if value != about[name]]
    changed += ["data"] * any(result.data.get(name) != value for name, value in about["data"].items())
    if changed:
        raise ValueError(f"{target} is a result of other {' and '.join(changed)}; give another --out")
    return result if result.data["items"] == items else None


def _records(
    task: Task, subject: Subject, keys: Sequence[str], workers: int, drawn: pictures.Kept
) -> Iterator[tuple[str, Any, dict[str, float]]]:
    """Items with their records and seconds, in order, as they are done."""
    waiting: collections.deque[tuple[str, Future[tuple[Any, float]], float]] = collections.deque()

    def oldest() -> tuple[str, Any, dict[str, float]]:
        key, future, seconds = waiting.popleft()
        record, scoring = future.result()
        return key, record, {"segment": seconds, "score": scoring}

    with _pool(workers) as submit, contextlib.closing(read_ahead(keys, task.load)) as reading:
        read = ((key, future.result()) for key, future in reading)
        while group := list(itertools.islice(read, task.group)):
            items = [item for _, item in group]
            start = time.perf_counter()
            answers = task.segment(subject, items)
            seconds = (time.perf_counter() - start) / len(group)
            for (key, item), answer in zip(group, answers, strict=True):
                if key in drawn.missing:
                    drawn.keep(key, task.panels(item), task.panel(item, answer))
                waiting.append((key, submit(_timed, task.score, answer), seconds))
            while len(waiting) > WAITING * workers:
                yield oldest()
        while waiting:
            yield oldest()


def _timed(score: Callable[[Any], Any], answer: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return score(answer), time.perf_counter() - start


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Future[Any]]]:
    """A function that starts a call, in another process if there are any."""
    if not workers:
        yield _at_once
        return
    # Processes are started anew: JAX has threads, which do not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool.submit
        finally:
            pool.shutdown(cancel_futures=True)


def _at_once(function: Callable[..., Any], *args: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(function(*args))
    return future
