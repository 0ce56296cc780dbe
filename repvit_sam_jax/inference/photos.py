"""Many photo files, a prompt each: read ahead of the model, and segmented a batch at a time."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from .. import transforms
from .backends import ENCODE_BATCH
from .predictor import Prediction, SamPredictor
from .prompts import Prompt

READ_AHEAD = 2 * ENCODE_BATCH
"""Photos that wait in memory for the model, at most."""


PhotoPrompt = Prompt  # its name in version 0.1


@dataclasses.dataclass(frozen=True)
class Segmented:
    """A photo and its mask."""

    path: Path
    image: UInt8[np.ndarray, "h w 3"]
    prompt: Prompt
    mask: Bool[np.ndarray, "h w"]
    predicted_iou: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """A photo that could not be read, or that its prompt does not fit; `error` names it."""

    path: Path
    error: str


def list_photos(folder: Path) -> list[Path]:
    """The files of a folder, hidden ones excluded, with an extension that Pillow reads, by name."""
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in readable and path.is_file() and not path.name.startswith(".")
    )


def read_prompts_file(file: Path, photos: Sequence[Path]) -> dict[Path, Prompt]:
    """Prompts from JSON, {"photo.jpg": {"points": [[x, y], [x, y, 0]], "box": [x1, y1, x2, y2]}}.

    Args:
      file: a photo needs points or a box or both; a third number of a point is its label, 1 if there is none.
      photos: those that may be named.

    Returns:
      The prompts of the photos that are named.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another form, or a name that is none of a photo.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of prompts at {file}")
    known = {path.name: path for path in photos}
    try:
        given = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
        if not isinstance(given, dict):
            raise ValueError('expected an object, {"photo.jpg": {"points": [[x, y]]}}')
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"no photo of the folder has the name {', '.join(unknown)}")
        return {known[name]: _read_prompt(name, prompt) for name, prompt in sorted(given.items())}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_names(photos: Sequence[Path]) -> None:
    """Raises ValueError if the masks of two photos would have one name, on file systems without case too."""
    first: dict[str, Path] = {}
    for path in photos:
        other = first.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise ValueError(f"{other.name} and {path.name} would write the same mask, {path.stem}.png; rename one")


def segment_photos(
    predictor: SamPredictor,
    prompts: Mapping[Path, Prompt],
    load: Callable[[Path], np.ndarray] = transforms.load_image,
) -> Iterator[Segmented | Failure]:
    """The masks of photos, in the order in which batches are full; the last photo's come last.

    Ambiguous prompts and others are different programs, so each kind has batches of its own. Whatever the number of
    photos, memory holds `READ_AHEAD` that wait, and not yet `ENCODE_BATCH` of either kind that are collected.

    Args:
      predictor: whichever image it has stays set.
      prompts: photo files and their prompts.
      load: reads a photo; called from threads.
    """
    groups: dict[bool, list[tuple[Path, np.ndarray, Prompt]]] = {True: [], False: []}
    for path, photo in _read_ahead(list(prompts), load):
        prompt = prompts[path]
        try:
            image = photo.result()
            _check(path, image, prompt, predictor.config.image_size)
        except (ValueError, OSError) as error:
            yield Failure(path, str(error))
            continue
        group = groups[prompt.is_ambiguous]
        group.append((path, image, prompt))
        if len(group) == ENCODE_BATCH:
            yield from _segment(predictor, group)
            group.clear()
    for group in groups.values():
        yield from _segment(predictor, group)


def best_mask(prediction: Prediction) -> tuple[Bool[np.ndarray, "h w"], float]:
    """The mask of a single prompt with the highest predicted IoU, and that."""
    masks, iou, _ = prediction
    best = int(np.argmax(iou))
    return masks[best], float(iou[best])


def _segment(predictor: SamPredictor, group: Sequence[tuple[Path, np.ndarray, Prompt]]) -> Iterator[Segmented]:
    embedded = predictor.embed([image for _, image, _ in group])
    # Everything is dispatched before anything is fetched, so an accelerator never waits for the host.
    dispatched = [
        predictor.dispatch(image, [prompt], prompt.is_ambiguous, single=True)
        for image, (_, _, prompt) in zip(embedded, group, strict=True)
    ]
    for (path, image, prompt), pending in zip(group, dispatched, strict=True):
        yield Segmented(path, image, prompt, *best_mask(predictor.fetch(pending)))


def _check(path: Path, image: np.ndarray, prompt: Prompt, image_size: int) -> None:
    """Whatever would fail in a batch."""
    try:
        transforms.check_scalable(image, image_size)
        prompt.check(image.shape[:2])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_ahead(paths: Sequence[Path], load: Callable[[Path], np.ndarray]) -> Iterator[tuple[Path, Future[np.ndarray]]]:
    """Photos in order, while the following `READ_AHEAD` are read in threads."""
    pool = ThreadPoolExecutor(min(READ_AHEAD, os.cpu_count() or 1))
    try:
        waiting: collections.deque[tuple[Path, Future[np.ndarray]]] = collections.deque()
        for path in paths:
            waiting.append((path, pool.submit(load, path)))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return dict(pairs)


def _read_prompt(name: str, given: Any) -> Prompt:
    if not isinstance(given, dict) or not given:
        raise ValueError(f'{name}: expected "points", "box" or both')
    if unknown := sorted(set(given) - {"points", "box"}):
        raise ValueError(f'{name}: unknown {", ".join(unknown)}; expected "points", "box" or both')
    points = given.get("points", [])
    if not isinstance(points, list) or ("points" in given and not points):
        raise ValueError(f"{name}: points are [[x, y], [x, y, label]], got {json.dumps(points)}")
    for point in points:
        if not _are_numbers(point, 2, 3):
            raise ValueError(f"{name}: a point is [x, y] or [x, y, label], got {json.dumps(point)}")
        if point[2:] not in ([], [0], [1]):
            raise ValueError(f"{name}: labels are 1 (foreground) or 0 (background), got {json.dumps(point)}")
    box = given.get("box")
    if "box" in given and not _are_numbers(box, 4):
        raise ValueError(f"{name}: a box is [x1, y1, x2, y2], got {json.dumps(box)}")
    return Prompt([point[:2] for point in points], [int(point[2]) if point[2:] else 1 for point in points], box)


def _are_numbers(values: Any, *counts: int) -> bool:
    """Whether this is a list of so many finite numbers."""
    return (
        isinstance(values, list)
        and len(values) in counts
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and all(abs(value) < 1e30 for value in values)
    )
