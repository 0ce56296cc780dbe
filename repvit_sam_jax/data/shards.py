"""Photos with masks as tar shards in SA-1B's layout; synthetic scenes in them."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from tqdm import tqdm

from ..files import is_taken, write_atomically
from ..inference.masks import box_of
from ..inference.rle import counts_to_coco, mask_to_counts
from .synthetic.scenes import View, render

SHARD_SIZE = 1000
"""Photos in a tar."""

_JPEG_QUALITIES = range(50, 97)

Members = dict[str, bytes]
"""Files of a photo, by name."""


def write_shards(
    folder: Path, count: int, *, seed: int = 0, size: int = 512, view: View = "usual", workers: int = 1
) -> list[Path]:
    """Write `sa_000000.tar` and so on, each with `sa_N.jpg` and `sa_N.json` of SA-1B's fields.

    Shards that are there already are kept, so an interrupted run goes on where it stopped.

    Args:
      folder: new, empty, or of an earlier run with the same settings.
      count: scenes.
      seed: of the series.
      size: longer side in pixels; the shorter one varies.
      view: as for `scenes.render`.
      workers: processes that draw.

    Returns:
      the shards.

    Raises:
      ValueError: the folder holds something else, or scenes with other settings; or an argument is out of range.
    """
    if count < 1 or size < 64 or workers < 1:
        raise ValueError(f"count and workers must be at least 1 and size 64, got {count}, {workers} and {size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    settings: dict[str, int | str] = {"count": count, "seed": seed, "size": size, "shard_size": SHARD_SIZE}
    if view != "usual":
        settings["view"] = view
    draw = partial(members_of, seed, size, view=view)
    return write_series(folder, count, draw, "scene", settings, workers=workers)


def write_series(
    folder: Path,
    count: int,
    members_of: Callable[[int], Members],
    unit: str,
    settings: dict[str, Any],
    workers: int = 1,
) -> list[Path]:
    """Write the photos number 0 to count - 1 as shards; those that are there already are kept.

    Args:
      folder: new, empty, or of an earlier run with the same settings.
      count: photos.
      members_of: the files of a photo by its number; pickled if there are several workers.
      unit: what the photos are called; the settings are kept in `UNITs.json`.
      settings: all that the photos depend on, as JSON.
      workers: processes.

    Returns:
      the shards.

    Raises:
      ValueError: the folder holds something else, or photos with other settings.
    """
    _prepare(folder, f"{unit}s", settings)
    starts = range(0, count, SHARD_SIZE)
    shards = {folder / f"sa_{i:06d}.tar": range(n, min(n + SHARD_SIZE, count)) for i, n in enumerate(starts)}
    missing = {path: numbers for path, numbers in shards.items() if not path.exists()}
    done = count - sum(map(len, missing.values()))
    with _mapper(workers) as mapped, tqdm(total=count, initial=done, unit=unit, disable=None) as progress:
        for path, numbers in missing.items():
            write_atomically(path, partial(_write_tar, mapped(members_of, numbers), progress))
    return list(shards)


def members_of(seed: int, size: int, number: int, *, view: View = "usual") -> Members:
    """The files of a scene."""
    rng = np.random.Generator(np.random.PCG64([seed, number, size]))
    shorter = round(size * rng.choice([0.5625, 0.6667, 0.75, 1.0]))
    height, width = (shorter, size) if rng.random() < 0.7 else (size, shorter)
    scene = render(seed, number, (height, width), view=view)
    return pack(scene.image, scene.masks, number, rng)


def pack(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    number: int,
    rng: np.random.Generator,
    scores: Sequence[float] | None = None,
) -> Members:
    """A photo as JPEG, of a quality that `rng` draws, and its masks as JSON.

    Args:
      image: the photo.
      masks: none of them empty.
      number: of the photo.
      rng: draws one number.
      scores: how good the masks are, in [0, 1]; they are exact if there are none.
    """
    photo = io.BytesIO()
    Image.fromarray(image).save(photo, "JPEG", quality=int(rng.choice(_JPEG_QUALITIES)))
    height, width = image.shape[:2]
    annotations = []
    for i, (mask, score) in enumerate(zip(masks, scores or [1.0] * len(masks), strict=True)):
        x1, y1, x2, y2 = box_of(mask)  # type: ignore[misc]
        y, x = np.nonzero(mask)
        annotations.append(
            {
                "id": i,
                "segmentation": counts_to_coco(mask_to_counts(mask), (height, width)),
                "area": len(x),
                "bbox": [x1, y1, x2 - x1, y2 - y1],  # as SAM's generator has it, without the last pixels
                "predicted_iou": score,
                "stability_score": score,
                "point_coords": [[float(x[len(x) // 2]), float(y[len(x) // 2])]],
                "crop_box": [0, 0, width, height],
            }
        )
    about = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
    text = json.dumps({"image": about, "annotations": annotations}, separators=(",", ":"))
    return {f"sa_{number}.jpg": photo.getvalue(), f"sa_{number}.json": text.encode()}


def _prepare(folder: Path, what: str, settings: dict[str, Any]) -> None:
    file = folder / f"{what}.json"
    if file.is_file():
        if (found := json.loads(file.read_bytes())) != settings:
            raise ValueError(f"{folder} holds {what} with the settings {found}, not {settings}; give a new folder")
        for rest in folder.glob(".sa_*.tar.*"):
            rest.unlink()  # of a run that was killed
    elif is_taken(folder):
        raise ValueError(f"{folder} exists and is no empty folder, nor one of {what}; give a new one")
    else:
        write_atomically(file, lambda at: at.write_text(json.dumps(settings)))


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable]]:
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=8)


def _write_tar(photos: Iterable[Members], progress: tqdm, path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for members in photos:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            progress.update()
