"""Measures and golden files that several tests use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def relative_rms(found, reference) -> float:
    """Root mean square of the difference over the reference's standard deviation."""
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    assert found.shape == reference.shape
    return float(np.sqrt(np.mean((found - reference) ** 2)) / reference.std())


def sample(array, n: int = 4096) -> np.ndarray:
    """The values of a long array that a golden file holds; see tests/golden/README.md."""
    array = np.asarray(array)
    index = np.random.Generator(np.random.PCG64([0, array.size])).integers(0, array.size, min(n, array.size))
    return array.reshape(-1)[index]


@contextlib.contextmanager
def recorded_compilations() -> Iterator[list[str]]:
    """The names of the functions that JAX compiles inside, in a list that fills."""
    compiled: list[str] = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
