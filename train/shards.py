"""Synthetic scenes as tar shards in SA-1B's layout."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from repvit_sam_jax.checkpoint import write_atomically
from repvit_sam_jax.masks import counts_to_coco, mask_to_counts

from .scenes import Scene, View, render

SHARD_SIZE = 1000
"""Scenes in a tar."""

_SETTINGS = "scenes.json"
_JPEG_QUALITIES = range(50, 97)


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
    settings = {"count": count, "seed": seed, "size": size, "shard_size": SHARD_SIZE}
    _prepare(folder, settings | ({"view": view} if view != "usual" else {}))
    starts = range(0, count, SHARD_SIZE)
    shards = {folder / f"sa_{i:06d}.tar": range(n, min(n + SHARD_SIZE, count)) for i, n in enumerate(starts)}
    missing = {path: numbers for path, numbers in shards.items() if not path.exists()}
    done = count - sum(map(len, missing.values()))
    draw = partial(members_of, seed, size, view=view)
    with _mapper(workers) as mapped, tqdm(total=count, initial=done, unit="scene") as progress:
        for path, numbers in missing.items():
            write_atomically(path, partial(_write_tar, mapped(draw, numbers), progress))
    return list(shards)


def members_of(seed: int, size: int, number: int, *, view: View = "usual") -> dict[str, bytes]:
    """The files of a scene, by name."""
    rng = np.random.Generator(np.random.PCG64([seed, number, size]))
    shorter = round(size * rng.choice([0.5625, 0.6667, 0.75, 1.0]))
    height, width = (shorter, size) if rng.random() < 0.7 else (size, shorter)
    scene = render(seed, number, (height, width), view=view)
    photo = io.BytesIO()
    Image.fromarray(scene.image).save(photo, "JPEG", quality=int(rng.choice(_JPEG_QUALITIES)))
    text = json.dumps(_describe(scene, number), separators=(",", ":"))
    return {f"sa_{number}.jpg": photo.getvalue(), f"sa_{number}.json": text.encode()}


def _describe(scene: Scene, number: int) -> dict[str, Any]:
    height, width = scene.image.shape[:2]
    annotations = []
    for i, mask in enumerate(scene.masks):
        counts, (x1, y1, x2, y2) = mask_to_counts(mask)
        y, x = np.nonzero(mask)
        annotations.append(
            {
                "id": i,
                "segmentation": counts_to_coco(counts, (height, width)),
                "area": len(x),
                "bbox": [x1, y1, x2 - x1, y2 - y1],  # as SAM's generator has it, without the last pixels
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "point_coords": [[float(x[len(x) // 2]), float(y[len(x) // 2])]],
                "crop_box": [0, 0, width, height],
            }
        )
    image = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
    return {"image": image, "annotations": annotations}


def _prepare(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / _SETTINGS
    if file.is_file():
        if (found := json.loads(file.read_bytes())) != settings:
            raise ValueError(f"{folder} holds scenes with the settings {found}, not {settings}; give a new folder")
        for rest in folder.glob(".sa_*.tar.*"):
            rest.unlink()  # of a run that was killed
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no empty folder, nor one of scenes; give a new one")
    else:
        write_atomically(file, lambda at: at.write_text(json.dumps(settings)))


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable]]:
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=8)


def _write_tar(scenes: Iterable[dict[str, bytes]], progress: tqdm, path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for members in scenes:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            progress.update()
