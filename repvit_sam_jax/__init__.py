"""RepViT-SAM in JAX: Segment Anything with a RepViT image encoder.

The names below are imported when they are first used, so that `import repvit_sam_jax` alone stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _moved

if TYPE_CHECKING:
    from .config import CLASSIFIERS as CLASSIFIERS
    from .config import PRESETS as PRESETS
    from .config import SamConfig as SamConfig
    from .config import get_config as get_config
    from .inference.mask_generator import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
    from .inference.predictor import SamPredictor as SamPredictor
    from .models.classifier import Classifier as Classifier
    from .models.model import split_batch_stats as split_batch_stats
    from .models.prompt_encoder import Prompts as Prompts
    from .models.sam import Sam as Sam
    from .weights.checkpoint import CheckpointError as CheckpointError
    from .weights.loading import load as load
    from .weights.loading import load_classifier as load_classifier

__version__ = "0.1.0"

_moved.install()

_HOMES = {
    "CLASSIFIERS": "config",
    "CheckpointError": "weights.checkpoint",
    "Classifier": "models.classifier",
    "PRESETS": "config",
    "Prompts": "models.prompt_encoder",
    "Sam": "models.sam",
    "SamAutomaticMaskGenerator": "inference.mask_generator",
    "SamConfig": "config",
    "SamPredictor": "inference.predictor",
    "get_config": "config",
    "load": "weights.loading",
    "load_classifier": "weights.loading",
    "split_batch_stats": "models.model",
}

_MODULES = {
    "checkpoint": "weights.checkpoint",
    "config": "config",
    "reparam": "weights.reparam",
    "transforms": "transforms",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
