"""IoU, size classes and the content's cells, against pycocotools, PyTorch and counting."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco

from repvit_sam_jax.evals import metrics


def test_iou_is_that_of_pycocotools(rng):
    a, b = rng.random((2, 7, 9, 11)) < 0.4
    a[0] = b[0] = False
    a[1] = False
    b[2] = a[2]
    encoded = [[coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks] for masks in (a, b)]
    expected = [coco.iou([x], [y], [0])[0, 0] for x, y in zip(*encoded, strict=True)]
    assert expected[:3] == [0, 0, 1]
    found = metrics.iou(a, b)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(metrics.iou)(a, b), found)
    assert metrics.iou(a[:, None], b).shape == (7, 7)


def test_iou_refuses_what_is_no_pair_of_masks():
    mask = np.ones((2, 4, 4), bool)
    with pytest.raises(ValueError, match="b must be boolean masks, got float32; threshold"):
        metrics.iou(mask, jnp.ones((2, 4, 4)))
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(8, 8\)"):
        metrics.iou(mask, np.ones((2, 8, 8), bool))


def test_means_by_size():
    areas = [0, 32**2 - 1, 32**2, 96**2 - 1, 96**2]
    means = metrics.mean_by_size(np.float32([0.1, 0.3, 0.5, 0.7, 1.0]), areas)
    assert means.pop("count") == {"all": 5, "small": 2, "medium": 2, "large": 1}
    assert means == pytest.approx({"all": 0.52, "small": 0.2, "medium": 0.6, "large": 1.0})
    means = metrics.mean_by_size(np.float32([0.5]), np.float32([50]), bounds=(10, 100))
    assert json.loads(json.dumps(means)) == {
        **{"all": 0.5, "small": None, "medium": 0.5, "large": None},
        "count": {"all": 1, "small": 0, "medium": 1, "large": 0},
    }
