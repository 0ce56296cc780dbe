"""`python -m benchmarks.coreml`: latency of Core ML packages on a Mac, or what Xcode's report says of a device."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from convert.export.quiet import import_quietly
from repvit_sam_jax.terminal import errors_in_one_line, require

COMPUTE_UNITS = {"ALL": "all", "CPU_ONLY": "cpu", "CPU_AND_GPU": "cpu and gpu", "CPU_AND_NE": "cpu and neural engine"}
"""Core ML's choices, and their names in the table."""
PARTS = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class Timing:
    """One line of the table, times in milliseconds; None is what is not known."""

    model: str
    part: str
    device: str
    compute_units: str
    load: float | None
    minimum: float | None
    median: float
    source: str
    """`published` by the authors of RepViT-SAM, `measured` here, or `Xcode` for an imported report."""


PUBLISHED = tuple(
    Timing(model, part, device, "", None, None, median, "published")
    for model, part, device, median in (
        ("repvit_sam", "encoder", "iPhone 12", 48.9),
        ("repvit_sam", "encoder", "MacBook M1 Pro", 44.8),
        ("mobile_sam", "encoder", "MacBook M1 Pro", 482.2),
        ("sam_vit_b", "encoder", "MacBook M1 Pro", 6249.5),
        ("repvit_sam", "decoder", "MacBook M1 Pro", 11.8),
    )
)
"""arXiv 2312.05760, at 1024 pixels."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Operations of one kind that Core ML plans for one processor, and their part of the estimated cost."""

    part: str
    compute_units: str
    operation: str
    processor: str
    count: int
    cost: float


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What a run found."""

    timings: tuple[Timing, ...]
    shares: tuple[Share, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the published figures included."""
        return {
            "timings": [dataclasses.asdict(timing) for timing in (*PUBLISHED, *self.timings)],
            "cost_shares": [dataclasses.asdict(share) for share in self.shares],
        }

    def to_text(self) -> str:
        """Tables, as Markdown."""
        lines = [
            "| model | part | device | compute units | load ms | min ms | median ms | |",
            "|---|---|---|---|---:|---:|---:|---|",
        ]
        shown = lambda value: "" if value is None else f"{value:.1f}"
        cell = lambda text: " ".join(text.split()).replace("|", "\\|")
        for t in sorted((*PUBLISHED, *self.timings), key=lambda t: (PARTS[::-1].index(t.part), t.model), reverse=True):
            numbers = " | ".join(shown(value) for value in (t.load, t.minimum, t.median))
            names = " | ".join(cell(text) for text in (t.model, t.part, t.device, t.compute_units))
            lines.append(f"| {names} | {numbers} | {t.source} |")
        if self.shares:
            lines += [
                "",
                "| part | compute units | operation | runs on | count | cost |",
                "|---|---|---|---|---:|---:|",
            ]
        for s in self.shares:
            lines.append(
                f"| {s.part} | {s.compute_units} | {s.operation} | {s.processor} | {s.count} | {100 * s.cost:.1f}% |"
            )
        return "\n".join(lines)


def benchmark(folder: Path, runs: int = 50, import_report: Path | None = None) -> Benchmark:
    """Measure the packages of a folder on this Mac, or import what Xcode measured on a device.

    Args:
      folder: from `repvit-sam export coreml`.
      runs: predictions a compute unit.
      import_report: see `read_report`; nothing is measured then.

    Raises:
      FileNotFoundError: there is no package in the folder, or no report.
      ValueError: this is no Mac and no report was given, a package is damaged, or the report is not as `read_report`
        wants it.
    """
    if runs < 1:
        raise ValueError(f"--runs must be at least 1, got {runs}")
    for part in PARTS:
        if not (folder / f"{part}.mlpackage").is_dir():
            raise FileNotFoundError(f"no {part}.mlpackage in {folder}; `repvit-sam export coreml` writes it")
    if import_report is None and sys.platform != "darwin":
        raise ValueError(
            "this needs macOS, where Core ML runs; what Xcode measured on a device comes in by --import-report FILE"
        )
    require("coremltools")
    if import_report is not None:
        return Benchmark(read_report(import_report, preset_of(folder)))
    return measure(folder, runs, import_quietly("coremltools"), _mac())


def preset_of(folder: Path) -> str:
    """Which model the encoder package says it holds."""
    path = folder / "encoder.mlpackage"
    load_spec = import_quietly("coremltools").models.utils.load_spec
    try:
        spec = load_spec(str(path))
    except Exception as error:  # its errors share no class of their own
        raise ValueError(f"{path} is no Core ML package; `repvit-sam export coreml` writes it") from error
    return spec.description.metadata.userDefined["preset"] or "unknown"


def _mac() -> str:
    import subprocess

    done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or platform.machine()


def measure(folder: Path, runs: int, ct: Any, device: str) -> Benchmark:
    """Load and predict each package on each choice of compute units.

    Args:
      folder: with the packages.
      runs: predictions after a first one that does not count.
      ct: coremltools.
      device: for the table.
    """
    timings, shares = [], []
    preset = preset_of(folder)
    for part in PARTS:
        for name, units in COMPUTE_UNITS.items():
            path = str(folder / f"{part}.mlpackage")
            start = time.perf_counter()
            model = ct.models.MLModel(path, compute_units=ct.ComputeUnit[name])
            load = 1e3 * (time.perf_counter() - start)
            given = example_inputs(model.get_spec())
            minimum, median = repeat(functools.partial(model.predict, given), runs)
            timings.append(Timing(preset, part, device, units, load, minimum, median, "measured"))
            plan = ct.models.compute_plan.MLComputePlan.load_from_path(
                path=str(model.get_compiled_model_path()), compute_units=ct.ComputeUnit[name]
            )
            shares += cost_shares(plan, part, units)
    return Benchmark(tuple(timings), tuple(shares))


def example_inputs(spec: Any) -> dict[str, Any]:
    """An input of each name, kind and size that a model's description asks for; ranges at their default."""
    from PIL import Image

    rng = np.random.default_rng(0)
    given: dict[str, Any] = {}
    for described in spec.description.input:
        if described.type.WhichOneof("Type") == "imageType":
            size = (described.type.imageType.height, described.type.imageType.width, 3)
            given[described.name] = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        else:
            given[described.name] = rng.uniform(0, 1, list(described.type.multiArrayType.shape)).astype(np.float32)
    return given


def repeat(call: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Minimum and median milliseconds of a call that has been made once before."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times), statistics.median(times)


def cost_shares(plan: Any, part: str, units: str) -> list[Share]:
    """What a compute plan (`coremltools.models.compute_plan.MLComputePlan`) says, by operation and processor."""
    found: dict[tuple[str, str], list[float]] = {}
    for op in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        cost = plan.get_estimated_cost_for_mlprogram_operation(op)
        if usage is None or cost is None:  # constants
            continue
        processor = type(usage.preferred_compute_device).__name__
        short = processor.removeprefix("ML").removesuffix("ComputeDevice")
        found.setdefault((op.operator_name.split(".")[-1], short), []).append(cost.weight)
    total = sum(sum(costs) for costs in found.values()) or 1.0
    shares = [Share(part, units, op, where, len(costs), sum(costs) / total) for (op, where), costs in found.items()]
    return sorted(shares, key=lambda share: -share.cost)


def read_report(path: Path, model: str) -> tuple[Timing, ...]:
    """The figures of Xcode's performance report, written into a JSON file.

    Xcode's own file format is not documented, so the file is what a person reads off the report's window:
    `{"device": "iPhone 12", "reports": [{"part": "encoder", "compute_units": "all", "load_ms": 812.0,
    "median_ms": 48.9}]}`. `load_ms` and `min_ms` may be left out.

    Args:
      path: the file.
      model: the preset that was measured.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not of this form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        _check_keys(given, {"device", "reports"}, set())
        device, reports = given["device"], given["reports"]
        if not isinstance(device, str) or not device or not isinstance(reports, list) or not reports:
            raise ValueError('"device" is a name and "reports" a list that is not empty')
        return tuple(_timing(model, device, report) for report in reports)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no report as --import-report wants it: {error}") from error


def _timing(model: str, device: str, report: Any) -> Timing:
    _check_keys(report, {"part", "compute_units", "median_ms"}, {"load_ms", "min_ms"})
    if report["part"] not in PARTS:
        raise ValueError(f'"part" is {" or ".join(PARTS)}, got {report["part"]!r}')
    if not isinstance(report["compute_units"], str):
        raise ValueError(f'"compute_units" is a name, got {report["compute_units"]!r}')
    numbers = {key: report.get(key) for key in ("load_ms", "min_ms", "median_ms")}
    for key, value in numbers.items():
        if value is not None and not (isinstance(value, int | float) and 0 < value < 1e9 and value is not True):
            raise ValueError(f'"{key}" is a positive number of milliseconds, got {value!r}')
    if numbers["median_ms"] is None:
        raise ValueError('"median_ms" is a positive number of milliseconds, got None')
    load, minimum, median = numbers.values()
    return Timing(model, report["part"], device, report["compute_units"], load, minimum, median, "Xcode")


def _check_keys(value: Any, needed: Iterable[str], optional: Iterable[str]) -> None:
    needed, known = set(needed), {*needed, *optional}
    if not isinstance(value, dict):
        raise ValueError(f"expected an object with {_listed(needed)}, got {type(value).__name__}")
    if missing := needed - set(value):
        raise ValueError(f"{_listed(missing)} missing")
    if unknown := set(value) - known:
        raise ValueError(f"unknown {_listed(unknown)}; known are {_listed(known)}")


def _listed(names: Iterable[str]) -> str:
    shown: Sequence[str] = sorted(names)
    return ", ".join(f'"{name}"' for name in shown)


def command(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    runs: int = 50,
    import_report: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time Core ML packages on this Mac, beside the published figures; or add what Xcode measured on a device.

    Args:
      folder: From `repvit-sam export coreml`.
      runs: Predictions for each choice of compute units.
      import_report: A JSON file with the numbers of Xcode's performance report, in place of measuring; its form is in
        docs/export.md.
      as_json: Print JSON in place of the tables.
    """
    found = benchmark(folder, runs, import_report)
    print(json.dumps(found.to_dict(), indent=1) if as_json else found.to_text())


def main(args: Sequence[str] | None = None, prog: str = "benchmarks.coreml") -> None:
    """Entry point, with its arguments or those of the process."""
    with errors_in_one_line("export"):
        tyro.cli(command, args=args, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    main()
