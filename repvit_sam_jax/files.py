"""Files and folders that are written whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

LEFTOVER_AGE = 7 * 24 * 3600
"""Seconds after which a temporary file of another machine's process is taken for a leftover."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Sequence[Path]) -> str:
    """Hex digest of a file; of several, that of their digests, one after the other."""
    digests = [sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def check_no_address(path: Path) -> None:
    """Raises ValueError for what was a URL before it became a path."""
    if found := re.match(r"(https?|ftp|s3|gs|hf):/", str(path)):
        raise ValueError(f"{found[1]}://{str(path)[found.end() :].lstrip('/')} is an address; download the file first")


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path` and move the result there; an error leaves nothing behind."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent, path.name)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path.name))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_file(path: Path, flag: str, suffixes: Sequence[str], overwrite: bool) -> None:
    """Hold the file that a command is to write against the place where it is to be.

    Raises:
      ValueError: it has another suffix, is there and not to be replaced, or can't be written; the flag is named.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{flag} {path}: the file is written as {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder")
    if path.exists() and not overwrite:
        raise ValueError(f"{flag} {path} exists; give another name, or --overwrite")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}")
    if not all(os.access(place, os.W_OK) for place in (path, path.absolute().parent) if place.exists()):
        raise ValueError(f"{flag} {path} can't be written")


def is_taken(path: Path) -> bool:
    """Whether something other than an empty folder is at a path; what a killed run left in it does not count."""
    if not path.is_dir():
        return path.exists()
    return any(not _is_leftover(inner, path.name) for inner in path.iterdir())


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
    where = path if existed else path.parent
    _remove_leftovers(where, path.name)
    temporary = Path(tempfile.mkdtemp(dir=where, prefix=_prefix(path.name)))
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
            with contextlib.suppress(OSError):  # another process has put something there meanwhile
                for parent in absent:
                    parent.rmdir()


def _prefix(name: str) -> str:
    """What temporary names for `name` begin with, short enough for every file system: machine and process are in it."""
    return f".{name[:60]}.{_MACHINE}-{os.getpid()}."


_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"


def _is_leftover(path: Path, name: str) -> bool:
    """Whether a process that is gone left the path, when it was about to write `name`."""
    found = re.fullmatch(re.escape(f".{name[:60]}.") + r"([0-9a-f]{8})-(\d+)\.\w+", path.name)
    if not found:
        return False
    if found[1] != _MACHINE or os.name != "posix":  # on a shared disk: nobody here knows its processes
        return time.time() - path.stat().st_mtime > LEFTOVER_AGE
    try:
        os.kill(int(found[2]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _remove_leftovers(folder: Path, name: str) -> None:
    for path in [path for path in folder.glob(".*") if _is_leftover(path, name)]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
