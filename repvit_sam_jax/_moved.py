"""Modules under their names of version 0.1: `repvit_sam_jax.predictor` is `repvit_sam_jax.inference.predictor` now."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    **{f"encoders.{name}": f"models.encoders.{name}" for name in ("blocks", "repvit", "tiny_vit", "vit")},
    "encoders": "models.encoders",
    **{
        name: f"models.{name}"
        for name in ("classifier", "layers", "mask_decoder", "model", "prompt_encoder", "sam", "transformer")
    },
    **{name: f"weights.{name}" for name in ("checkpoint", "loading", "reparam")},
    **{name: f"inference.{name}" for name in ("mask_generator", "masks", "overlay", "photos", "predictor", "prompts")},
    "runtimes": "inference",
    "runtimes.onnx": "inference.onnx",
}
"""Names within the package, then and now."""


class _Alias(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an alias; None for all other names."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of today."""
        new = f"{__package__}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._specs = {**getattr(self, "_specs", {}), spec.name: module.__spec__}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back its own spec, which the import system has just replaced."""
        alias = module.__spec__
        assert alias is not None
        module.__spec__ = self._specs[alias.name]


def install() -> None:
    """Let Python find them, before it looks into the folder of a package that has two names."""
    sys.meta_path.insert(0, _Alias())
