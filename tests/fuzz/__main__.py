"""`python -m tests.fuzz`: cases of all kinds by the thousand, in bounded memory and time."""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from tests.fuzz.kinds import KINDS, run


def fuzz(
    kinds: Annotated[tuple[str, ...], tyro.conf.Positional] = tuple(KINDS),
    *,
    count: int = 1000,
    seed: int = 0,
    gibibytes: float = 2.0,
    seconds: int = 600,
) -> None:
    """Run cases; faults are printed, and the exit code is then 1.

    Args:
      kinds: Those to run; all of them without.
      count: Cases of each kind.
      seed: Another one gives other cases.
      gibibytes: Memory that a case may take, beyond what the process has at its start.
      seconds: Time for each kind.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gibibytes * 2**30), resource.RLIM_INFINITY))
    faults = 0
    for kind in kinds:
        signal.alarm(seconds)
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(kind, count, seed, Path(folder))
        signal.alarm(0)
        print(f"{kind:14} {outcome.right} right, {outcome.refused} refused, {len(outcome.faults)} faults", flush=True)
        print("".join(f"  {fault}\n" for fault in outcome.faults[:20]), end="")
        faults += len(outcome.faults)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    tyro.cli(fuzz, prog="tests.fuzz", description=__doc__)
