"""Converters warn of what they use themselves and log that they can't run what they write; none of it is the user's."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without warnings, log lines up to warnings, and progress bars on stderr."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def import_quietly(name: str) -> Any:
    """The module of that name."""
    with quietly():
        return importlib.import_module(name)
