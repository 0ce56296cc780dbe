"""LiteRT files, where the converter is installed: it is an extra of its own."""

import pytest

pytest.importorskip("litert_torch")

from convert.export.litert import export_litert
from convert.synthetic import write
from repvit_sam_jax import PRESETS

pytestmark = [pytest.mark.torch, pytest.mark.slow(group="export"), pytest.mark.filterwarnings("ignore")]


def test_tiny(checkpoint, tmp_path):
    report = export_litert(checkpoint, tmp_path / "out")
    assert report.passed
    assert {row.case for row in report.masks} == {"point", "box", "point, mask"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["decoder.tflite", "encoder.tflite"]


def test_gate(checkpoint, tmp_path, monkeypatch):
    from convert.export import litert

    export_litert(checkpoint, tmp_path / "out")
    write(tmp_path / "other.pt", PRESETS["tiny"], seed=4)
    copy = lambda module, example, path: path.write_bytes((tmp_path / "out" / path.name).read_bytes())
    monkeypatch.setattr(litert, "_convert", copy)
    with pytest.raises(ValueError, match="tiny in litert, float64 is past tolerance"):
        export_litert(tmp_path / "other.pt", tmp_path / "other")
    assert not (tmp_path / "other").exists()
