"""`repvit-sam eval TASK`: models on a task, in one table beside what is published."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..config import Dtype
from ..files import write_atomically
from ..terminal import COMPILE_CACHE, counted, require, use_compile_cache
from .tasks import TASKS, find_data

if TYPE_CHECKING:
    from .result import Result
    from .tasks.protocol import Subject


SLOW_TO_SCORE = ("edges", "davis", "uvo")
"""Tasks that by default have a process a core."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What all tasks take."""

    weights: tuple[str, ...] = ()
    """Models: what `repvit-sam segment --weights` takes, or folders of `export onnx`; the embedded one without any."""
    out: Path = Path("evaluation")
    """Folder of the results, with a folder for each task. The same command goes on where it was stopped, and reads what
    is finished."""
    limit: int | None = None
    """Items (photos or videos), the first ones; all otherwise."""
    workers: int | None = None
    """Processes that score; one a core if scoring takes long, otherwise none."""
    pictures: int = 0
    """Items, the first ones, that a picture is drawn of: photo, truth, and each model's answer."""
    dtype: Dtype = "float32"
    """Precision of the arithmetic."""
    compile_cache: str | None = COMPILE_CACHE
    """Folder that keeps compiled programs for the next run; None keeps none."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the results as JSON."""


Common = Annotated[Options, tyro.conf.arg(name="")]


def edges(*, data: Path, maps: tuple[Path, ...] = (), sobel: bool = False, options: Common = Options()) -> None:
    """Edges on BSDS500: ODS, OIS and AP.

    Args:
      data: The folder of BSDS500.
      maps: Folders of other detectors' thin edge maps, NAME.png or NAME.mat (ucm2), to be scored besides.
      sobel: Score the Sobel filter of the photos besides.
      options: What all tasks take.
    """
    require("skimage", extra="eval")
    from .tasks.edges import Maps, PhotoSobel

    others: list[Subject] = [*map(Maps, maps), *[PhotoSobel()] * sobel]
    _show(_measure("edges", data, None, options, others), options)


def of(task: str) -> Callable[..., None]:
    """The command of another task."""

    def command(*, data: Path, proposals: Path | None = None, options: Common = Options()) -> None:
        _show(_measure(task, data, proposals, options), options)

    command.__doc__ = f"""{TASKS[task][0].upper()}{TASKS[task][1:]}.

    Args:
      data: The folder of the data set.
      proposals: The file of boxes or tracks that the task starts from, if it does.
      options: What all tasks take.
    """
    return command


def tracks(
    *,
    folder: Annotated[Path, tyro.conf.arg(name="from")],
    out: Path,
    positives: int = 16,
    points: int | None = None,
) -> None:
    """Tracks of videos, from a tracker's files to the one that `davis` and `uvo` take as proposals.

    Args:
      folder: Holds VIDEO.npz for each video, with `size` (height, width) and SAM-PT's `trajectories` and
        `visibilities`, or CoTracker's `tracks` and `visibility`.
      out: The file, .npz.
      positives: Points of each object that are on it, the first ones.
      points: Points of each object, which CoTracker's form does not say; as many as positives if not given.
    """
    from .proposals.tracks import convert

    print(f"{counted(convert(folder, out, positives, points), 'video')} in {out}")


def everything(*, data_root: Path, options: Common = Options()) -> None:
    """All tasks whose data are there.

    Args:
      data_root: A folder with a folder for each task, under the task's name or the data set's; proposals are
        `proposals/TASK` in it, a file or a folder, with any extension.
      options: What all tasks take.
    """
    if not data_root.is_dir():
        raise ValueError(f"--data-root {data_root} is no folder")
    found = {task: place for task in TASKS if (place := find_data(data_root, task))}
    if not found:
        raise ValueError(f"--data-root {data_root} has no folder of a data set, such as BSDS500 or coco")
    results: list[Result] = []
    skipped = {task: "there is no folder of its data" for task in TASKS if task not in found}
    for task, given in found.items():
        try:
            results += _measure(task, *given, options)
        except ValueError as error:
            skipped[task] = str(error)
    _show(results, options)
    for task, why in skipped.items():
        print(f"{task}: not measured, {why}", file=sys.stderr)


def _measure(
    task: str, data: Path, proposals: Path | None, options: Options, others: Sequence[Subject] = ()
) -> list[Result]:
    from . import pictures, run
    from .result import table
    from .segmenters import find_segmenter, names_of, open_segmenter
    from .tasks import open_task

    opened = open_task(task, data, proposals)
    weights = options.weights or (() if others else ("demo",))
    for given in weights:  # hours before the last one is opened
        find_segmenter(given)
    use_compile_cache(options.compile_cache)
    names = names_of([*(other.name for other in others), *weights])
    place = run.Place(data, proposals, options.out / task)
    workers = options.workers
    if workers is None:
        workers = (os.cpu_count() or 1) if task in SLOW_TO_SCORE else 0
    segmenters = (open_segmenter(w, options.dtype, n) for w, n in zip(weights, names[len(others) :], strict=True))
    results = [
        run.run(opened, subject, place, options.limit, workers, options.pictures)
        for subject in itertools.chain(others, segmenters)
    ]
    if options.pictures:
        keys = list(opened.keys)[: options.limit][: options.pictures]
        pictures.compose(place.out, keys, names)
    write_atomically(place.out / "table.md", lambda path: path.write_text(table(results) + "\n"))
    return results


def _show(results: Sequence[Result], options: Options) -> None:
    from .result import table

    tasks = dict.fromkeys(result.task for result in results)
    if options.as_json:
        print(json.dumps([result.as_json() for result in results], indent=1))
    else:
        print("\n\n".join(table([result for result in results if result.task == task]) for task in tasks))
