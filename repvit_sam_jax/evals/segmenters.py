"""The segmenters that tasks ask: predictors over JAX or ONNX Runtime, with what a result says of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Dtype
from ..files import sha256_of
from ..inference.predictor import SamPredictor
from ..weights.loading import find_weights, load


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A model under the name that it has in tables."""

    name: str
    predictor: SamPredictor
    """Encodes a photo once, then turns prompts to masks."""
    about: dict[str, Any]
    """As JSON can hold it: `weights`, their `sha256`, `model`, `dtype`, `runtime` and `generator_defaults`."""


def find_segmenter(weights: Path | str) -> Path:
    """The file or the folder that a segmenter is in; a name's weights are downloaded.

    Raises:
      FileNotFoundError: there is none.
      DownloadError: as `hub.fetch`.
    """
    if (Path(weights) / _ENCODER).is_file():
        return Path(weights)
    found = find_weights(weights)
    if not found.exists():
        raise FileNotFoundError(f"there are no weights at {found}")
    return found


def open_segmenter(weights: Path | str, dtype: Dtype = "float32", name: str | None = None) -> Segmenter:
    """A segmenter from what `load` takes, or from a folder that `repvit-sam export onnx` wrote.

    Args:
      weights: a file, a folder, or a name.
      dtype: of the arithmetic in JAX.
      name: in tables; the stem of the weights if None.

    Raises:
      FileNotFoundError, DownloadError, CheckpointError: as `find_segmenter`, `load` or `OnnxPredictor`.
    """
    found = find_segmenter(weights)
    if (found / _ENCODER).is_file():
        from ..inference.onnx import OnnxPredictor

        predictor: SamPredictor = OnnxPredictor(found)
        files, runtime = [found / _ENCODER, found / "decoder.onnx"], "onnxruntime"
    else:
        predictor = SamPredictor(*load(found, dtype=dtype))
        parts = (*found.glob("*.safetensors"), *found.glob("*.bin")) if found.is_dir() else (found,)
        files, runtime = sorted(parts), "jax"
    about: dict[str, Any] = {"weights": str(weights), "sha256": sha256_of(files), "model": predictor.config.name}
    about |= {"dtype": predictor.backend.dtype, "runtime": runtime}
    about["generator_defaults"] = dataclasses.asdict(predictor.config.generator_defaults)
    return Segmenter(Path(weights).stem if name is None else name, predictor, about)


def names_of(weights: Sequence[Path | str]) -> list[str]:
    """Names in a table: stems, with numbers where these are the same."""
    stems = [Path(name).stem for name in weights]
    counts, seen = collections.Counter(stems), collections.Counter[str]()
    names = []
    for stem in stems:
        seen[stem] += 1
        names.append(stem if counts[stem] == 1 else f"{stem}-{seen[stem]}")
    return names


_ENCODER = "encoder.onnx"
