"""Where the time of the tests goes: `make test PYTEST_ADDOPTS="-p tests.helpers.durations"` ends with a table.

For each file and each of the dearest tests: seconds in all, of this process's processor, of processes that it started,
of tracing (nested functions count twice) and lowering in JAX, of XLA's compiler, and of loading kept programs.
"""

from __future__ import annotations

import collections
import resource
from collections.abc import Iterator
from time import perf_counter

import pytest

DEAREST = 40

_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/compilation_cache/cache_retrieval_time_sec": "load",
}
_COLUMNS = ("wall", "cpu", "processes", *_EVENTS.values())

_seconds: collections.Counter[str] = collections.Counter()


def _listen(event: str, seconds: float, **_: object) -> None:
    if event in _EVENTS:
        _seconds[_EVENTS[event]] += seconds


def pytest_configure() -> None:
    """Listen to JAX, which must not be imported before tests/conftest.py has said where it keeps programs."""
    import jax

    jax.monitoring.register_event_duration_secs_listener(_listen)


def _now() -> dict[str, float]:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu, processes = own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime
    return {"wall": perf_counter(), "cpu": cpu, "processes": processes, **{n: _seconds[n] for n in _COLUMNS[3:]}}


_last = _now()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Put the seconds since the report before into this one, which reaches the first process."""
    global _last
    report = yield
    now = _now()
    report.user_properties.append(("seconds", {name: now[name] - _last[name] for name in _COLUMNS}))
    _last = now
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print both tables."""
    files, tests = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for name, seconds in getattr(report, "user_properties", ()):
            if name == "seconds":
                files[report.nodeid.split("::")[0]].update(seconds)
                tests[report.nodeid].update(seconds)
    total = sum(files.values(), collections.Counter())
    for title, table in (("files", files), (f"the {DEAREST} dearest tests", tests)):
        terminalreporter.section(f"seconds of {title}")
        terminalreporter.write_line("".join(f"{name:>10}" for name in _COLUMNS))
        rows = sorted(table.items(), key=lambda row: -row[1]["wall"])[: len(table) if table is files else DEAREST]
        for name, seconds in [*rows, ("all", total)]:
            terminalreporter.write_line("".join(f"{seconds[column]:10.1f}" for column in _COLUMNS) + f"  {name}")
