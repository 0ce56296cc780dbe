"""How exports are compared with the JAX model."""

from types import SimpleNamespace

import numpy as np
import pytest

from convert.export import verify
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
