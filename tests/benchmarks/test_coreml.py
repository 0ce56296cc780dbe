"""Latency of Core ML packages: what can be tested without a Mac. Reports, statistics, tables, and the plan's shares."""

import dataclasses
import json
import re
import sys
import types

import pytest

from benchmarks import coreml as coreml_bench
from benchmarks.coreml import Benchmark, Timing, cost_shares, measure, read_report, repeat

REPORT = {
    "device": "iPhone 12",
    "reports": [
        {"part": "encoder", "compute_units": "all", "load_ms": 812.0, "median_ms": 50.5},
        {"part": "decoder", "compute_units": "cpu", "median_ms": 12},
    ],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for part in coreml_bench.PARTS:
        (tmp_path / f"{part}.mlpackage").mkdir()
    monkeypatch.setattr(coreml_bench, "preset_of", lambda _: "repvit_sam")
    monkeypatch.setattr(coreml_bench, "require", lambda *_: None)
    return tmp_path


def run(*arguments):
    coreml_bench.main([*map(str, arguments)])


def test_imported_report_joins_the_published_figures(folder, monkeypatch, capsys):
    (folder / "report.json").write_text(json.dumps(REPORT))
    run(folder, "--import-report", folder / "report.json")
    text = capsys.readouterr().out
    assert "| repvit_sam | encoder | iPhone 12 | all | 812.0 |  | 50.5 | Xcode |" in text
    for published in ("48.9", "44.8", "482.2", "6249.5", "11.8"):
        assert re.search(rf"\| {re.escape(published)} \| published \|", text)
    run(folder, "--import-report", folder / "report.json", "--json")
    found = json.loads(capsys.readouterr().out)
    assert len(found["timings"]) == 7
    assert found["timings"][-1]["median"] == 12
    assert found["cost_shares"] == []


def test_names_keep_the_table_whole():
    """A bar or a line break in what a person wrote is no column or row of its own."""
    timing = Timing("tiny", "encoder", "iPhone | 12\nmine", "all", None, None, 1.0, "Xcode")
    header, _, *lines = Benchmark((timing,)).to_text().split("\n")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in (header, *lines)} == {9}
    assert r"| iPhone \| 12 mine | all |" in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": ""}, '"device" is a name'),
        ({"reports": []}, "a list that is not empty"),
        ({"extra": 1}, 'unknown "extra"; known are "device", "reports"'),
        ({"reports": [{"part": "encoder", "compute_units": "all"}]}, '"median_ms" missing'),
        ({"reports": [{**REPORT["reports"][0], "part": "neck"}]}, '"part" is encoder or decoder'),
        ({"reports": [{**REPORT["reports"][0], "median_ms": -1}]}, "positive number of milliseconds, got -1"),
        ({"reports": [{**REPORT["reports"][0], "median_ms": None}]}, "positive number of milliseconds, got None"),
        ({"reports": [{**REPORT["reports"][0], "load_ms": "1"}]}, "positive number of milliseconds, got '1'"),
        ({"reports": [[]]}, 'expected an object with "compute_units", "median_ms", "part", got list'),
    ],
)
def test_bad_reports(tmp_path, change, message):
    (tmp_path / "report.json").write_text(json.dumps({**REPORT, **change}))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_report(tmp_path / "report.json", "repvit_sam")


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_elsewhere_it_says_that_it_needs_macos(folder, tmp_path, monkeypatch, capsys):
    """And not first that coremltools is to be installed."""
    monkeypatch.setattr(coreml_bench, "require", pytest.fail)
    for arguments, message in (
        ([folder], "error: this needs macOS"),
        ([folder, "--runs", "0"], "error: --runs must be at least 1, got 0"),
        ([folder / "empty"], "error: no encoder.mlpackage in"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        errors = capsys.readouterr().err
        assert errors.startswith(message)
        assert errors.count("\n") == 1


def test_bad_files_in_one_line(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(folder, "--import-report", folder / "none.json")
    assert capsys.readouterr().err.startswith("error: no report at")


@pytest.mark.torch
def test_bad_packages_in_one_line(folder, monkeypatch, capsys):
    pytest.importorskip("coremltools")
    monkeypatch.undo()
    (folder / "report.json").write_text(json.dumps(REPORT))
    with pytest.raises(SystemExit):
        run(folder, "--import-report", folder / "report.json")
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.endswith("encoder.mlpackage is no Core ML package; `repvit-sam export coreml` writes it\n")


def test_statistics(monkeypatch):
    """The first call does not count."""
    clock = iter([0, 0.010, 1, 1.030, 2, 2.020])
    monkeypatch.setattr(coreml_bench, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    calls = []
    minimum, median = repeat(lambda: calls.append(1), runs=3)
    assert len(calls) == 4
    assert (minimum, median) == (pytest.approx(10), pytest.approx(20))


class MLNeuralEngineComputeDevice:
    """Named as coremltools names it: the table's name comes from it."""


class MLCPUComputeDevice:
    """Likewise."""


def plan():
    """A compute plan with two convolutions, a GELU on another processor, and a constant."""
    rows = [
        ("ios17.conv", MLNeuralEngineComputeDevice(), 0.5),
        ("ios17.conv", MLNeuralEngineComputeDevice(), 0.25),
        ("ios16.gelu", MLCPUComputeDevice(), 0.25),
        ("const", None, None),
    ]
    operations = [types.SimpleNamespace(operator_name=name, device=device, cost=cost) for name, device, cost in rows]
    block = types.SimpleNamespace(operations=operations)
    function = types.SimpleNamespace(block=block)
    return types.SimpleNamespace(
        model_structure=types.SimpleNamespace(program=types.SimpleNamespace(functions={"main": function})),
        get_compute_device_usage_for_mlprogram_operation=lambda op: (
            op.device and types.SimpleNamespace(preferred_compute_device=op.device)
        ),
        get_estimated_cost_for_mlprogram_operation=lambda op: op.cost and types.SimpleNamespace(weight=op.cost),
    )


def test_cost_shares():
    shares = cost_shares(plan(), "encoder", "all")
    assert [(s.operation, s.processor, s.count, s.cost) for s in shares] == [
        ("conv", "NeuralEngine", 2, 0.75),
        ("gelu", "CPU", 1, 0.25),
    ]
    text = Benchmark((), tuple(shares)).to_text()
    assert "| encoder | all | conv | NeuralEngine | 2 | 75.0% |" in text


def test_measure_asks_for_every_choice(folder, monkeypatch):
    """With a stand-in for coremltools, whose real one runs models on macOS only."""
    asked = []

    class Model:
        def __init__(self, path, compute_units):
            asked.append((path.rsplit("/", 1)[-1], compute_units))

        get_spec = predict = get_compiled_model_path = lambda self, *_: "x"

    monkeypatch.setattr(coreml_bench, "example_inputs", lambda _: {})
    loader = types.SimpleNamespace(load_from_path=lambda path, compute_units: plan())
    models = types.SimpleNamespace(MLModel=Model, compute_plan=types.SimpleNamespace(MLComputePlan=loader))
    stand_in = types.SimpleNamespace(models=models, ComputeUnit={name: name for name in coreml_bench.COMPUTE_UNITS})
    found = measure(folder, 3, stand_in, "Mac")
    assert len(asked) == len(found.timings) == 8
    assert {units for _, units in asked} == {"ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"}
    assert all(t.device == "Mac" and t.minimum <= t.median for t in found.timings)
    assert isinstance(found.timings[0], Timing)
    assert dataclasses.asdict(found.shares[0])["part"] == "encoder"


@pytest.mark.torch
def test_example_inputs():
    """What a package asks for: an image of its size, arrays of theirs."""
    coremltools = pytest.importorskip("coremltools")
    from coremltools.proto import Model_pb2

    assert coremltools
    spec = Model_pb2.Model()
    image, array = spec.description.input.add(), spec.description.input.add()
    image.name, array.name = "image", "coords"
    image.type.imageType.width, image.type.imageType.height = 128, 64
    array.type.multiArrayType.shape.extend([1, 2, 2])
    given = coreml_bench.example_inputs(spec)
    assert given["image"].size == (128, 64)
    assert given["coords"].shape == (1, 2, 2)
