"""RepViT-SAM in JAX: Segment Anything with a RepViT image encoder.

The names below are imported when they are first used, so that `import repvit_sam_jax` alone stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import CheckpointError as CheckpointError
    from .classifier import Classifier as Classifier
    from .config import CLASSIFIERS as CLASSIFIERS
    from .config import PRESETS as PRESETS
    from .config import SamConfig as SamConfig
    from .config import get_config as get_config
    from .loading import load as load
    from .loading import load_classifier as load_classifier
    from .mask_generator import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
    from .model import split_batch_stats as split_batch_stats
    from .predictor import SamPredictor as SamPredictor
    from .prompt_encoder import Prompts as Prompts
    from .sam import Sam as Sam

__version__ = "0.1.0"

_HOMES = {
    "CLASSIFIERS": "config",
    "CheckpointError": "checkpoint",
    "Classifier": "classifier",
    "PRESETS": "config",
    "Prompts": "prompt_encoder",
    "Sam": "sam",
    "SamAutomaticMaskGenerator": "mask_generator",
    "SamConfig": "config",
    "SamPredictor": "predictor",
    "get_config": "config",
    "load": "loading",
    "load_classifier": "loading",
    "split_batch_stats": "model",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in ("transforms", "reparam", "config", "checkpoint", "classifier"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
