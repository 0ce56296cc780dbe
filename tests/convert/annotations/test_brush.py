"""Label Studio's brush strokes, against its own encoder (label_studio_sdk 2.1.2)."""

import json

import numpy as np
import pytest

from convert.annotations import brush
from tests.helpers.measures import GOLDEN
from tests.helpers.photos import smooth_mask

CASES = json.loads((GOLDEN / "label_studio_brush.json").read_text())


@pytest.mark.parametrize("name", list(CASES))
def test_what_label_studio_wrote(name):
    case = CASES[name]
    expected = np.array([[pixel == "#" for pixel in row] for row in case["mask"]])
    np.testing.assert_array_equal(brush.decode(case["rle"], tuple(case["size"])), expected)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (60, 80), (300, 400)])
def test_round_trip(rng, size):
    """The largest has runs that are longer than a length can say."""
    for mask in (rng.random(size) < 0.5, smooth_mask(rng, size), np.zeros(size, bool), np.ones(size, bool)):
        packed = brush.encode(mask)
        assert all(0 <= byte <= 255 for byte in packed)
        np.testing.assert_array_equal(brush.decode(packed, size), mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:20], "they end too early"),
        (lambda packed: packed[:2], "they end too early"),
        (lambda packed: [], "they end too early"),
        (lambda packed: [255] * 8 + packed[8:], "words of 32 bits"),
        (lambda packed: [0, 0, 0, 4, *packed[4:]], "its runs have 4 numbers, and 9 x 6 pixels have 4 each"),
        (lambda packed: [256, *packed], "its runs are damaged"),
        (lambda packed: ["a"], "its runs are damaged"),
        (lambda packed: None, "its runs are damaged"),
    ],
)
def test_damaged_runs(change, message):
    packed = CASES["soft edges and colours"]["rle"]
    with pytest.raises(ValueError, match=message):
        brush.decode(change(packed), (6, 9))
