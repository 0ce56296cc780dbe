"""A copy of the working tree, in which one mistake after the other is made and looked for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(".pytest_cache") / "programs"
"""Where `tests/conftest.py` lets JAX keep compiled programs."""

SECONDS = 600.0
"""Time limit of a mutant. One that takes longer hangs, which is noticed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
      name: the mutant's.
      outcome: `caught`, `missed`, or `broken`: it could not be made, or its tests could not be run.
      seconds: that the tests took.
      by: the test that failed, `hung`, or the end of what a broken one printed.
      digest: of the mutant as it was.
    """

    name: str
    outcome: str
    seconds: float
    by: str
    digest: str

    def __str__(self) -> str:
        line = f"{self.outcome}  {self.seconds:5.1f} s  {self.name}"
        if self.outcome == "broken":
            return f"{line}\n{self.by}"
        return f"{line}  ({self.by})" if self.by else line


@contextlib.contextmanager
def copy(root: Path = ROOT) -> Iterator[Path]:
    """A folder with the files of the working tree that git does not ignore; compiled programs are shared with it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=root, capture_output=True, check=True
    )
    with tempfile.TemporaryDirectory(prefix="mutants.") as folder:
        target = Path(folder).resolve()
        for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
            source = root / name
            if source.is_symlink() or source.is_file():  # one that was removed is listed all the same
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / name, follow_symlinks=False)
        programs = (root / PROGRAMS).resolve()
        programs.mkdir(parents=True, exist_ok=True)
        (target / PROGRAMS).parent.mkdir(exist_ok=True)
        (target / PROGRAMS).symlink_to(programs, target_is_directory=True)
        yield target


def run(mutant: Mutant, folder: Path, seconds: float = SECONDS) -> Outcome:
    """Make the mistake in the folder, run its tests there, and undo it."""
    started = time.perf_counter()
    try:
        with mutant.applied(folder):
            code, output = run_tests(folder, mutant.tests, slow=mutant.slow, seconds=seconds)
    except ValueError as error:
        return Outcome(mutant.name, "broken", 0.0, str(error), mutant.digest)
    outcome, by = "broken", f"pytest ended with {code}\n{output[-3000:]}"
    if code is None:
        outcome, by = "caught", "hung"
    elif code == 1:
        outcome, by = "caught", _failed(output)
    elif code == 0:
        outcome, by = "missed", ""
    return Outcome(mutant.name, outcome, round(time.perf_counter() - started, 1), by, mutant.digest)


def check_unchanged(folder: Path, mutants: Iterable[Mutant]) -> None:
    """Raises ValueError if one of the mutants' tests fails without a mistake: then it would catch everything."""
    for slow in (False, True):
        tests = dict.fromkeys(test for mutant in mutants if mutant.slow == slow for test in mutant.tests)
        if not tests:
            continue
        code, output = run_tests(folder, list(tests), slow=slow, seconds=len(tests) * SECONDS)
        if code != 0:
            raise ValueError(f"without a mistake the tests fail already, pytest ended with {code}\n{output[-3000:]}")


def run_tests(folder: Path, tests: Sequence[str], *, slow: bool, seconds: float) -> tuple[int | None, str]:
    """Exit code of pytest in the folder, None if it took too long, and what it printed."""
    chosen = ["-m", "slow or not slow"] if slow else []
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *chosen, *tests]
    with tempfile.TemporaryFile() as output:  # no pipe, which a process that is left behind would keep open
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(folder), stdout=output, stderr=output, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _environment(folder: Path) -> dict[str, str]:
    """That of `make test`, with the copy's packages, and without what tells of a pytest around this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Bytecode is told from its source by size and time, which a mistake may leave alone.
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def _failed(output: str) -> str:
    found = re.findall(r"^(?:FAILED|ERROR) (\S+?::.*?)(?: - .*)?$", output, re.MULTILINE)
    return found[0] if found else "a test whose name pytest did not print"
