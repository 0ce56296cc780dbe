"""Programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

# NPROC: on few cores simulated devices deadlock without a larger thread pool.
EIGHT_DEVICES = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
    "NPROC": "32",
}
"""Environment of a process that simulates eight devices."""


def run_python(program: str, environment: dict[str, str]) -> list[str]:
    """What a program prints in a process of its own, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
