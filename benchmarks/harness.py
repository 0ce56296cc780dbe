"""Interleaved timing: candidates take turns, so that a noisy machine is noisy for all of them alike."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to time. `run` does the whole work and returns its result as NumPy arrays or numbers.

    `reference` names the candidate whose result this one must reproduce, within `tolerance` (relative RMS): a fast
    wrong answer is a failure.
    """

    name: str
    run: Callable[[], np.ndarray]
    reference: str | None = None
    tolerance: float = 5e-5


class WrongAnswerError(AssertionError):
    """A candidate computes something else than its reference."""


def interleave(candidates: list[Candidate], rounds: int) -> dict[str, dict[str, float]]:
    """Warm up once, compare the results, then time in turns.

    Args:
      candidates: what to time.
      rounds: timed runs of each.

    Returns:
      name -> `median` and `minimum` in milliseconds.

    Raises:
      WrongAnswerError: a result is off by more than the candidate's tolerance.
    """
    results = {candidate.name: np.asarray(candidate.run(), np.float64) for candidate in candidates}
    for candidate in candidates:
        if candidate.reference in results:
            reference = results[candidate.reference]
            difference = np.sqrt(np.mean((results[candidate.name] - reference) ** 2)) / reference.std()
            if not difference <= candidate.tolerance:
                raise WrongAnswerError(f"{candidate.name} differs from {candidate.reference} by {difference:.1e}")
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate in candidates:
            start = time.perf_counter()
            candidate.run()
            times[candidate.name].append(1e3 * (time.perf_counter() - start))
    return {name: {"median": statistics.median(values), "minimum": min(values)} for name, values in times.items()}


def environment() -> dict[str, Any]:
    """Hardware and versions, for the report."""
    versions = {name: version(name) for name in ("jax", "flax", "numpy", "torch")}
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "machine": names[0] if names else platform.machine(),
        "system": platform.system(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions,
    }


def ratios(times: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`a/b` -> ratio of the median times, for every JAX candidate against every other one."""
    return {
        f"{a}/{b}": times[a]["median"] / times[b]["median"]
        for a in times
        for b in times
        if a.startswith("jax") and not b.startswith("jax")
    }
