"""SamAutomaticMaskGenerator against the plain procedure, on the same made-up logits."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.plain_generator import plain_generate
from repvit_sam_jax import SamAutomaticMaskGenerator
from repvit_sam_jax.inference import backends
from repvit_sam_jax.inference.predictor import EmbeddedImage
from tests.helpers.photos import photo

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_torch_thread")]

KEEP_ALL = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1, "crop_nms_thresh": 1}

# The same logits for both procedures. They are multiples of 1/64, and sizes are powers of two, so that every product of
# bilinear weights is exact in float32, however it is computed; values at a threshold and equal IoUs come up, too.


def made_up(crop, points):
    """Logits [P, 3, 32, 32] and IoUs [P, 3]: discs around the points, with ragged edges."""
    rng = np.random.default_rng(int(crop.sum()))
    noise = rng.normal(0, 2, (3, 32, 32))
    x, y = np.asarray(points, np.float64).T[:, :, None, None, None]
    radius = np.array([8, 12, 24])[:, None, None] * (1.2 + np.sin(0.3 * x + 0.7 * y))
    centres = 4 * np.arange(32) + 2
    distance = np.hypot(centres[None, :] - x - 5 * np.sin(x), centres[:, None] - y - 5 * np.cos(y))
    logits = np.round(np.clip(radius - distance + noise, -15, 15) * 64) / 64
    iou = np.round(8 * (0.5 + 0.5 * np.sin(x + y + np.arange(3)[:, None, None])))[..., 0, 0] / 8
    return logits.astype(np.float32), iou.astype(np.float32)


@pytest.fixture
def generator_of_made_up(tiny, monkeypatch):
    """A generator whose model answers with `made_up` logits."""
    monkeypatch.setattr(
        backends,
        "_decode_above",
        lambda model, params, crop, prompts, **_: [x[None] for x in made_up(crop, prompts.point_coords[0, :, 0])],
    )

    def make(**settings):
        generator = SamAutomaticMaskGenerator(*tiny, **settings)
        generator._embed = lambda images, crops: [
            (crop, EmbeddedImage(crop.cut(images[crop.image]), crop.size)) for crop in crops
        ]
        return generator

    return make


FILTERS = {"pred_iou_thresh": 0.25, "stability_score_thresh": 0.75, "box_nms_thresh": 0.7, "crop_nms_thresh": 0.6}
GRIDS = [np.random.default_rng(0).uniform(0, 1, (count, 2)) for count in (50, 9, 4)]
SETTINGS = {
    "defaults": ((128, 128), {**FILTERS, "points_per_side": 12}),
    "wide": ((64, 256), {**FILTERS, "points_per_side": 9, "points_per_batch": 7}),
    "no filters": ((64, 128), {**KEEP_ALL, "points_per_side": 5, "points_per_batch": 8}),
    "duplicates only": (
        (128, 128),
        {**FILTERS, "pred_iou_thresh": 0, "stability_score_thresh": 0, "points_per_side": 10},
    ),
    "crops": ((256, 128), {**FILTERS, "points_per_side": 8, "crop_n_layers": 1, "crop_overlap_ratio": 0}),
    "crops of crops": (
        (512, 256),
        {
            **FILTERS,
            "points_per_side": 6,
            "crop_n_layers": 2,
            "crop_overlap_ratio": 0,
            "crop_n_points_downscale_factor": 2,
        },
    ),
    "grids": (
        (256, 256),
        {**FILTERS, "points_per_side": None, "point_grids": GRIDS, "crop_n_layers": 1, "crop_overlap_ratio": 0},
    ),
    "small regions": ((128, 128), {**FILTERS, "points_per_side": 10, "min_mask_region_area": 25}),
    "small regions of crops": (
        (128, 256),
        {
            **FILTERS,
            "box_nms_thresh": 0.5,
            "points_per_side": 6,
            "min_mask_region_area": 40,
            "crop_n_layers": 1,
            "crop_overlap_ratio": 0,
            "stability_score_offset": 0.5,
        },
    ),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_identical_logits_give_identical_records(generator_of_made_up, name):
    size, settings = SETTINGS[name]
    image = photo(*size)

    def embed(crop):
        return lambda points: tuple(torch.from_numpy(x) for x in made_up(crop, points.numpy()))

    expected, counts = plain_generate(embed, image, 128, **settings)
    found = generator_of_made_up(**settings).generate(image)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert list(a) == list(b)
        np.testing.assert_array_equal(a.pop("segmentation"), b.pop("segmentation"))
        np.testing.assert_equal(a, b)
    assert all(after >= 0.3 * before for before, after in itertools.pairwise(counts.values())), counts
    assert name == "no filters" or counts["duplicates in a crop"] < counts["crop edge"]
