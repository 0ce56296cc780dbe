"""SamAutomaticMaskGenerator on models: against the plain procedure on the PyTorch twin, and its own promises."""

import dataclasses
import itertools
import json

import chex
import jax
import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from benchmarks import everything
from benchmarks.harness import WrongAnswerError
from benchmarks.plain_generator import embed_with, plain_generate
from convert.torch_models import Sam as TorchSam
from repvit_sam_jax import PRESETS, Sam, SamAutomaticMaskGenerator
from repvit_sam_jax.config import GeneratorDefaults
from repvit_sam_jax.inference import backends, mask_generator, rle
from repvit_sam_jax.weights.formats import mapping
from tests.helpers.models import random_params
from tests.helpers.photos import photo
from tests.helpers.programs import recorded_compilations

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_torch_thread")]
SLOW = pytest.mark.slow(group="models")

KEEP_ALL = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1, "crop_nms_thresh": 1}
GRIDS = [np.random.default_rng(0).uniform(0, 1, (count, 2)) for count in (50, 9, 4)]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model whose masks differ from point to point, its params, and the twin."""

    model: Sam
    params: dict
    twin: TorchSam

    def plain(self, image, **settings):
        config = self.model.config
        return plain_generate(
            embed_with(self.twin), image, config.image_size, mask_threshold=config.mask_threshold, **settings
        )


@pytest.fixture(scope="session")
def pairs():
    """The tiny presets, with a mask threshold that leaves few of a mask's pixels."""
    made = {}
    for name in ("tiny", "tiny_vit_sam"):
        config = dataclasses.replace(PRESETS[name], mask_threshold=5.0)
        form = "train" if config.has_batch_norm else "deploy"
        model = Sam(config, form)
        params = everything.lively(model, random_params(model), photo(75, 110), sharpness=5.0)
        twin = TorchSam(config).eval()
        state = mapping.to_state(params, config, form)
        twin.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()}, strict=True)
        made[name] = Pair(model, params, twin)
    return made


def middle(values, quantile):
    """Between two neighbouring values, so that rounding does not carry a value over it."""
    values = np.unique(values)
    i = int(quantile * (len(values) - 1))
    return float(values[i : i + 2].mean())


def thresholds(pair, image, **settings):
    """Such that half of the masks pass each of the first two filters."""
    every, _ = pair.plain(image, **settings, **KEEP_ALL)
    iou_threshold = middle([record["predicted_iou"] for record in every], 0.5)
    left = [record["stability_score"] for record in every if record["predicted_iou"] > iou_threshold]
    stability_threshold = middle([score for score in left if not np.isnan(score)], 0.2)
    return {"pred_iou_thresh": iou_threshold, "stability_score_thresh": stability_threshold}


def overlap(a, b):
    return np.logical_and(a, b).sum() / max(1, np.logical_or(a, b).sum())


def matched(found, expected):
    """Share of the expected records that are there, with all of their fields."""
    hits = 0
    for record in expected:
        hits += any(
            other["point_coords"] == record["point_coords"]
            and other["crop_box"] == record["crop_box"]
            and abs(other["predicted_iou"] - record["predicted_iou"]) < 1e-3
            and abs(other["stability_score"] - record["stability_score"]) < 1e-2
            and np.abs(np.subtract(other["bbox"], record["bbox"])).max() <= 2
            and overlap(other["segmentation"], record["segmentation"]) >= 0.99
            for other in found
        )
    return hits / len(expected)


CASES = {
    "photo": ("tiny", (75, 110), {"points_per_side": 9}),
    "upright photo": ("tiny", (200, 90), {"points_per_side": 8, "points_per_batch": 16}),
    "crops": ("tiny", (300, 440), {"points_per_side": 6, "crop_n_layers": 1}),
    "crops of crops": (
        "tiny",
        (520, 400),
        {"points_per_side": 8, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.5},
    ),
    "small regions": ("tiny", (90, 90), {"points_per_side": 8, "min_mask_region_area": 12}),
    "ViT": ("tiny_vit_sam", (75, 110), {"points_per_side": None, "point_grids": GRIDS, "box_nms_thresh": 1}),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=SLOW) if name in ("photo", "crops") else name for name in CASES],
)
def test_records_of_the_twin(pairs, name):
    preset, size, settings = CASES[name]
    pair, image = pairs[preset], photo(*size, seed=1)
    settings = {"points_per_batch": 64, "stability_score_offset": 0.5, **settings}
    last = {key: settings.pop(key) for key in ("box_nms_thresh", "min_mask_region_area") if key in settings}
    settings |= thresholds(pair, image, **settings)
    settings |= {"box_nms_thresh": 0.95, "crop_nms_thresh": 0.9, **last}
    expected, counts = pair.plain(image, **settings)
    found = SamAutomaticMaskGenerator(pair.model, pair.params, **settings).generate(image)
    passed = [counts[key] for key in ("candidates", "predicted IoU", "stability score")]
    assert all(after >= 0.3 * before for before, after in itertools.pairwise(passed)), counts
    assert counts["records"] >= 5
    assert matched(found, expected) >= 0.99
    assert matched(expected, found) >= 0.99


@pytest.fixture
def make(pairs):
    """The tiny generator with thresholds that some masks pass."""
    defaults = {"points_per_side": 8, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.2, "box_nms_thresh": 0.95}
    return lambda **settings: SamAutomaticMaskGenerator(
        pairs["tiny"].model, pairs["tiny"].params, **{**defaults, **settings}
    )


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_equal(a, b)


def test_records_fit_their_masks(make):
    image = photo(75, 110)
    for record in make(crop_n_layers=1, min_mask_region_area=5).generate(image):
        mask = record["segmentation"]
        assert mask.shape == (75, 110)
        assert mask.dtype == bool
        assert record["area"] == mask.sum()
        rows, columns = mask.nonzero()
        x, y = columns.min(), rows.min()
        assert record["bbox"] == [x, y, columns.max() - x, rows.max() - y]
        assert record["predicted_iou"] > 0.7
        assert record["stability_score"] >= 0.2
        ((x, y),) = record["point_coords"]
        left, top, width, height = record["crop_box"]
        assert left <= x <= left + width
        assert top <= y <= top + height
        assert {type(v) for v in record["crop_box"]} == {float}  # as in SAM's records, with crops
        assert {type(v) for v in record["bbox"]} == {int}


def test_output_modes(make):
    image = photo(75, 110)
    binary = make().generate(image)
    modes = {mode: make(output_mode=mode).generate(image) for mode in ("uncompressed_rle", "coco_rle")}
    for a, b, c in zip(binary, *modes.values(), strict=True):
        assert isinstance(b["segmentation"]["counts"], list)
        assert isinstance(c["segmentation"]["counts"], str)
        compressed = coco.frPyObjects(b["segmentation"], 75, 110)
        assert compressed["counts"].decode() == c["segmentation"]["counts"]
        np.testing.assert_array_equal(
            rle.counts_to_mask(np.array(b["segmentation"]["counts"]), (75, 110)), a["segmentation"]
        )
        assert a["area"] == b["area"] == c["area"]
    json.dumps(modes)


def test_many_images_equal_one_by_one(make):
    """Encoded four at a time, images and crops mixed."""
    generator = make(crop_n_layers=1, points_per_side=4, stability_score_thresh=0.1)
    images = [photo(75, 110), photo(128, 60, 1), photo(50, 50, 2)]
    batch = generator.generate_batch(images)
    assert len(batch) == 3
    for image, found in zip(images, batch, strict=True):
        expected = generator.generate(image)
        assert matched(found, expected) == 1
        assert len(found) == len(expected)
    assert generator.generate_batch([]) == []


def test_more_masks_than_a_batch_holds(make):
    image = photo(75, 110)
    keep_all = KEEP_ALL | {"stability_score_thresh": 1e-6}  # without empty masks
    expected = make(**keep_all).generate(image)
    assert len(expected) > 64
    for count in (5, 64):
        found = make(**keep_all, points_per_batch=count).generate(image)
        assert len(found) == len(expected)
        assert matched(found, expected) == 1


def test_the_decoder_is_told_the_threshold(make, monkeypatch):
    """So that prompts without a mask are not upscaled; with 0, which keeps every mask, all are."""
    told = []

    def decode(*args, iou_threshold):
        told.append(float(iou_threshold))
        return original(*args, iou_threshold=iou_threshold)

    original = backends._decode_above
    monkeypatch.setattr(backends, "_decode_above", decode)
    for threshold in (0.5, 0.0):
        make(pred_iou_thresh=threshold, points_per_side=2).generate(photo(75, 110))
    assert told == [0.5, -np.inf]


def test_thresholds_may_be_changed_later(make):
    """As people tune them in notebooks."""
    generator, image = make(points_per_side=4), photo(75, 110)
    for name, value in {"pred_iou_thresh": 0.75, "stability_score_thresh": 0.3, "min_mask_region_area": 4.5}.items():
        setattr(generator, name, value)
    changed = make(points_per_side=4, pred_iou_thresh=0.75, stability_score_thresh=0.3, min_mask_region_area=5)
    assert_equal(generator.generate(image), changed.generate(image))
    generator.pred_iou_thresh = 10.0
    assert generator.generate(image) == []


def test_nothing_passes(make):
    """An empty list for each way to keep nothing, with all that comes after it."""
    image = photo(75, 110)
    for nothing in ({"pred_iou_thresh": 99}, {"stability_score_thresh": 1.1}):
        for rest in ({}, {"crop_n_layers": 1, "min_mask_region_area": 10}):
            generator = make(**nothing, **rest)
            assert generator.generate(image) == []
            candidates = 3 * generator.count_points(image)
            if "pred_iou_thresh" in nothing:
                assert generator.dropped["pred_iou_thresh"] == candidates
            assert sum(generator.dropped.values()) == candidates


def test_what_each_filter_drops(make):
    """The numbers, and what is kept, are all candidates; a second photo begins from nothing."""
    generator = make(crop_n_layers=1)
    for _ in range(2):
        records = generator.generate(photo(75, 110))
        assert len(records) + sum(generator.dropped.values()) == 3 * generator.count_points(photo(75, 110))
    assert all(generator.dropped.values())


def test_the_photo_stays_set(make):
    """For prompts after the search; with crops it is the whole photo's embedding."""
    generator, image = make(crop_n_layers=1), photo(75, 110)
    generator.generate_batch([image, image[::-1]])
    found = generator.predictor.predict_batch(box_batch=[[5, 5, 60, 50]] * 2)
    for one, pixels in zip(found, (image, image[::-1]), strict=True):
        generator.predictor.set_image(pixels)
        np.testing.assert_allclose(one[1], generator.predictor.predict(box=[5, 5, 60, 50])[1], atol=1e-5)


def test_rectangular_grid(make):
    generator = make(points_per_side=(4, 2))
    np.testing.assert_array_equal(
        generator.point_grids[0], [[(x + 0.5) / 4, (y + 0.5) / 2] for y in range(2) for x in range(4)]
    )


def test_thresholds_are_the_models_own(tiny):
    """SAM's, unless the model has others or the call does."""
    model, params = tiny
    plain = SamAutomaticMaskGenerator(model, params)
    assert (plain.pred_iou_thresh, plain.stability_score_thresh, plain.stability_score_offset) == (0.88, 0.95, 1.0)
    own = dataclasses.replace(model.config, generator_defaults=GeneratorDefaults(0.5, 0.7, 0.5))
    generator = SamAutomaticMaskGenerator(Sam(own), params, stability_score_thresh=0.6)
    found = generator.pred_iou_thresh, generator.stability_score_thresh, generator.stability_score_offset
    assert found == (0.5, 0.6, 0.5)


def test_few_programs_are_compiled(pairs, monkeypatch):
    """Ten sizes of photos: an encoder for four crops, one for the fifth, and a decoder."""
    decode = jax.jit(chex.assert_max_traces(Sam.decode, n=1), static_argnums=0)
    monkeypatch.setattr(backends, "_decode_above", decode)
    encode = jax.jit(chex.assert_max_traces(Sam.encode, n=2), static_argnums=0)
    monkeypatch.setattr(backends, "_encode", encode)
    chex.clear_trace_counter()
    pair = pairs["tiny"]
    settings = {"points_per_side": 5, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.1, "crop_n_layers": 1}
    generator = SamAutomaticMaskGenerator(pair.model, pair.params, points_per_batch=8, **settings)
    rng = np.random.default_rng(0)
    for _ in range(10):
        generator.generate(rng.integers(0, 256, (*rng.integers(30, 200, 2), 3), dtype=np.uint8))
    assert encode._cache_size() == 2  # 4 crops, and the fifth
    assert decode._cache_size() == 1


@pytest.mark.parametrize("crop_n_layers", [1, pytest.param(0, marks=SLOW)])
def test_nothing_is_compiled_after_warmup(pairs, crop_n_layers):
    """With crops, points in batches of two sizes."""
    for program in (backends._encode, backends._split, backends._decode_above):
        program.clear_cache()
    pair = pairs["tiny"]
    settings = {"points_per_side": 5, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.1}
    settings |= {"crop_n_layers": crop_n_layers, "crop_n_points_downscale_factor": 2}
    generator = SamAutomaticMaskGenerator(pair.model, pair.params, **settings)
    with recorded_compilations() as compiled:
        generator.warmup()
    # An encoder, what takes its batches apart, and a decoder; with crops, the first two for four crops and for the
    # fifth, and the decoder for 25 points and for 4.
    assert len(compiled) == 3 * (1 + crop_n_layers), compiled
    with recorded_compilations() as compiled:
        found = [generator.generate(photo(*size)) for size in ((75, 110), (128, 60), (90, 90))]
    assert compiled == []
    assert any(found)
    assert backends._decode_above._cache_size() == 1 + crop_n_layers


def test_few_points_are_padded_to_a_power_of_two(make, monkeypatch):
    sizes = []

    def prompts(coords, count):
        sizes.append((len(coords), count))
        return original(coords, count)

    original = mask_generator._prompts
    monkeypatch.setattr(mask_generator, "_prompts", prompts)
    image = photo(75, 110)
    answered = []
    generator = make(points_per_side=3, points_per_batch=64)
    generator.generate_batch([image], progress=answered.append)
    assert sizes == [(9, 16)]
    make(points_per_side=3, points_per_batch=8, crop_n_layers=1).generate_batch([image], progress=answered.append)
    assert sizes[1:3] == [(8, 8), (1, 8)]
    assert answered == [9, *[8, 1] * 5]
    assert make(points_per_side=3, crop_n_layers=1).count_points(image) == 45


@pytest.mark.slow(group="use")
def test_benchmark(tiny, monkeypatch):
    """On the tiny preset; no times are asserted. All records agree, and too few of them end the run."""
    agreement, shares = everything.agreement, []
    monkeypatch.setattr(everything, "agreement", lambda *pair: shares.append(agreement(*pair)) or shares[-1])
    report = everything.everything(tiny[0].config, tiny[1], points=4, rounds=1)
    assert shares == [1]
    assert report["passed"]["candidates"] == 48
    assert report["records"]["jax_fp32"] == report["records"]["torch_fp32"] == report["passed"]["records"] > 0
    assert "jax_fp32/torch_fp32" in report["ratios"]
    monkeypatch.setattr(everything, "agreement", lambda *_: 0.98)
    with pytest.raises(WrongAnswerError, match="jax_fp32 differs from torch_fp32"):
        everything.everything(tiny[0].config, tiny[1], points=4, rounds=1)
