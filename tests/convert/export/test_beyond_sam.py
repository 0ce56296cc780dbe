"""Models with more than SAM has, as the demonstration model, leave by every way, and compute the same there."""

import importlib

import pytest

from convert.parity import parity
from repvit_sam_jax import checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.slow(group="export")]

NEEDS = {"onnx": "onnxruntime", "coreml": "coremltools", "litert": "litert_torch", "stablehlo": "jax"}


@pytest.mark.parametrize("form", NEEDS)
def test_exports(tiny_crf, tmp_path, form):
    pytest.importorskip(NEEDS[form])
    exporter = importlib.import_module(f"convert.export.{form}")
    model, params = tiny_crf
    checkpoint.save(tmp_path / "x.safetensors", params, checkpoint.Metadata(model.config, "deploy"))
    out = tmp_path / ("x.stablehlo" if form == "stablehlo" else "out")
    report = getattr(exporter, f"export_{form}")(tmp_path / "x.safetensors", out)
    assert report.passed
    assert out.exists()


def test_parity(tiny_crf, tmp_path):
    """With every combination of prompts."""
    model, params = tiny_crf
    checkpoint.save(tmp_path / "x.safetensors", params, checkpoint.Metadata(model.config, "deploy"))
    report = parity(tmp_path / "x.safetensors")
    assert report.passed
    assert {"drawing", "pixel_features"} <= {row.stage for row in report.rows}
