"""Command lines in a process of its own, for what is about processes: missing packages, another environment."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.helpers.processes import ROOT


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended, as `subprocess.CompletedProcess` says it."""

    returncode: int
    stdout: str
    stderr: str


_RUN = """
import contextlib, importlib, io, json, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {absent} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
sys.path.insert(0, {root!r})
for arguments in {commands}:
    sys.argv = [{module!r}, *arguments]
    code, printed, errors = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            importlib.import_module({module!r}).main()
        except SystemExit as stop:
            code = stop.code or 0
    if isinstance(code, str):  # as the interpreter does
        code = errors.write(code + "\\n") and 1
    print(json.dumps([code, printed.getvalue(), errors.getvalue()]), flush=True)
"""


def run_commands(
    module: str, commands: Iterable[Iterable[object]], folder: Path, absent: Iterable[str] = (), **environment: str
) -> list[Done]:
    """Call `module.main()` once for each list of arguments, one after the other in one process.

    Args:
      module: with a `main` that reads `sys.argv`.
      commands: arguments of each call.
      folder: where the process runs.
      absent: packages that it does not find, as on a machine where they are not installed.
      environment: variables beside those of this process.
    """
    given = [[str(argument) for argument in arguments] for arguments in commands]
    code = _RUN.format(absent=set(absent), root=str(ROOT), module=module, commands=given)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Done(*json.loads(line)) for line in done.stdout.splitlines()]
