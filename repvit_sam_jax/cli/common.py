"""What the commands have in common."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Dtype
from ..files import write_atomically

if TYPE_CHECKING:
    import numpy as np

    from ..inference.backends import Backend
    from ..models.model import Params
    from ..models.sam import Sam


def read_numbers(text: str, flag: str, counts: tuple[int, ...]) -> list[float]:
    """Comma-separated numbers. Raises ValueError, naming the flag, for anything else."""
    form = "X1,Y1,X2,Y2" if counts == (4,) else "X,Y or X,Y,LABEL"
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{flag} {text}: expected {form}") from error
    if len(values) not in counts:
        raise ValueError(f"{flag} {text}: expected {form}")
    return values


def is_same_file(a: Path, b: Path) -> bool:
    """Also where names differ in case alone, or by a hard link."""
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Write a PNG, all or nothing."""
    from PIL import Image

    write_atomically(path.resolve(), lambda temporary: Image.fromarray(pixels).save(temporary, "PNG"))


def load_segmenter(weights: Path | None, dtype: Dtype) -> tuple[Sam, Params]:
    """What `load` gives; without weights the demonstration model, and a line on stderr that says so."""
    from ..weights.loading import find_weights, load

    path = find_weights(weights)
    if weights is None:
        notice = "no --weights: using the embedded demonstration model, trained on synthetic scenes and by itself"
        print(notice, file=sys.stderr)
    return load(path, dtype=dtype)


def size_of(photo: Path, image: Any) -> dict[str, Any]:
    """What a result says about its photo."""
    return {"photo": str(photo), "width": image.shape[1], "height": image.shape[0]}


def setting(weights: Path | None, model: Sam | Backend) -> dict[str, Any]:
    """What a result says about how it was computed; no weights are the demonstration model's."""
    import jax

    return {
        "weights": str(weights or "demo"),
        "model": model.config.name,
        "dtype": model.dtype,
        "device": str(jax.devices()[0]),
    }


class Stopwatch:
    """Writes the seconds that its block takes under a name."""

    def __init__(self, seconds: dict[str, float], name: str):
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start
