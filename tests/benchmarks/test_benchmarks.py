"""The benchmark runs on the tiny preset, and a fast wrong answer stops it. No times are asserted."""

import dataclasses
import importlib.util
import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import input, models, report, rivals
from benchmarks.harness import Candidate, WrongAnswerError, interleave, ratios
from convert.export import onnx
from repvit_sam_jax import PRESETS, Sam
from repvit_sam_jax.data.shards import write_shards
from train import tpu

TINY = ["--preset", "tiny", "--rounds", "2", "--json"]
pytestmark = pytest.mark.torch


@pytest.fixture
def quick(monkeypatch):
    """Without what takes a minute to compile or to export."""
    monkeypatch.setattr(rivals, "compiled_encoders", lambda *_: [])
    monkeypatch.setattr(rivals, "_onnxruntime", lambda *_: [])
    monkeypatch.setattr(rivals, "_openvino", lambda *_: [])


@pytest.mark.parametrize("batch", [("2",), pytest.param(("1", "2"), marks=pytest.mark.slow(group="use"))])
def test_encoder_and_decoder(quick, capsys, batch):
    command.main(["encoder", *TINY, "--image-size", "64", "--batch", *batch])
    result = json.loads(capsys.readouterr().out)
    sections = result["sections"]
    theirs = {"torch_fp32", "torch_channels_last_fp32", "torch_bf16"}
    assert result["image_size"] == 64
    assert list(sections) == [f"encoder, batch {n}" for n in batch]
    for section in sections.values():
        assert set(section["milliseconds"]) == theirs | {"jax_fp32", "jax_bf16"}
        assert "jax_fp32/torch_fp32" in section["ratios"]
    command.main(["decoder", *TINY, "--image-size", "64", "--prompts", "3"])
    (section,) = json.loads(capsys.readouterr().out)["sections"].items()
    assert section[0] == "decoder, 3 point prompts"
    assert set(section[1]["milliseconds"]) == {"torch_fp32", "jax_fp32", "jax_bf16"}


@pytest.mark.slow(group="use")
@pytest.mark.parametrize(
    "largest",
    [onnx.LARGEST, 1000],
    ids=["one file", "weights beside it"],
)
def test_runtimes_of_the_exported_encoder(monkeypatch, largest):
    """They are held against the twin, as far as they are installed."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "LARGEST", largest)
    config = PRESETS["tiny"]
    params = models.deploy_params(config)
    images = command._images(config, 1)
    eager = rivals.encoders(Sam(config), params, images)[0]
    found = rivals.exported_encoder(Sam(config), params, images)
    names = ["onnxruntime_fp32"] + ["openvino_fp32", "openvino_bf16"] * bool(importlib.util.find_spec("openvino"))
    assert [candidate.name for candidate in found] == names
    assert list(interleave([eager, *found], rounds=1)) == ["torch_fp32", *names]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encoder", "--preset", "nope"], "unknown preset 'nope'"),
        (["encoder", "--preset", "tiny", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["decoder", "--preset", "tiny", "--prompts", "1", "0"], "--prompts must be at least 1, got 0"),
        (["input", "--data", "nowhere", "--preset", "tiny"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="1"):
        command.main(arguments)
    printed, errors = capsys.readouterr()
    assert printed == ""
    *progress, last = errors.splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert not [line for line in progress if not line.endswith(" ...")]


@pytest.mark.slow(group="use")
def test_a_mistake_in_a_process_of_its_own():
    command = [sys.executable, "-m", "benchmarks", "encoder", "--preset", "nope"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: unknown preset 'nope'")
    assert "Traceback" not in done.stderr


def test_all_does_without_libtpu(monkeypatch, tmp_path, capsys):
    """What was measured before would be lost."""
    monkeypatch.setattr(tpu, "LIBTPU", tmp_path / "libtpu.so")
    titles = list(command._sections(("all",), (), PRESETS["tiny"], (1,), (1,), 4, 1))
    assert len(titles) == 4
    assert not [title for title in titles if "TPU" in title]
    assert "no estimate for TPUs" in capsys.readouterr().err


def test_a_runtime_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    assert rivals._openvino(pytest.fail, np.zeros(1), np.asarray) == []
    assert capsys.readouterr().err == "without OpenVINO: openvino not installed\n"


def test_all_measures_every_part_but_the_table_of_models():
    given = ((), PRESETS["tiny"], (1, 2), (1, 64), 32, 5)
    whole = list(command._sections(("all",), *given))
    suites = get_args(command.Suite)[:-3]
    assert whole == [title for suite in suites for title in command._sections((suite,), *given)]
    assert whole == list(command._sections(suites[::-1], *given))
    assert whole[:4] == ["encoder, batch 1", "encoder, batch 2", "decoder, 1 point prompt", "decoder, 64 point prompts"]
    assert get_args(command.Suite)[-3:] == ("models", "input", "all")


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow(group="use"))])
def test_input_of_training(tmp_path, monkeypatch, capsys, processes):
    """Without processes, which take long to start, threads read in their stead."""
    asked, read = [], input.batches

    def batches(*given, reading, **options):
        asked.append((reading.threads, reading.workers))
        return read(*given, reading=reading if processes else dataclasses.replace(reading, workers=0), **options)

    monkeypatch.setattr(input, "batches", batches)
    write_shards(tmp_path / "scenes", 3, size=64)
    command.main(["input", "--data", str(tmp_path / "scenes"), *TINY, "--batch", "2", "--rounds", "1"])
    (section,) = json.loads(capsys.readouterr().out)["sections"].values()
    names = [row[""] for row in section["table"]]
    assert {"1 thread", "2 threads", "1 process", "2 processes"} < set(names)
    assert names[-1].endswith(", to a device")
    assert {(1, 0), (2, 0), (1, 1), (1, 2)} <= set(asked)
    assert section["notes"][-1] == "3 photos, 8 masks each, batch 2"
    for arguments in (["input"], ["encoder", "--data", str(tmp_path)]):
        with pytest.raises(SystemExit, match="1"):
            command.main([*arguments, *TINY])
        assert "input needs photos" in capsys.readouterr().err


def test_report_as_text_and_as_tables():
    times = {"jax": {"median": 12.0, "minimum": 10.0, "peak_megabytes": None}}
    sections = {
        "timed": {"milliseconds": times, "ratios": {"jax/torch": 0.5}},
        "listed": {"table": [{"name": "a", "cells": 1234.5}], "notes": ["a note"]},
    }
    about = {"cpus": 2, "machine": "a machine", "devices": ["cpu"], "versions": {"jax": "1"}}
    result = {"environment": about, "preset": "tiny", "image_size": 64, "sections": sections}
    text, tables = report.to_text(result), report.to_markdown(result)
    for line in ("jax/torch: 0.50", "a note", "2 CPUs of a machine, JAX on cpu; jax 1."):
        assert line in text
        assert line in tables
    assert "| jax | 12 | 10 |  |" in tables
    assert "| name | cells |" in tables
    assert "| a | 1234 |" in tables
    assert "name  cells" in text
    assert "12" not in text.replace("1234", "")


def test_table_of_models(monkeypatch):
    """With stand-ins for what `test_encoder_and_decoder` runs: the model's own encoders."""
    asked = []

    def encoders(config, params, images):
        asked.append((config, len(params["image_encoder"]), images.shape))
        return [Candidate(name, lambda: 0.0) for name in ("jax_fp32", "jax_bf16")]

    monkeypatch.setattr(models, "encoders", encoders)
    assert_is_a_table(models.table(names := ("tiny_vit_sam", "tiny"), image_size=64, rounds=1), names)
    assert [config.name for config, *_ in asked] == list(names)
    for config, parts, shape in asked:
        assert parts == len(Sam(config).abstract_params()["image_encoder"])
        assert shape == (1, 64, 64, 3)


@pytest.mark.slow(group="use")
def test_table_of_models_as_they_are(quick):
    names = ("tiny", "tiny_mobile_sam", "tiny_vit_sam")
    assert_is_a_table(models.table(names, rounds=1), names)


def assert_is_a_table(found, names):
    assert list(found["by_model"]) == list(names)
    for row, preset in zip(found["table"], found["by_model"], strict=True):
        params = Sam(PRESETS[preset]).abstract_params()
        count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        assert row["model"] == f"`{preset}`"
        assert row["checkpoint"] == ""
        assert row["parameters (encoder)"].startswith(f"{count / 1e6:.1f} M (")


def test_peak_of_a_run():
    """Memory that a run takes and gives back is seen: new pages, for the heap may have as much to spare."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("resident memory is read from Linux's /proc")

    def run():
        memory = np.frombuffer(mmap.mmap(-1, 200_000_000), np.uint8)
        memory[::4096] = 1
        return memory[0]

    times = interleave([Candidate("large", run), Candidate("small", lambda: 0.0)], 2)
    assert 150 < times["large"]["peak_megabytes"] < 300
    assert times["small"]["peak_megabytes"] < 50


def test_multiply_accumulates():
    """The figures that are known of the fused encoders at 1024."""
    assert round(rivals.encoder_macs(PRESETS["repvit_sam"]) / 1e9) == 113
    assert round(rivals.encoder_macs(PRESETS["sam_vit_h"]) / 1e9, -1) == 2980


def test_candidates_take_turns_after_a_warm_up():
    calls = []
    candidates = [Candidate(name, lambda name=name: calls.append(name) or np.arange(3.0)) for name in "ab"]
    times = interleave(candidates, 3)
    assert calls == list("abababab")
    assert times["a"]["minimum"] <= times["a"]["median"]


def test_wrong_answers_stop_the_benchmark():
    right = Candidate("torch", lambda: np.arange(3.0))
    for wrong in (np.arange(3.0) + 1, np.full(3, np.nan)):
        with pytest.raises(WrongAnswerError, match="jax differs from torch"):
            interleave([right, Candidate("jax", lambda wrong=wrong: wrong, "torch")], 1)


def test_ratios():
    times = {"jax_a": {"median": 1.0}, "jax_b": {"median": 4.0}, "torch": {"median": 2.0}}
    assert ratios(times) == {"jax_a/torch": 0.5, "jax_b/torch": 2.0}
