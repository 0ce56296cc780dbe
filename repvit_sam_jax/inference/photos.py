"""Many photo files, a prompt each: read ahead of the model, and segmented a batch at a time."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFile

from .. import transforms
from ..config import Choice, Format
from .backends import ENCODE_BATCH
from .predictor import EmbeddedImage, Prediction, SamPredictor
from .prompts import Prompt

Name = TypeVar("Name")
Photo = TypeVar("Photo")

READ_AHEAD = 2 * ENCODE_BATCH
"""Photos that wait in memory for the model, at most."""


PhotoPrompt = Prompt  # its name in version 0.1


@dataclasses.dataclass(frozen=True)
class Segmented:
    """A photo, and a mask for a prompt."""

    path: Path
    embedded: EmbeddedImage
    image: UInt8[np.ndarray, "h w 3"]
    number: int
    """Number of the mask among those of the photo."""
    prompt: Prompt
    mask: Bool[np.ndarray, "h w"]
    predicted_iou: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """A photo that could not be read, or that a prompt does not fit; `error` names it."""

    path: Path
    error: str


HEIF = (".heic", ".heif")
RAW, FILMS = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2"), (".mp4", ".mov", ".avi", ".mkv", ".mpg")
UNREAD = (*RAW, *FILMS, ".svg")
"""Pictures and films that Pillow can't decode."""


def list_photos(folder: Path) -> list[Path]:
    """The files of a folder, hidden ones excluded, with an extension that Pillow decodes, by name.

    HEIC is among them if `pillow-heif` is installed. A warning names other kinds of pictures that are left out.
    """
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    suffixes = collections.Counter(path.suffix.lower() for path in files)
    if any(suffixes[suffix] for suffix in HEIF):
        transforms.register_heif()
    readable = _decoded_suffixes()
    skipped = [f"{suffixes[s]} {s}" for s in (*HEIF, *UNREAD) if suffixes[s] and s not in readable]
    if skipped:
        advice = "; pip install pillow-heif reads HEIC" if any(suffixes[s] and s not in readable for s in HEIF) else ""
        warnings.warn(f"{folder}: left out, since Pillow can't read them: {', '.join(skipped)}{advice}", stacklevel=2)
    return sorted(path for path in files if path.suffix.lower() in readable)


def _decoded_suffixes() -> set[str]:
    """Extensions of formats that Pillow decodes, and not only recognises."""
    suffixes = Image.registered_extensions()  # loads the plugins
    stubs = {kind for kind, (factory, _) in Image.OPEN.items() if _is_stub(factory)}
    return {suffix for suffix, kind in suffixes.items() if kind in Image.OPEN and kind not in stubs}


def _is_stub(factory: Any) -> bool:
    is_stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return is_stub or getattr(factory, "format", None) == "MPEG"


def photo_names(photos: Sequence[Path], form: Format = "png") -> dict[Path, str]:
    """What files about photos are called, without an extension: `mask_names` of one each.

    Raises:
      ValueError: the form is `yolo`, whose labels are called by their photos' stems, and two photos share one.
    """
    names = {path: name for path, (name,) in mask_names(dict.fromkeys(photos, 1)).items()}
    shared = [path.name for path, name in names.items() if name != path.stem] if form == "yolo" else []
    if shared:
        raise ValueError(f"YOLO calls labels by the stems of photos, and these share theirs: {', '.join(shared)}")
    return names


def mask_names(counts: Mapping[Path, int]) -> dict[Path, list[str]]:
    """What the masks of photos are called, without an extension; no two names are the same, whatever their case.

    A photo's masks are called as its stem or, of photos of one stem, as its whole name; several have numbers besides.
    Where two photos' names are the same all the same, such as those of `a.jpg`, `a.png` and `a.jpg.png`, all photos'
    masks have whole names.

    Args:
      counts: masks of each photo, all of one folder.
    """
    stems = collections.Counter(path.stem.casefold() for path in counts)
    names = _numbered({path: path.stem if stems[path.stem.casefold()] == 1 else path.name for path in counts}, counts)
    different = collections.Counter(name.casefold() for of_photo in names.values() for name in of_photo)
    if different and max(different.values()) > 1:
        return _numbered({path: path.name for path in counts}, counts)
    return names


def _numbered(names: Mapping[Path, str], counts: Mapping[Path, int]) -> dict[Path, list[str]]:
    several = lambda path: [f"{names[path]}_{number}" for number in range(counts[path])]
    return {path: [name] if counts[path] == 1 else several(path) for path, name in names.items()}


def read_prompts_file(file: Path, photos: Sequence[Path]) -> dict[Path, list[Prompt]]:
    """Prompts from JSON, {"photo.jpg": {"points": [[x, y], [x, y, 0]], "box": [x1, y1, x2, y2]}}.

    Args:
      file: a photo needs points or a box or both, which are one object, or a list of such objects; a third number of a
        point is its label, 1 if there is none.
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
        # Some editors put a byte order mark in front.
        given = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition)
        if not isinstance(given, dict):
            raise ValueError('expected an object, {"photo.jpg": {"points": [[x, y]]}}')
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"no photo of the folder has the name {', '.join(unknown)}")
        return {known[name]: _read_objects(name, objects) for name, objects in sorted(given.items())}
    except RecursionError as error:
        raise ValueError(f"{file}: brackets within brackets, too many") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def segment_photos(
    predictor: SamPredictor,
    prompts: Mapping[Path, Sequence[Prompt]],
    load: Callable[[Path], np.ndarray] = transforms.load_image,
    *,
    choice: Choice = "auto",
    stored: Callable[[Path], EmbeddedImage] | None = None,
) -> Iterator[Segmented | Failure]:
    """The masks of photos, in the order of the photos and of their prompts, failures as soon as they are known.

    Whatever the number of photos, memory holds `READ_AHEAD` that wait, and up to `ENCODE_BATCH` that are segmented.

    Args:
      predictor: whichever image it has stays set.
      prompts: photo files, and prompts of each; every prompt has a mask of its own.
      load: reads a photo; called from threads.
      choice: which masks of each prompt.
      stored: reads a photo's embedding, in place of encoding it.
    """
    batch: list[tuple[Path, np.ndarray, EmbeddedImage | None]] = []
    for path, photo in read_ahead(list(prompts), load):
        try:
            image = photo.result()
            _check(path, image, prompts[path], predictor.config.image_size)
            embedded = None if stored is None else stored(path)
            if embedded is not None and embedded.size != image.shape[:2]:
                raise ValueError(f"{path}: {other_size(embedded.size, image.shape[:2])}")
        except (ValueError, OSError) as error:
            yield Failure(path, str(error))
            continue
        batch.append((path, image, embedded))
        if len(batch) == ENCODE_BATCH:
            yield from _segment(predictor, batch, prompts, choice)
            batch.clear()
    if batch:
        yield from _segment(predictor, batch, prompts, choice)


def best_mask(prediction: Prediction) -> tuple[Bool[np.ndarray, "h w"], float]:
    """The mask of a single prompt with the highest predicted IoU, and that."""
    masks, iou, _ = prediction
    best = int(np.argmax(iou))
    return masks[best], float(iou[best])


def wants_three(prompt: Prompt, choice: Choice) -> bool:
    """Whether the decoder is asked for three masks."""
    return prompt.is_ambiguous if choice == "auto" else choice != "single"


def choose(prediction: Prediction, choice: Choice) -> list[tuple[Bool[np.ndarray, "h w"], float]]:
    """The chosen masks of a single prompt, each with its predicted IoU.

    Args:
      prediction: what `SamPredictor.predict` gave, for a prompt that `wants_three` or not.
      choice: `single`, the decoder's single mask; of its three `best`, the one with the highest predicted IoU, `all`,
        or one by its number; `auto` is `best` for a single point, which is ambiguous, and `single` for others.
    """
    masks, iou, _ = prediction
    every = [(mask, float(score)) for mask, score in zip(masks, iou, strict=True)]
    if choice.isdigit():
        return [every[int(choice)]]
    return every if choice == "all" else [best_mask(prediction)]


def count_masks(prompts: Sequence[Prompt], choice: Choice) -> int:
    """Masks that these prompts have together."""
    return len(prompts) * (3 if choice == "all" else 1)


def other_size(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """What is wrong with the embedding of a photo of another (height, width)."""
    sizes = [f"{width} x {height}" for height, width in (found, expected)]
    return f"the embedding is of a photo of {sizes[0]} pixels, not {sizes[1]}; save it again with --save-embedding"


def answer(
    predictor: SamPredictor, photos: Sequence[tuple[Path, np.ndarray, EmbeddedImage, Sequence[Prompt]]], choice: Choice
) -> Iterator[Segmented]:
    """The masks of photos that are embedded."""
    # Everything is dispatched before anything is fetched, so an accelerator never waits for the host.
    dispatched = [
        [predictor.dispatch(embedded, [prompt], wants_three(prompt, choice), single=True) for prompt in prompts]
        for _, _, embedded, prompts in photos
    ]
    for (path, image, embedded, prompts), of_photo in zip(photos, dispatched, strict=True):
        numbers = itertools.count()
        for prompt, pending in zip(prompts, of_photo, strict=True):
            for mask, predicted_iou in choose(predictor.fetch(pending), choice):
                yield Segmented(path, embedded, image, next(numbers), prompt, mask, predicted_iou)


def _segment(
    predictor: SamPredictor,
    batch: Sequence[tuple[Path, np.ndarray, EmbeddedImage | None]],
    prompts: Mapping[Path, Sequence[Prompt]],
    choice: Choice,
) -> Iterator[Segmented]:
    new = iter(predictor.embed([image for _, image, embedded in batch if embedded is None]))
    photos = [(path, image, embedded or next(new), prompts[path]) for path, image, embedded in batch]
    yield from answer(predictor, photos, choice)


def _check(path: Path, image: np.ndarray, prompts: Sequence[Prompt], image_size: int) -> None:
    """Whatever would fail in a batch."""
    try:
        transforms.check_scalable(image, image_size)
        for number, prompt in enumerate(prompts):
            prompt.check(image.shape[:2], f" of prompt {number}" if len(prompts) > 1 else "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_ahead(names: Sequence[Name], load: Callable[[Name], Photo]) -> Generator[tuple[Name, Future[Photo]]]:
    """Photos in order, while the following `READ_AHEAD` are read in threads."""
    pool = ThreadPoolExecutor(min(READ_AHEAD, os.cpu_count() or 1))
    try:
        waiting: collections.deque[tuple[Name, Future[Photo]]] = collections.deque()
        for name in names:
            waiting.append((name, pool.submit(load, name)))
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


def _read_objects(name: str, given: Any) -> list[Prompt]:
    if not isinstance(given, list):
        return [_read_prompt(name, given)]
    if not given:
        raise ValueError(f"{name}: the list of prompts is empty")
    return [_read_prompt(f"{name}, prompt {i}", prompt) for i, prompt in enumerate(given)]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _read_prompt(name: str, given: Any) -> Prompt:
    if not isinstance(given, dict) or not given:
        raise ValueError(f'{name}: expected "points", "box" or both')
    if unknown := sorted(set(given) - {"points", "box"}):
        raise ValueError(f'{name}: unknown {", ".join(unknown)}; expected "points", "box" or both')
    points = given.get("points", [])
    if not isinstance(points, list) or ("points" in given and not points):
        raise ValueError(f"{name}: points are [[x, y], [x, y, label]], got {_shown(points)}")
    for point in points:
        if not _are_numbers(point, 2, 3):
            raise ValueError(f"{name}: a point is [x, y] or [x, y, label], got {_shown(point)}")
        if point[2:] not in ([], [0], [1]):
            raise ValueError(f"{name}: labels are 1 (foreground) or 0 (background), got {_shown(point)}")
    box = given.get("box")
    if "box" in given and not _are_numbers(box, 4):
        raise ValueError(f"{name}: a box is [x1, y1, x2, y2], got {_shown(box)}")
    return Prompt([point[:2] for point in points], [int(point[2]) if point[2:] else 1 for point in points], box)


def _are_numbers(values: Any, *counts: int) -> bool:
    """Whether this is a list of so many finite numbers."""
    return (
        isinstance(values, list)
        and len(values) in counts
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and all(abs(value) < 1e30 for value in values)
    )
