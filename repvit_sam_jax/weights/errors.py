"""What files of weights may raise."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one for the model asked for. The message lists all that is wrong."""
