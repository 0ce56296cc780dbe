"""PyTorch twins: modules of our own whose state dicts are key for key those of the published checkpoints."""

from .sam import Sam

__all__ = ["Sam"]
