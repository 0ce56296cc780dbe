"""From a config to its model."""

from __future__ import annotations

from ..config import ClassifierConfig, Dtype, Form, ModelConfig
from .classifier import Classifier
from .sam import Sam


def model_of(config: ModelConfig, form: Form = "deploy", dtype: Dtype = "float32") -> Sam | Classifier:
    """The segmenter or the classifier that a config describes."""
    if isinstance(config, ClassifierConfig):
        return Classifier(config, form, dtype)
    return Sam(config, form, dtype)
