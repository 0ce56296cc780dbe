"""Models that draw their prompts leave by every way, and compute the same there."""

import importlib

import pytest

from convert.parity import parity
from repvit_sam_jax import checkpoint

pytestmark = pytest.mark.torch

NEEDS = {"onnx": "onnxruntime", "coreml": "coremltools", "litert": "litert_torch", "stablehlo": "jax"}


@pytest.mark.parametrize("form", NEEDS)
def test_exports_draw(tiny_drawing, tmp_path, form):
    pytest.importorskip(NEEDS[form])
    exporter = importlib.import_module(f"convert.export.{form}")
    model, params = tiny_drawing
    checkpoint.save(tmp_path / "x.safetensors", params, checkpoint.Metadata(model.config, "deploy"))
    out = tmp_path / ("x.stablehlo" if form == "stablehlo" else "out")
    report = getattr(exporter, f"export_{form}")(tmp_path / "x.safetensors", out)
    assert report.passed
    assert out.exists()


def test_parity_of_what_is_drawn(tiny_drawing, tmp_path):
    model, params = tiny_drawing
    checkpoint.save(tmp_path / "x.safetensors", params, checkpoint.Metadata(model.config, "deploy"))
    report = parity(tmp_path / "x.safetensors")
    assert report.passed
    assert "drawing" in {row.stage for row in report.rows}
