"""What the commands have in common."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import Dtype
from ..files import check_new_file, check_new_folder, write_atomically

if TYPE_CHECKING:
    import numpy as np

    from ..inference.backends import Backend
    from ..inference.predictor import SamPredictor


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


@dataclasses.dataclass(frozen=True)
class Model:
    """What computes, as flags."""

    weights: Path | None = None
    """A checkpoint of this library, of PyTorch or of transformers, or a name such as repvit_sam; if not given,
    the embedded demonstration model, trained on synthetic scenes and by itself.
    For the runtime onnx, a folder from `repvit-sam export onnx`."""
    dtype: Dtype = "float32"
    """Precision of the arithmetic."""
    runtime: Literal["jax", "onnx"] = "jax"
    """What computes: JAX, or ONNX Runtime on the CPU in float32."""

    def check(self) -> None:
        """Raises ValueError for flags that do not fit each other."""
        if self.runtime == "onnx" and self.dtype != "float32":
            raise ValueError("--runtime onnx computes in float32; --dtype is for the runtime jax")
        if self.runtime == "onnx" and self.weights is None:
            raise ValueError("--runtime onnx needs --weights, a folder from `repvit-sam export onnx`")

    def open(self) -> SamPredictor:
        """The predictor; without weights a line on stderr says whose it is. Raises as `load` and `OnnxPredictor`."""
        if self.runtime == "onnx":
            from ..inference.onnx import OnnxPredictor

            assert self.weights is not None
            return OnnxPredictor(self.weights)
        from ..inference.predictor import SamPredictor
        from ..weights.loading import find_weights, load

        path = find_weights(self.weights)
        if self.weights is None:
            notice = "no --weights: using the embedded demonstration model, trained on synthetic scenes and by itself"
            print(notice, file=sys.stderr)
        return SamPredictor(*load(path, dtype=self.dtype))

    def setting(self, predictor: SamPredictor) -> dict[str, Any]:
        """What a result says about how it was computed."""
        found = setting(self.weights, predictor.backend)
        return found if self.runtime == "jax" else {**found, "device": "cpu, ONNX Runtime"}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Embeddings on disk, as flags."""

    embedding: Path | None = None
    """The photo's embedding from an earlier run with --save-embedding, in place of encoding it again; for a folder, the
    folder of embeddings. Another model's is refused."""
    save_embedding: Path | None = None
    """Also keep the photo's embedding, in a file .npz; for a folder, in a folder that is new or empty."""

    def check(self, is_folder: bool, overwrite: bool = False) -> None:
        """Raises ValueError or FileNotFoundError for paths that can't be."""
        if self.embedding is not None and self.save_embedding is not None:
            raise ValueError("give --embedding or --save-embedding: what is read needs no saving")
        if self.embedding is not None and not (self.embedding.is_dir() if is_folder else self.embedding.is_file()):
            what = "folder of embeddings" if is_folder else "embedding"
            raise FileNotFoundError(f"no {what} at {self.embedding}; the same command with --save-embedding writes it")
        if self.save_embedding is not None and is_folder:
            check_new_folder(self.save_embedding, "--save-embedding")
        elif self.save_embedding is not None:
            check_new_file(self.save_embedding, "--save-embedding", [".npz"], overwrite)


DEMO, NOTHING_STORED = Model(), Stored()


def size_of(photo: Path, image: Any) -> dict[str, Any]:
    """What a result says about its photo."""
    return {"photo": str(photo), "width": image.shape[1], "height": image.shape[0]}


def setting(weights: Path | None, backend: Backend) -> dict[str, Any]:
    """What a result says about how it was computed; no weights are the demonstration model's."""
    import jax

    return {
        "weights": str(weights or "demo"),
        "model": backend.config.name,
        "dtype": backend.dtype,
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
