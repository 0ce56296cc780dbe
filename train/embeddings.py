"""The teacher's image embeddings of a source on disk, made once and read in place of running the teacher."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from repvit_sam_jax import data
from repvit_sam_jax.data.sources import Source
from repvit_sam_jax.files import write_atomically
from repvit_sam_jax.inference.backends import encode_pixels

from .teacher import Teacher

HERE = data.Reading()

SHARD = 4096
"""Photos a file: 8.6 GB at S = 1024."""


class EmbeddingCache:
    """A folder: `meta.json`, float16 `embeddings-00000.npy` [N, S/16, S/16, C] and so on, `done.npy` uint8 [photos].

    `done` is 1 where a photo's embedding was written, 2 where the photo is damaged and has none.
    """

    def __init__(self, folder: Path, teacher: Teacher, source: Source) -> None:
        """Open a complete cache.

        Raises:
          FileNotFoundError: there is no cache.
          ValueError: it was made by another teacher or precision, of other photos or for another image size, or is not
            complete.
        """
        self._folder, self._count = folder, len(source)
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(f"no cache of embeddings at {folder}; make it with repvit-sam train embed")
        _check(folder, _meta(teacher, source))
        done = _open(folder / "done.npy", "r")
        if not done.all():
            raise ValueError(f"{folder} lacks {np.count_nonzero(done == 0)} of {len(done)} photos: run embed again")
        self._done = done
        self._shards = [_open(path, "r") for path in _shards(folder, len(source))]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Embeddings [N, h, w, C] of photos by number. Raises ValueError for one that was damaged when it was made."""
        if not (self._done[index] == 1).all():
            bad = index[self._done[index] != 1].tolist()
            raise ValueError(f"{self._folder} has no embedding of photo(s) {bad}, which could not be read then")
        return np.stack([self._shards[i // SHARD][i % SHARD] for i in index.tolist()])

    def join(self, batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Batches with their `embeddings`."""
        with contextlib.ExitStack() as stack:
            if hasattr(batches, "close"):
                stack.callback(batches.close)
            for batch in batches:
                yield {**batch, "embeddings": self[batch["index"]]}


def embed(
    folder: Path,
    teacher: Teacher,
    source: Source,
    batch_size: int,
    *,
    reading: data.Reading = HERE,
    progress: Callable[[int], Any] = lambda count: None,
) -> int:
    """Make a cache, or the rest of one that was interrupted.

    Args:
      folder: new, or of the same teacher and source.
      teacher: whose embeddings are stored.
      source: the photos.
      batch_size: photos at once.
      reading: threads of the input; one process makes a cache.
      progress: called with the number of photos whenever some are done.

    Returns:
      the number of photos that were damaged and are left out.

    Raises:
      ValueError: the folder holds another cache, or `batch_size` is not positive.
      OSError: such as a full disk; what was written before stays, and the next call goes on.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    meta = _meta(teacher, source)
    if (folder / "meta.json").is_file():
        _check(folder, meta)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        config = teacher.model.config
        shape = (config.embedding_size, config.embedding_size, config.mask_decoder.embed_dim)
        for i, path in enumerate(_shards(folder, len(source))):
            rows = min(SHARD, len(source) - i * SHARD)
            np.lib.format.open_memmap(path, "w+", np.float16, (rows, *shape)).flush()
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, where writing to a map would be a crash
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        np.save(folder / "done.npy", np.zeros(len(source), np.uint8))
        # Last, so that a folder with it is whole.
        write_atomically(folder / "meta.json", lambda temporary: temporary.write_text(json.dumps(meta, indent=1)))
    done = _open(folder / "done.npy", "r+")
    shards = [_open(path, "r+") for path in _shards(folder, len(source))]
    progress(int(np.count_nonzero(done)))
    if done.all():
        return int(np.count_nonzero(done == 2))
    params = jax.device_put(teacher.params)
    first = int(np.argmin(done > 0))
    examples = data.ExampleConfig(teacher.model.config.image_size)
    read = data.one_pass(source, examples, batch_size, start=first // batch_size, reading=reading)
    with contextlib.closing(read):
        for number, batch in enumerate(read, start=first // batch_size):
            found = np.asarray(encode_pixels(teacher.model, params, batch["image"], batch["size"]), np.float16)
            places = range(number * batch_size, min((number + 1) * batch_size, len(source)))
            for place, embedding, index in zip(places, found, batch["index"], strict=False):
                if index >= 0:
                    shards[place // SHARD][place % SHARD] = embedding
            for shard in {place // SHARD for place in places}:
                shards[shard].flush()
            done[places.start : places.stop] = np.where(batch["index"][: len(places)] >= 0, 1, 2)
            done.flush()
            progress(len(places))
    return int(np.count_nonzero(done == 2))


def _meta(teacher: Teacher, source: Source) -> dict[str, Any]:
    return {
        "format": "repvit_sam_jax/embeddings/1",
        "teacher": teacher.identity,
        "preset": teacher.model.config.name,
        "dtype": teacher.model.dtype,
        "image_size": teacher.model.config.image_size,
        "photos": source.fingerprint,
        "count": len(source),
        "layout": "float16 [photo, row, column, channel], in the order of the source",
    }


def _check(folder: Path, expected: Mapping[str, Any]) -> None:
    try:
        found = json.loads((folder / "meta.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder}/meta.json is damaged: {error}") from error
    wrong = [
        f"{key}: {found.get(key)!r}, expected {expected[key]!r}" for key in expected if found.get(key) != expected[key]
    ]
    if wrong:
        raise ValueError(f"{folder} is a cache of other embeddings; choose another folder\n  " + "\n  ".join(wrong))


def _open(path: Path, mode: Literal["r", "r+"]) -> np.memmap:
    """An array on disk; raises ValueError if the file is shorter, which NumPy would fill up with zeros under r+."""
    try:
        np.load(path, mmap_mode="r")
        return np.load(path, mmap_mode=mode)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove the cache and make it again") from error


def _shards(folder: Path, count: int) -> list[Path]:
    return [folder / f"embeddings-{i:05d}.npy" for i in range(-(-count // SHARD))]
