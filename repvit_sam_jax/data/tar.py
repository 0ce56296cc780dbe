"""Tar shards of photos: where each member lies, found once and kept beside the shard; members by `os.pread`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import platformdirs
from jaxtyping import Int
from PIL import Image

from ..files import write_atomically

_VERSION = 1
"""Version of the index file."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar of photos, each with the JSON of the same stem if there is one; safe to use in any thread and process."""

    path: Path
    names: np.ndarray
    """Names of the photos, in the order of the archive; bytes."""
    spans: Int[np.ndarray, "n 4"]
    """Where a photo starts and its bytes, where its JSON starts and its bytes, or (-1, 0) without one."""

    def read(self, i: int) -> tuple[str, bytes, bytes | None]:
        """Name, photo and JSON.

        Raises:
          OSError: the file can't be read, or is shorter than when it was indexed.
        """
        start, size, json_start, json_size = map(int, self.spans[i])
        file = os.open(self.path, os.O_RDONLY)
        try:
            photo = self._read(file, start, size)
            return self.names[i].decode(), photo, self._read(file, json_start, json_size) if json_start >= 0 else None
        finally:
            os.close(file)

    def _read(self, file: int, start: int, size: int) -> bytes:
        data = os.pread(file, size, start)
        if len(data) < size:
            raise OSError(f"{self.path} has become shorter since it was indexed; start again")
        return data


def open_shard(path: Path) -> Shard:
    """A tar of photos, from its index if there is one that fits the tar's size and time of modification.

    Otherwise the tar's headers are read (of the files, only that they are there) and the index is written: beside the
    tar as `NAME.index.npz`, or into the user's cache where that folder is not writable.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no tar, incomplete, compressed, or without photos.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no tar at {path}")
    status = path.stat()
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns], np.int64)
    places = _index_places(path)
    for place in places:
        try:
            with place.open("rb") as file, np.load(file) as index:  # a damaged file, np.load leaves open
                if np.array_equal(index["stamp"], stamp):
                    return Shard(path, index["names"], index["spans"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # none, or a damaged one
    names, spans = _scan(path)
    for place in places:
        try:
            write_atomically(place, lambda temporary: _save(temporary, stamp, names, spans))
            break
        except OSError:
            continue  # the next run scans again
    return Shard(path, names, spans)


def _index_places(path: Path) -> list[Path]:
    """Where an index may be, the preferred place first."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    cached = platformdirs.user_cache_path("repvit-sam", appauthor=False) / "tar" / f"{path.name}.{digest}.npz"
    beside = path.with_name(f"{path.name}.index.npz")
    # A folder without any write permission is meant to stay as it is, also when root could write there.
    writable = os.access(path.parent, os.W_OK) and path.parent.stat().st_mode & 0o222
    return [beside, cached] if writable or beside.exists() else [cached]


def _save(path: Path, stamp: np.ndarray, names: np.ndarray, spans: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append .npz to it
        np.savez(file, stamp=stamp, names=names, spans=spans)


def _scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    photos: dict[str, tuple[str, int, int]] = {}
    annotations: dict[str, tuple[int, int]] = {}
    members = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                members += 1
                name = PurePosixPath(member.name)
                stem, suffix = str(name.with_suffix("")), name.suffix.lower()
                if not member.isreg() or name.name.startswith("."):
                    continue
                if suffix in suffixes:
                    if stem in photos:
                        raise ValueError(f"{path} holds {member.name} and {photos[stem][0]}; one photo a stem")
                    photos[stem] = (member.name, member.offset_data, member.size)
                elif suffix == ".json":
                    annotations[stem] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.TarError as error:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise ValueError(
                    f"{path} is compressed by gzip, so photos can't be read one by one; uncompress it once: "
                    f"gunzip -c {shlex.quote(str(path))} > {shlex.quote(str(path.with_suffix('.plain.tar')))}"
                ) from error
        raise ValueError(
            f"{path} is no uncompressed tar, or incomplete ({error}, after {members} whole members); download it again"
        ) from error
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{path} ends, or is damaged, after {members} members; download it again")
    if not photos:
        raise ValueError(f"{path} holds no photos")
    spans = [(start, size, *annotations.get(stem, (-1, 0))) for stem, (_, start, size) in photos.items()]
    return np.array([name.encode() for name, _, _ in photos.values()]), np.array(spans, np.int64)
