"""How exports are compared with the JAX model."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from convert.export import gate, rounding, verify
from convert.export.source import read_source
from convert.report import MaskRow, Report, Row
from convert.synthetic import PHOTO
from repvit_sam_jax.config import PRESETS

CONFIG = PRESETS["tiny"]


@pytest.mark.parametrize("square", [False, True])
def test_flipped_pixels_are_finer_than_the_model_sees(square):
    """An outline that moves by less than a pixel of a small frame flips as much as it does on a photo."""
    size = CONFIG.image_size
    height = size if square else size * 3 // 4
    rows = np.arange(size // 4, dtype=np.float32)[:, None] - 10.3
    ramp = np.broadcast_to(rows, (1, 1, size // 4, size // 4))
    expected = SimpleNamespace(config=CONFIG, photos=[np.zeros((height, size, 3), np.uint8)], masks={"point": ramp})
    pixels = PHOTO[1] // (size // 4)  # of the photo that a logit covers, along each side
    row = verify._mask_row("onnx", "point", ramp + np.float32(3 / pixels), expected, 1e-5)
    assert row.flipped == pytest.approx(3 / (PHOTO[1] if square else PHOTO[0]), rel=1e-3)
    assert not row.passed
    assert verify._mask_row("onnx", "point", ramp, expected, 1e-5).passed


def test_rounding_alone(shallow):
    """The twin's in float32 is what exports may have in place of a bar; in float16 it is a thousand times more."""
    source = read_source(shallow)
    alone = {precision: rounding.measure(source, precision) for precision in ("float32", "float16")}
    for row, half in zip(alone["float32"].rows, alone["float16"].rows, strict=True):
        assert 1e-9 < row.relative < 1e-5
        assert 100 * row.relative < half.relative < 0.1
    found = alone["float32"].rows
    rows = [
        dataclasses.replace(row, form="x", relative=1.9 * row.relative, tolerance=1e-9) for row in alone["float32"].rows
    ]
    report = Report("tiny", (*rows, dataclasses.replace(rows[0], name="embedding, padded")), ())
    assert not report.passed
    assert gate.gate(lambda _: report, source).passed
    worse = dataclasses.replace(rows[0], relative=2.1 * found[0].relative)
    with pytest.raises(verify.ExportError, match=r"tiny in x, float64 is past tolerance in 1 comparisons, embedding"):
        gate.gate(lambda _: Report("tiny", (worse, *rows[1:]), ()), source)
    assert "| rounding alone |" in gate.gate(lambda _: report, source).to_text()


@pytest.mark.parametrize("rounds_to", [(np.inf, 0.6), (np.nan, np.nan), (0.3, 0.06)])
def test_rounding_that_leaves_nothing_of_the_model_passes_nothing(monkeypatch, rounds_to):
    """Unrelated masks are not as good as it gets."""
    error, flips = rounds_to
    alone = Report(
        "tiny", (Row("x", "embedding", error, error, 0.5, 1e-5),), (MaskRow("x", "point", 0.1, flips, 1e-3),)
    )
    monkeypatch.setattr(rounding, "measure", lambda source, precision: alone)
    found = Report("tiny", (Row("x", "embedding", 0.45, 0.45, 0.5, 1e-5),), (MaskRow("x", "point", 0.1, 0.09, 1e-3),))
    report = rounding.with_rounding(found, None, "float16")
    assert not report.passed
    assert [row.tolerance for row in (*report.rows, *report.masks)] == [1e-5, 1e-3]
