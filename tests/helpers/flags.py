"""XLA's flags for tests: a program that runs once had better be compiled cheaply than well."""

from __future__ import annotations

import os
import subprocess
import sys

CHEAP = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
"""A training step of a small model compiles in 9 s with both, in 18 s with the first alone, in 32 s with neither."""

OPTIMIZE = "TESTS_OPTIMIZE"
"""Environment variable: 1 compiles as users do, for tests of full-size models, which run longer than they compile."""

_ASKED = "TESTS_FLAGS_ASKED"
_ASK = "from jaxlib import xla_client; xla_client.CompileOptions()"


def known(flags: tuple[str, ...]) -> list[str]:
    """Those flags that the installed jaxlib takes.

    It ends the process that sets another, and versions differ, so each is tried in a process that computes nothing.
    """
    tries = [
        subprocess.Popen(
            [sys.executable, "-c", _ASK],
            env={**os.environ, "XLA_FLAGS": flag},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for flag in flags
    ]
    return [flag for flag, process in zip(flags, tries, strict=True) if process.wait() == 0]


def environment() -> dict[str, str]:
    """`XLA_FLAGS` with the cheap ones in front, for this process and all that it starts."""
    if os.environ.get(OPTIMIZE) == "1" or _ASKED in os.environ:
        return {}
    return {"XLA_FLAGS": " ".join([*known(CHEAP), os.environ.get("XLA_FLAGS", "")]).strip(), _ASKED: "1"}
