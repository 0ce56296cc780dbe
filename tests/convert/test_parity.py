"""The parity command on the tiny preset: it passes for the right model, and each of many mistakes makes it fail."""

import dataclasses
import functools
import json
import sys
import types
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from convert import __main__ as command
from convert import parity
from convert.from_torch import from_torch
from convert.synthetic import PHOTO, synthetic_image, write
from convert.to_torch import to_torch
from convert.torch_models import Sam as TorchSam
from repvit_sam_jax import PRESETS, Sam
from repvit_sam_jax.models import layers
from repvit_sam_jax.models.encoders import repvit
from repvit_sam_jax.ops import upscaling
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.checkpoint import CheckpointError, Metadata
from repvit_sam_jax.weights.loading import read_params

pytestmark = pytest.mark.torch
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "tiny.pt"
    write(path, TINY)
    return path


@pytest.fixture(scope="module")
def photo():
    """The one that is taken if there is none."""
    return synthetic_image(*PHOTO)


@pytest.fixture(scope="module")
def report(source):
    return parity.parity(source)


def test_every_stage_is_compared_in_both_forms(report):
    encoder = {"stem", "neck", "embedding", *(f"blocks.{i}" for i in range(1, 16))}
    decoder = {
        "prompt_tokens",
        "dense_prompt",
        *(f"transformer.{i}.{side}" for i in range(2) for side in ("tokens", "image")),
        "transformer.final",
        "low_res_masks",
        "iou_predictions",
    }
    cases = {"point", "points", "box", "box_point", "points_mask"}
    for form in ("train", "deploy"):
        assert {row.name for row in report.rows if row.form == form} == encoder
        assert {mask.case for mask in report.masks if mask.form == form} == cases
    # The decoder is the same in both forms.
    assert {(row.name, row.case) for row in report.rows if row.form == "both"} == {
        (s, c) for s in decoder for c in cases
    }


def test_tiny_is_within_tolerance(report):
    print(report.to_text())
    assert report.passed
    assert report.noise is None
    assert all(mask.iou > 0.999 for mask in report.masks)


def test_the_bars(report):
    for row in report.rows:
        assert row.tolerance == 1e-5
    assert {mask.tolerance for mask in report.masks} == {1e-5}


def test_the_photo_is_no_smaller_for_a_small_model(source, monkeypatch):
    sizes = []
    monkeypatch.setattr(parity, "_compare_segmenters", lambda config, twin, forms, image: sizes.append(image.shape))
    parity.parity(source)
    assert sizes == [(768, 1024, 3)]  # of 96 x 128, one pixel of three masks is more than 1e-5


def test_photo_of_another_shape(source):
    assert parity.parity(source, synthetic_image(90, 50, seed=4)).passed


def test_fused_checkpoint(source, photo, tmp_path):
    twin = TorchSam(TINY)
    twin.load_state_dict(torch.load(source, weights_only=True), strict=True)
    torch.save(twin.fuse().state_dict(), tmp_path / "fused.pt")
    report = parity.parity(tmp_path / "fused.pt", photo)
    assert report.passed
    assert {row.form for row in report.rows} == {"deploy", "both"}


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_file_of_this_library(source, photo, tmp_path, form):
    from_torch(source, tmp_path / "tiny.safetensors", form=form)
    report = parity.parity(tmp_path / "tiny.safetensors", photo)
    assert report.passed
    assert {row.form for row in report.rows} == {form, "deploy", "both"}


def test_file_in_bfloat16_and_back(source, photo, tmp_path):
    from_torch(source, tmp_path / "full.safetensors")
    params = read_params(tmp_path / "full.safetensors")[2]
    checkpoint.save(tmp_path / "half.safetensors", params, Metadata(TINY, "train"), "bfloat16")
    to_torch(tmp_path / "half.safetensors", tmp_path / "back.pt")
    assert parity.parity(tmp_path / "back.pt", photo).passed


def test_problems_name_the_file(source, tmp_path):
    state = torch.load(source, weights_only=True)
    torch.save(dict(list(state.items())[1:]), tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match=r"missing\.pt: state dict of tiny"):
        parity.parity(tmp_path / "missing.pt")
    name = next(key for key in state if key.endswith("running_var"))
    torch.save({**state, name: -state[name]}, tmp_path / "negative.pt")
    with pytest.raises(CheckpointError, match=r"negative\.pt can't be fused: .*negative"):
        parity.parity(tmp_path / "negative.pt")


def _tanh_gelu(x):
    return jax.nn.gelu(x, approximate=True)


def _with_tanh_gelu(function):
    """A new function, for JAX knows its traces by identity."""
    return types.FunctionType(function.__code__, {**function.__globals__, "gelu": _tanh_gelu}, function.__name__)


def trace_anew(monkeypatch, name):
    """Let JAX, which knows functions by identity, forget a method of `Sam`; of the prompts the first one will do."""
    method = getattr(Sam, name)
    monkeypatch.setattr(Sam, name, functools.wraps(method)(lambda *given, **options: method(*given, **options)))
    cases = parity.cases
    monkeypatch.setattr(parity, "cases", lambda *given: cases(*given)[:1])


MISTAKES = {
    "tanh GELU in the encoder": ("encode_with_intermediates", repvit, "gelu", _tanh_gelu),
    "tanh GELU in the decoder": ("decode_with_intermediates", upscaling, "plain", _with_tanh_gelu(upscaling.plain)),
    "BatchNorm epsilon": ("encode_with_intermediates", layers.BatchNorm, "epsilon", 1e-3),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_in_the_model_shows(source, photo, monkeypatch, mistake):
    method, *change = MISTAKES[mistake]
    trace_anew(monkeypatch, method)
    monkeypatch.setattr(*change)
    assert not parity.parity(source, photo).passed


def test_nan_never_passes():
    ones = np.ones(4)
    row = parity.compare("train", "x", np.full(4, np.nan), np.arange(4.0), 1e-5)
    assert not row.passed
    assert not dataclasses.replace(row, relative=float("nan")).passed
    assert parity.compare("train", "x", np.arange(4.0), np.arange(4.0), 1e-5).passed
    with pytest.raises(ValueError, match="shape"):
        parity.compare("train", "x", ones, np.ones(5), 1e-5)


def test_flipped_pixels_are_counted():
    logits = np.full((1, 1, 1, 32, 32), 1.0, np.float32)
    flipped = logits.copy()
    flipped[..., :16, :] = -1
    case = parity.cases((128, 128), 128)[0]
    decoder = {"point": {"low_res_masks": logits}}
    reference = SimpleNamespace(config=TINY, size=(128, 128), decoder=decoder, mask_input=lambda case: None)
    row = parity._compare_masks("deploy", case, lambda embedding, prompts: ((flipped, None), {}), None, reference)
    assert row.flipped == pytest.approx(0.5, abs=0.02)
    assert row.iou == pytest.approx(0.5, abs=0.02)
    assert not row.passed


def run_command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    try:
        command.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_command_prints_the_table_and_json(source, monkeypatch, capsys):
    assert run_command(monkeypatch, "parity", source) == 0
    text = capsys.readouterr().out
    assert "| deploy | embedding |" in text
    assert "within tolerance" in text.splitlines()[-1]
    assert run_command(monkeypatch, "parity", source, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["passed"] is True
    assert {row["name"] for row in values["intermediates"]} >= {"stem", "embedding", "low_res_masks"}


def test_command_exits_with_1_past_tolerance(source, monkeypatch, capsys):
    monkeypatch.setattr("convert.report.ENCODER_TOLERANCE", -1.0)
    assert run_command(monkeypatch, "parity", source) == 1
    text = capsys.readouterr().out
    assert "FAIL" in text
    assert "between float32 and float64" in text
