"""What the readers share: places in a folder, and lines that say what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def find_root(folder: Path, places: Sequence[str], needed: Sequence[str], what: str) -> Path:
    """The first of `places` within a folder that has all that is needed.

    Args:
      folder: that a user names.
      places: paths within it where the data set may begin, `.` being itself.
      needed: paths of folders or files, from there.
      what: the data set's name, and where one gets it.

    Raises:
      ValueError: none has all; what the best one lacks is named.
    """
    if not folder.is_dir():
        raise ValueError(f"--data {folder} is no folder; it should be that of {what}")
    lacking = {place: [n for n in needed if not (folder / place / n).exists()] for place in places}
    best = min(places, key=lambda place: len(lacking[place]))
    if lacking[best]:
        raise ValueError(f"{folder} is not {what}: it lacks {', '.join(lacking[best])}")
    return folder / best


def paired(first: dict[str, Path], second: dict[str, Path], names: tuple[str, str]) -> list[str]:
    """The names of photos and their truths, sorted. Raises ValueError if either lacks one of the other's, or is empty.

    Args:
      first: files by name.
      second: those that belong to them.
      names: of the two folders.
    """
    for (mine, theirs), (here, there) in (((first, second), names), ((second, first), names[::-1])):
        if absent := sorted(set(mine) - set(theirs)):
            raise ValueError(
                f"{there} lacks {len(absent)} of the {len(mine)} files that {here} has, such as that of {absent[0]}"
            )
    if not first:
        raise ValueError(f"{names[0]} holds no file")
    return sorted(first)


def by_stem(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Files with one of these suffixes by name without it, hidden ones excluded."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return {path.stem: path for path in files}


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises ValueError, which names it and says what it should be."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; it should be {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not {what}: it is no JSON ({error})") from error


def read_gray(path: Path) -> UInt8[np.ndarray, "h w"]:
    """A gray picture. Raises ValueError or OSError, which names it, if it can't be read."""
    try:
        with Image.open(path) as opened:
            return np.array(opened.convert("L"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a picture: {error}") from error


def check_sizes(paths: Iterable[Path], size: tuple[int, int]) -> None:
    """Raises ValueError, which names it, unless each picture has this size, (height, width); pixels are not read."""
    for path in paths:
        try:
            with Image.open(path) as opened:
                found = opened.height, opened.width
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path} can't be read as a picture: {error}") from error
        if found != size:
            raise ValueError(f"{path} has {found[1]} x {found[0]} pixels, expected {size[1]} x {size[0]}")
