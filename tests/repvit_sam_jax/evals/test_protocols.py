"""Held-out IoU: the protocol against a plain version prompt by prompt, the numbers against `SamPredictor`."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from repvit_sam_jax import PRESETS, Sam, SamPredictor
from repvit_sam_jax.evals import protocols
from repvit_sam_jax.evals.metrics import iou, mean_by_size
from repvit_sam_jax.evals.protocols import KINDS, evaluate, farthest_pixel
from repvit_sam_jax.weights import reparam
from tests.helpers.models import random_params
from tests.helpers.programs import recorded_compilations

SMALL = (300, 900)


@pytest.fixture(scope="module")
def trained():
    """Weights whose masks cover a part of the photo."""
    model = Sam(PRESETS["tiny"], "train")
    return model, random_params(model, seed=3)


@pytest.fixture(scope="module")
def deployed(trained):
    return Sam(PRESETS["tiny"]), reparam.fuse(trained[1])


def make_batch(rng, b=2, k=3, size=(128, 116)) -> dict[str, np.ndarray]:
    """Photos of noise with an ellipse of each size class; every third prompt of every second photo is padding."""
    y, x = np.mgrid[:32, :32]
    centres, radii = rng.uniform(8, 20, (b, k, 2, 1, 1)), rng.uniform(2, 8, (b, k, 2, 1, 1))
    masks = ((y - centres[:, :, 0]) / radii[:, :, 0]) ** 2 + ((x - centres[:, :, 1]) / radii[:, :, 1]) ** 2 < 1
    valid = np.ones((b, k), bool)
    valid[::2, 2::3] = False
    masks &= valid[..., None, None]
    image = rng.integers(0, 256, (b, 128, 128, 3)).astype(np.uint8)
    image[:, size[0] :], image[:, :, size[1] :] = 0, 0
    corners = np.concatenate([centres - radii, centres + radii], axis=2)[..., 0, 0][..., [1, 0, 3, 2]]
    return {
        "image": image,
        "size": np.full((b, 2), size, np.int32),
        "index": np.arange(b, dtype=np.int32),
        "skipped": np.zeros(b, np.int32),
        "masks": masks,
        "boxes": (4 * corners * valid[..., None]).astype(np.float32),
        "areas": (16 * masks.sum((-2, -1))).astype(np.float32),
        "valid": valid,
    }


def one(batch, *rows):
    return {key: value[list(rows)] for key, value in batch.items()}


class Painter(Sam):
    """A segmenter that paints boxes, and discs around points, over the masks that it is given.

    The more points, the smaller the discs, so that the masks given make a difference.
    """

    def encode(self, params, images):
        return images

    def decode(self, params, embeddings, prompts, multimask_output=True):
        factors = (0.5, 1, 2) if multimask_output else (1,)
        masks = jnp.stack([self.paint(params["radius"] * factor, prompts) for factor in factors], axis=2)
        b, k = prompts.point_labels.shape[:2]
        scores = (0.1, 0.3, 0.2) if multimask_output else (0.1,)
        return masks, jnp.broadcast_to(jnp.array(scores), (b, k, len(factors)))

    def paint(self, radius, prompts):
        at = 4 * jnp.arange(32) + 1.5
        coords, labels, valid = (
            jnp.asarray(x) for x in (prompts.point_coords, prompts.point_labels, prompts.point_valid)
        )
        painted = jnp.full((*labels.shape[:2], 32, 32), -1.0)
        painted = painted if prompts.masks is None else jnp.asarray(prompts.masks)
        for n in range(labels.shape[2]):
            x, y = coords[:, :, n, 0, None, None], coords[:, :, n, 1, None, None]
            disc = ((at - x) ** 2 + (at[:, None] - y) ** 2) * valid.sum(-1)[..., None, None] ** 2 < radius**2
            value = jnp.where(labels[:, :, n] == 1, 1.0, -1.0)[..., None, None]
            painted = jnp.where(disc & (valid & (labels < 2))[:, :, n, None, None], value, painted)
        first, last = coords[:, :, 0, :, None, None], coords[:, :, -1, :, None, None]
        box = (at >= first[:, :, 0]) & (at <= last[:, :, 0])
        box &= (at[:, None] >= first[:, :, 1]) & (at[:, None] <= last[:, :, 1])
        return jnp.where(box & (labels[:, :, :1, None] == 2), 1.0, painted)


def plain_farthest(mask):
    """(distance, x, y) by comparing all pairs of pixels."""
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)
    distances = {(y, x): np.hypot(*(outside - (y, x)).T).min() for y, x in np.argwhere(padded)}
    (y, x), distance = max(distances.items(), key=lambda item: item[1], default=((1, 1), 0.0))
    return distance, x - 1, y - 1


@pytest.mark.parametrize("density", [0, 0.6, 0.95, 1])
def test_farthest_pixel(rng, density):
    for size in ((9, 14), (1, 6), (12, 5)):
        mask = rng.random(size) < density
        expected = plain_farthest(mask)
        assert farthest_pixel(mask) == pytest.approx(expected if mask.any() else (0, 0, 0))


def test_centre_keeps_away_from_the_frame():
    mask = np.zeros((20, 20), bool)
    mask[:9, 5:14] = True
    assert farthest_pixel(mask) == (5, 9, 4)


def discs(points, radius, before):
    mask = before.copy()
    y, x = np.mgrid[:32, :32]
    for column, row, label in points:
        mask[16 * ((x - column) ** 2 + (y - row) ** 2) * len(points) ** 2 < radius**2] = label
    return mask


def plain_protocol(batch, radius, teacher_radius):
    """Everything once more, one prompt after the other."""
    results = {against: {kind: [] for kind in KINDS} for against in ("ground_truth", "teacher")}
    y, x = np.mgrid[:32, :32]
    content = (y < 32) & (x < 29)
    for b, k in np.argwhere(batch["valid"]):
        target = batch["masks"][b, k] & content
        assert target.any()
        _, *centre = plain_farthest(target)
        points, nothing = [(*centre, True)], np.zeros((32, 32), bool)
        left, top, right, bottom = batch["boxes"][b, k]
        box = (4 * x + 1.5 >= left) & (4 * x + 1.5 <= right) & (4 * y + 1.5 >= top) & (4 * y + 1.5 <= bottom)
        three, theirs = (
            [discs(points, factor * r, nothing) for factor in (0.5, 1, 2)] for r in (radius, teacher_radius)
        )
        ours, their = three[1], theirs[1]
        for _ in range(2):
            lacking, wrong = plain_farthest(target & ~(ours & content)), plain_farthest(ours & ~target & content)
            points.append((*max(lacking, wrong, key=lambda found: found[0])[1:], lacking[0] >= wrong[0]))
            ours, their = discs(points, radius, ours), discs(points, teacher_radius, their)
        masks = {"box": [box], "centre": [three[1]], "centre_oracle": three, "points3": [ours]}
        references = {"box": box, "centre": theirs[1], "centre_oracle": theirs[1], "points3": their}
        for kind in KINDS:
            found = [mask & content for mask in masks[kind]]
            results["ground_truth"][kind].append(max(iou(mask, target) for mask in found))
            results["teacher"][kind].append(max(iou(mask, references[kind] & content) for mask in found))
    areas = batch["areas"][batch["valid"]]
    return {
        against: {kind: mean_by_size(values, areas, SMALL) for kind, values in by_kind.items()}
        for against, by_kind in results.items()
    }


def test_protocol_equals_a_plain_one(rng):
    painter = Painter(PRESETS["tiny"])
    batch = make_batch(rng, b=6)
    params, teacher_params = {"radius": jnp.float32(13)}, {"radius": jnp.float32(17)}
    found = evaluate(
        painter,
        params,
        [one(batch, 0, 1, 2, 3), one(batch, 4, 5)],
        teacher=(painter, teacher_params),
        size_bounds=SMALL,
    )
    expected = plain_protocol(batch, 13, 17)
    assert found.keys() == expected.keys()
    for against, by_kind in expected.items():
        for kind, means in by_kind.items():
            assert found[against][kind].pop("count") == means.pop("count")
            assert found[against][kind] == pytest.approx(means, abs=1e-6), (against, kind)
    # The case has something to tell apart.
    values = [means["all"] for by_kind in expected.values() for means in by_kind.values()]
    assert len(set(values)) == len(values) - 1  # boxes are painted alike: 1 against the teacher


def test_numbers_are_those_of_the_predictor(deployed, rng):
    """On photos that need no resizing, so that both see the same pixels."""
    model, params = deployed
    batch = make_batch(rng, size=(96, 128))
    batch["masks"][:, :, 24:] = False
    expected = {"box": [], "centre": []}
    predictor = SamPredictor(model, params)
    for b, k in np.argwhere(batch["valid"]):
        predictor.set_image(batch["image"][b, :96])
        target = batch["masks"][b, k, :24]
        *_, low_res = predictor.predict(box=batch["boxes"][b, k], multimask_output=False)
        expected["box"].append(iou(low_res[0, :24] > 0, target))
        _, column, row = farthest_pixel(target)
        _, scores, low_res = predictor.predict(np.array([[4 * column + 1.5, 4 * row + 1.5]]), np.array([1]))
        expected["centre"].append(iou(low_res[np.argmax(scores), :24] > 0, target))
    found = evaluate(model, params, [batch])["ground_truth"]
    for kind, values in expected.items():
        assert found[kind]["all"] == pytest.approx(np.mean(values), abs=1e-3)
        assert found[kind]["all"] > 0.01


def test_padding_and_batching_change_nothing(deployed, rng):
    """Prompts that are not valid, a short last batch, and which photos come together."""
    model, params = deployed
    batch = make_batch(rng, b=3)
    expected = evaluate(model, params, [one(batch, 0, 1), one(batch, 2)])["ground_truth"]
    batch["masks"][~batch["valid"]] = True
    batch["boxes"][~batch["valid"]] = np.nan
    found = evaluate(model, params, [one(batch, 2, 1), one(batch, 0)])["ground_truth"]
    assert json.loads(json.dumps(found)) == found
    for kind in KINDS:
        assert found[kind]["all"] == pytest.approx(expected[kind]["all"], abs=2e-3)
        assert found[kind]["all"] > 0.01
        assert found[kind]["count"]["all"] == batch["valid"].sum() == 7


def test_both_forms_agree(deployed, trained, rng):
    batch = make_batch(rng)
    expected = evaluate(*deployed, [batch])["ground_truth"]
    found = evaluate(*trained, [batch], teacher=deployed)
    for kind in KINDS:
        assert found["ground_truth"][kind]["all"] == pytest.approx(expected[kind]["all"], abs=5e-3)
        assert found["teacher"][kind]["all"] > 0.98


def test_a_segmenter_is_compiled_once(rng):
    model = Painter(dataclasses.replace(PRESETS["tiny"], name="compiled once"))
    batches = [make_batch(rng, b) for b in (2, 2, 1)]
    with recorded_compilations() as compiled:
        for radius in (10.0, 12.0):
            evaluate(model, {"radius": jnp.float32(radius)}, batches)
            ours = sorted(name for name in compiled if "encode_pixels" in name or "_decode" in name)
            # The encoder; one mask, three masks, one mask with an earlier one as prompt.
            assert ours == ["jit(_decode)"] * 3 + ["jit(encode_pixels)"]


def test_objects_without_a_pixel_are_left_out(rng):
    batch = make_batch(rng)
    batch["masks"][1, 0] = False
    batch["masks"][1, 1] = False
    batch["masks"][1, 1, :, 29:] = True  # in the padding only
    result = evaluate(Painter(PRESETS["tiny"]), {"radius": jnp.float32(10)}, [batch])
    assert result["ground_truth"]["box"]["count"]["all"] == batch["valid"].sum() - 2


def test_errors_say_what_to_do(rng):
    model, params = Painter(PRESETS["tiny"]), {"radius": jnp.float32(10)}
    batch = make_batch(rng)
    nothing = {**batch, "valid": np.zeros_like(batch["valid"])}
    for batches in ([], [nothing]):
        with pytest.raises(ValueError, match="no batch holds a valid mask"):
            evaluate(model, params, batches)
    for points in ((), (3, 1)):
        with pytest.raises(ValueError, match=r"points must be 2 or more each, got \("):
            evaluate(model, params, [batch], points=points)
    with pytest.raises(ValueError, match="the batches have no masks, only image, size; ask"):
        evaluate(model, params, [{key: batch[key] for key in ("image", "size")}])
    with pytest.raises(
        ValueError, match=r"masks must have shape \[B, K, 32, 32\] for this model, got \(2, 3, 16, 32\)"
    ):
        evaluate(model, params, [{**batch, "masks": batch["masks"][:, :, ::2]}])
    with pytest.raises(ValueError, match="teacher's image_size is 256, the student's 128"):
        evaluate(model, params, [batch], teacher=(Sam.from_preset("tiny", image_size=256), params))


def test_table():
    means = {"all": 0.5, "small": None, "medium": 0.25, "large": 0.75}
    result = {"ground_truth": {"box": {**means, "count": {"all": 3, "small": 0, "medium": 2, "large": 1}}}}
    assert protocols.table(result).splitlines() == [
        "| mIoU against | prompt | all | small | medium | large |",
        "|---|---|---:|---:|---:|---:|",
        "| ground truth | box | 50.0 | - | 25.0 | 75.0 |",
        "| objects | | 3 | 0 | 2 | 1 |",
    ]
