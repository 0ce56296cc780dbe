"""The benchmark runs on the tiny preset, and a fast wrong answer stops it. No times are asserted."""

import json
import sys

import jax
import numpy as np
import pytest
import tyro

from benchmarks import __main__ as command
from benchmarks import models, rivals
from benchmarks.harness import Candidate, WrongAnswerError, interleave, ratios
from repvit_sam_jax import PRESETS, Sam

pytestmark = pytest.mark.torch


def test_report(monkeypatch, capsys):
    monkeypatch.setattr(rivals, "compiled_encoder", lambda *_: [])  # it takes torch a minute
    tyro.cli(command.main, args=["all", "--preset", "tiny", "--prompts", "3", "--rounds", "2", "--json"])
    report = json.loads(capsys.readouterr().out)
    theirs = {"torch_fp32", "torch_channels_last_fp32", "torch_channels_last_bf16"}
    assert set(report["encoder"]["milliseconds"]) == theirs | {"jax_fp32", "jax_bf16"}
    assert "jax_fp32/torch_fp32" in report["encoder"]["ratios"]
    assert set(report["decoder"]) == {"3"}
    text = command._markdown(report)
    assert "| decoder, 3 point prompts |" in text
    assert sys.modules["benchmarks.rivals"]


def test_table_of_models():
    rows = models.table(("tiny", "tiny_mobile_sam", "tiny_vit_sam"), rounds=1)
    assert [row["preset"] for row in rows] == ["tiny", "tiny_mobile_sam", "tiny_vit_sam"]
    for row in rows:
        params = Sam(PRESETS[row["preset"]]).abstract_params()
        assert row["parameters"] == sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        assert row["checkpoint"] is None
    text = models.to_markdown([{**rows[0], "checkpoint": "tiny.pt"}])
    assert "| `tiny` | `tiny.pt` | 0.1 M (0.0 M) | 0 |" in text


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
