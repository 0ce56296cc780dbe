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


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A model under the name that it has in tables."""

    name: str
    predictor: SamPredictor
    """Encodes a photo once, then turns prompts to masks."""
    about: dict[str, Any]
    """As JSON can hold it: `weights`, their `sha256`, `model`, `dtype`, `runtime` and `generator_defaults`."""


def open_segmenter(weights: Path | str, dtype: Dtype = "float32", name: str | None = None) -> Segmenter:
    """A segmenter from what `load` takes, or from a folder that `repvit-sam export onnx` wrote.

    Raises:
      FileNotFoundError, CheckpointError: as `load` or `OnnxPredictor`.
    """
    path = Path(weights)
    if (path / "encoder.onnx").is_file():
        from ..inference.onnx import OnnxPredictor

        predictor: SamPredictor = OnnxPredictor(path)
        digest, runtime = sha256_of([path / "encoder.onnx", path / "decoder.onnx"]), "onnxruntime"
    else:
        from ..weights.loading import find_weights, load

        found = find_weights(weights)
        predictor = SamPredictor(*load(found, dtype=dtype))
        files = [found] if found.is_file() else sorted(found.glob("*.safetensors")) + sorted(found.glob("*.bin"))
        digest, runtime = sha256_of(files), "jax"
    about: dict[str, Any] = {"weights": str(weights), "sha256": digest, "model": predictor.config.name}
    about |= {"dtype": predictor.backend.dtype, "runtime": runtime}
    about["generator_defaults"] = dataclasses.asdict(predictor.config.generator_defaults)
    return Segmenter(path.stem if name is None else name, predictor, about)


def names_of(weights: Sequence[Path | str]) -> list[str]:
    """Names in a table: stems, and where these are the same with a number."""
    stems = [Path(name).stem for name in weights]
    counts, seen = collections.Counter(stems), collections.Counter[str]()
    names = []
    for stem in stems:
        seen[stem] += 1
        names.append(stem if counts[stem] == 1 else f"{stem}-{seen[stem]}")
    return names
