"""PyTorch twins: modules of our own whose state dicts are key for key those of the published checkpoints."""

from __future__ import annotations

from typing import overload

from repvit_sam_jax.config import ClassifierConfig, Form, ModelConfig, SamConfig

from .common import fuse
from .repvit import RepViTClassifier
from .sam import Sam

__all__ = ["RepViTClassifier", "Sam", "twin_of"]


@overload
def twin_of(config: SamConfig, form: Form = "train") -> Sam: ...
@overload
def twin_of(config: ClassifierConfig, form: Form = "train") -> RepViTClassifier: ...
@overload
def twin_of(config: ModelConfig, form: Form = "train") -> Sam | RepViTClassifier: ...
def twin_of(config, form="train"):
    """The twin of a model in evaluation mode, with random weights, in the form whose weights it is to load."""
    twin = RepViTClassifier(config) if isinstance(config, ClassifierConfig) else Sam(config)
    if form == "deploy":
        fuse(twin)
    return twin.eval()
