"""Files and folders that are written whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path` and move the result there; an error leaves nothing behind."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_taken(path: Path) -> bool:
    """Whether something other than an empty folder is at a path."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def check_new_folder(path: Path, flag: str) -> None:
    """Raises ValueError, which names the flag, unless an empty folder is at the path or can be made there."""
    if is_taken(path):
        raise ValueError(f"{flag} {path} exists and is no empty folder; give a new one")
    absolute = path.absolute()
    nearest = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    if not nearest.is_dir():
        raise ValueError(f"{flag} {path}: {nearest} is no folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{flag} {path}: {nearest} can't be written to")


@contextlib.contextmanager
def new_folder(path: Path, flag: str = "--out") -> Iterator[Path]:
    """A temporary folder that becomes the folder at `path` when the block ends well; otherwise it is removed.

    An empty folder stays the one that it is, which may be where the command runs or another disk, and is filled.

    Raises:
      ValueError: as `check_new_folder`.
    """
    check_new_folder(path, flag)
    path = path.resolve()
    existed = path.exists()
    absent = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path if existed else path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        if existed:
            for made in temporary.iterdir():
                made.replace(path / made.name)
            return
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not path.exists():
            for parent in absent:
                parent.rmdir()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
