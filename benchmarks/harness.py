"""Interleaved timing: candidates take turns, so that a noisy machine is noisy for all of them alike."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np


def relative_rms(result: Any, reference: Any) -> float:
    """Root mean square of the difference of two arrays, over the reference's deviation."""
    found, expected = (np.asarray(x.cpu() if hasattr(x, "cpu") else x, np.float64) for x in (result, reference))
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to time. `run` does the whole work, waits for it and returns its result.

    `reference` names the candidate whose result this one must reproduce; their `difference` must not be larger than
    `tolerance`: a fast wrong answer is a failure.
    """

    name: str
    run: Callable[[], Any]
    reference: str | None = None
    tolerance: float = 5e-5
    difference: Callable[[Any, Any], float] = relative_rms


class WrongAnswerError(AssertionError):
    """A candidate computes something else than its reference."""


def interleave(candidates: Sequence[Candidate], rounds: int) -> dict[str, dict[str, Any]]:
    """Warm up once, compare the results, then time in turns.

    Args:
      candidates: what to time.
      rounds: timed runs of each.

    Returns:
      name -> `median` and `minimum` in milliseconds, and `peak_megabytes`, by how much a run raised the process's
      resident memory at most (None where the system does not tell).

    Raises:
      WrongAnswerError: a result is off by more than the candidate's tolerance.
    """
    results = {candidate.name: candidate.run() for candidate in candidates}
    for candidate in candidates:
        if candidate.reference in results:
            difference = candidate.difference(results[candidate.name], results[candidate.reference])
            if not difference <= candidate.tolerance:
                raise WrongAnswerError(f"{candidate.name} differs from {candidate.reference} by {difference:.1e}")
    del results
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    peaks: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate in candidates:
            before = _reset_peak()
            start = time.perf_counter()
            candidate.run()
            times[candidate.name].append(1e3 * (time.perf_counter() - start))
            if before is not None:
                peaks[candidate.name].append((_status("VmHWM") - before) / 1e6)
    return {
        name: {
            "median": statistics.median(values),
            "minimum": min(values),
            "peak_megabytes": max(peaks[name], default=None),
        }
        for name, values in times.items()
    }


def _reset_peak() -> int | None:
    """Let Linux count the peak of resident memory anew; returns the bytes that are resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def timed(candidates: Sequence[Candidate], rounds: int) -> dict[str, Any]:
    """A section of the report: `milliseconds` as `interleave` gives them, and their `ratios`."""
    times = interleave(candidates, rounds)
    return {"milliseconds": times, "ratios": ratios(times)}


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


def ratios(times: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`a/b` -> ratio of the median times, for every JAX candidate against every other one."""
    return {
        f"{a}/{b}": times[a]["median"] / times[b]["median"]
        for a in times
        for b in times
        if a.startswith("jax") and not b.startswith("jax")
    }
