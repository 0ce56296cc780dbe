"""Weights of the tiny preset as files of either kind, and the exports that several tests look at."""

import pytest

from repvit_sam_jax import PRESETS


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A PyTorch checkpoint in the published form, and the same as safetensors beside it."""
    from convert.from_torch import from_torch
    from convert.synthetic import write

    path = tmp_path_factory.mktemp("exports") / "tiny.pt"
    write(path, PRESETS["tiny"], seed=3)
    from_torch(path, path.with_suffix(".safetensors"))
    return path


@pytest.fixture(scope="session")
def onnx_folder(checkpoint):
    pytest.importorskip("onnxruntime")
    from convert.export.onnx import export_onnx

    folder = checkpoint.parent / "onnx"
    return folder, export_onnx(checkpoint, folder, full_size=True)


@pytest.fixture(scope="session")
def coreml_folder(checkpoint):
    pytest.importorskip("coremltools")
    from convert.export.coreml import export_coreml

    folder = checkpoint.parent / "coreml"
    report = export_coreml(checkpoint, folder)
    assert report.passed
    assert {row.case for row in report.rows} >= {"point", "box, points", "points, mask"}
    assert report.rows[-1].stage == "embedding, padded"
    return folder


@pytest.fixture(scope="session")
def stablehlo_file(checkpoint):
    from convert.export.stablehlo import export_stablehlo

    path = checkpoint.parent / "model.stablehlo"
    report = export_stablehlo(checkpoint, path)
    assert report.passed
    assert len(report.rows) > 10
    return path
