"""Measures of the zero-shot evaluations against what their official code computes on inputs of our own."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.evals.metrics import anomaly, instances, saliency, tracks, video

GOLDEN = Path(__file__).parents[2] / "golden" / "evals"


def read(path, mode=None):
    with Image.open(path) as image:
        return np.array(image if mode is None else image.convert(mode))


# Salient objects
SOD = GOLDEN / "sod"


def test_nearest_masks():
    golden = json.loads((SOD / "golden.json").read_text())["oracle_selection_gt_over_half_of_maximum"]
    candidates = np.load(SOD / "candidates.npz")
    found = {}
    for name, expected in golden["per_image"].items():
        truth = saliency.read_truth(read(SOD / "gt" / f"{name}.png", "L"))
        found[name] = saliency.nearest_mask(candidates[name], truth)
        assert found[name].number == expected["best_candidate"], name
        assert found[name].error == pytest.approx(expected["mae"], abs=1e-12)
        assert found[name].f1 == pytest.approx(2 * expected["half_f1"], abs=3e-8)
    assert saliency.mean_error(found.values()) == pytest.approx(golden["mean_mae"], abs=1e-12)
    with pytest.raises(ValueError, match="no photo"):
        saliency.mean_error([])


def test_error_of_gray_predictions():
    golden = json.loads((SOD / "golden.json").read_text())
    for name, expected in golden["grey_pred_mae_per_image"].items():
        truth = read(SOD / "gt" / f"{name}.png", "L") > 128
        prediction = read(SOD / "pred" / f"{name}.png", "L")
        assert saliency.mean_absolute_error(prediction, truth) == pytest.approx(expected, abs=1e-12), name


def test_masks_of_another_size_are_resized():
    """The right half of twice the size becomes the right half, with a gray column where the halves meet or none."""
    truth = np.zeros((20, 30), bool)
    truth[:, 15:] = True
    nearest = saliency.nearest_mask([np.repeat(np.repeat(truth, 2, 0), 2, 1)], truth)
    assert nearest.number == 0
    assert nearest.f1 > 0.95
    assert nearest.error < 0.02


# Anomalies
MVTEC = GOLDEN / "mvtec"


@pytest.fixture(scope="module")
def mvtec():
    return np.load(MVTEC / "inputs.npz"), json.loads((MVTEC / "golden.json").read_text())


def test_scores_maps_and_the_best_f1(mvtec):
    inputs, golden = mvtec
    maps, truths = [], []
    for i in range(6):
        masks, truth = inputs[f"masks_{i}"], inputs[f"gt_{i}"]
        scores = anomaly.rescore(masks, inputs[f"logits_{i}"], inputs[f"saliency_{i}"])
        if len(masks):  # without a proposal the official code has an empty mask of score 0
            np.testing.assert_allclose(scores, golden["rescored"][str(i)], atol=1e-12)
        maps.append(anomaly.score_map(masks, scores, truth.shape))
        truths.append(anomaly.resize_truth(truth))
    before = golden["maps_before_normalise"]
    np.testing.assert_allclose([m.mean() for m in maps], before["mean_per_image"], atol=1e-6)
    assert max(m.max() for m in maps) == pytest.approx(before["max"], abs=1e-6)
    normal = anomaly.normalise(maps)
    np.testing.assert_allclose(normal[:, ::4, ::4], np.load(MVTEC / "expected_maps.npz")["maps"], atol=1e-6)
    f1, threshold = anomaly.max_f1(normal, np.stack(truths))
    assert f1 == pytest.approx(golden["pixel_max_f1"], abs=1e-9)
    assert threshold == pytest.approx(golden["pixel_threshold"], abs=1e-6)


def test_best_f1_of_ties(mvtec):
    for case in mvtec[1]["max_f1_cases"]:
        f1, threshold = anomaly.max_f1(np.array(case["score"]), np.array(case["gt"]))
        assert f1 == pytest.approx(case["max_f1"], abs=1e-12)
        assert threshold == case["threshold"]


def test_best_f1_is_that_of_the_slow_sweep(rng):
    scores, truth = rng.integers(0, 20, 300) / 20, rng.random(300) < 0.3
    slow = [2 * (truth & (scores >= t)).sum() / ((scores >= t).sum() + truth.sum()) for t in np.unique(scores)]
    assert anomaly.max_f1(scores, truth)[0] == pytest.approx(max(slow), abs=1e-15)
    with pytest.raises(ValueError, match="no anomalous pixel"):
        anomaly.max_f1(scores, np.zeros(300))
    with pytest.raises(ValueError, match="no photo of the class has a proposal"):
        anomaly.normalise([np.zeros((3, 3))] * 2)


def test_saliency_of_features(mvtec):
    inputs, _ = mvtec
    found = anomaly.self_similarity(inputs["features"], tuple(inputs["image_shape"]))
    (expected,) = np.load(MVTEC / "expected_saliency.npz").values()
    np.testing.assert_allclose(found, expected, atol=1e-6)


# Video
DAVIS = GOLDEN / "davis"


@pytest.fixture(scope="module")
def sequences():
    frames = lambda kind, name: np.stack([read(path) for path in sorted((DAVIS / kind / name).glob("*.png"))])
    return {name: (frames("pred", name), frames("gt", name)) for name in ("alpha", "beta")}


def test_measures_of_davis(sequences):
    golden = json.loads((DAVIS / "official" / "golden.json").read_text())
    found = video.davis(sequences)
    assert found.keys() == golden["global"].keys()
    for name, expected in golden["global"].items():
        assert found[name] == pytest.approx(expected, abs=1e-9), name
    scores = [video.sequence_scores(*pair) for pair in sequences.values()]
    for measure, values in zip("JF", zip(*scores, strict=True), strict=True):
        means = [float(of_object.mean()) for of_sequence in values for of_object in of_sequence]
        np.testing.assert_allclose(means, golden["per_object"][measure]["M"], atol=1e-9)


def test_boundaries_against_dilated_ones(rng):
    """The plain form: a disk around each boundary pixel."""
    for _ in range(5):
        a, b = rng.random((2, 40, 60)) < 0.02
        a, b = (np.kron(m[::4, ::4], np.ones((4, 4), bool)) for m in (a, b))
        radius = int(np.ceil(video.BOUNDARY * np.hypot(40, 60)))
        near = []
        for mask in (a, b):
            rows, columns = np.nonzero(video.boundary(mask))
            y, x = np.mgrid[:40, :60]
            near.append(sum(((y - r) ** 2 + (x - c) ** 2 <= radius**2) for r, c in zip(rows, columns, strict=True)) > 0)
        edges = [video.boundary(mask) for mask in (a, b)]
        if not (edges[0].any() and edges[1].any()):
            continue
        precision, recall = (edges[0] & near[1]).sum() / edges[0].sum(), (edges[1] & near[0]).sum() / edges[1].sum()
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
        assert video.boundary_accuracy(a, b) == pytest.approx(expected)


def test_sequences_that_can_not_be_measured(sequences):
    prediction, truth = sequences["beta"]
    for frames, message in (
        ((prediction[:, :10], truth), r"sequence s: predicted frames are \(6, 10, 90\), those of the truth"),
        ((prediction[:2], truth[:2]), "sequence s: a sequence of 2 frames"),
        ((np.full_like(prediction, 3), truth), "sequence s: object 3 is predicted, and the first frame has 2"),
        ((prediction * 0, truth * 0), "no object to evaluate"),
    ):
        with pytest.raises(ValueError, match=message):
            video.davis({"s": frames})


def test_empty_masks_of_video():
    empty, full = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    assert video.region_similarity(empty, empty) == video.boundary_accuracy(empty, empty) == 1
    assert video.region_similarity(empty, full) == 0
    assert not video.boundary(full).any()  # the frame's edge is no boundary


# Instances
def load(*parts):
    return json.loads(GOLDEN.joinpath(*parts).read_text())


def assert_stats(found, expected):
    expected = np.where(np.array(expected) == -1, np.nan, expected)
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("counts", ["1_10_100", "100_300_1000"])
def test_average_precision(counts):
    truth, results, golden = (load("coco", f"{name}.json") for name in ("gt", "results", "golden"))
    detections = [int(n) for n in counts.split("_")]
    boxed = [{**result, "bbox": [0, 0, 9, 9]} for result in results]  # which changes nothing
    assert_stats(instances.average_precision(truth, boxed, detections), golden[f"segm_box_popped_max_dets_{counts}"])


def test_precision_in_the_wild():
    golden = load("seginw", "golden.json")
    precision = {}
    for name, expected in golden["segm_stats"].items():
        truth = load("seginw", name, "valid", "_annotations_min1cat.coco.json")
        found = instances.average_precision(truth, load("seginw", name, "results.json"), instances.SEGINW_DETECTIONS)
        assert_stats(found, expected)
        precision[name] = found["AP"]
    assert instances.mean_precision(precision) == pytest.approx(golden["mean_ap"], abs=1e-12)


def test_published_mean_of_the_wild():
    """The 25 numbers of the published log of Grounded-SAM give the mean that the paper quotes, 48.7."""
    published = load("seginw", "golden_logs.json")["grounded_sam_vit_h"]["datasets"]
    mean = instances.mean_precision({one["name"]: one["segm_stats"][0] for one in published})
    assert mean == pytest.approx(0.4871714946735832, abs=1e-12)


def test_an_object_is_found_once():
    """The first of two equal results is right, whichever that is, and the other is one too many."""
    mask = {"size": [10, 10], "counts": "0T3"}  # all pixels
    truth = {"images": [{"id": 1, "height": 10, "width": 10}], "categories": [{"id": 1, "name": "object"}]}
    truth["annotations"] = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "area": 100,
            "segmentation": mask,
            "bbox": [0, 0, 9, 9],
        }
    ]
    result = {"image_id": 1, "category_id": 1, "segmentation": mask, "score": 0.9}
    found = instances.average_precision(truth, [result, result | {"score": 0.8}])
    assert [found["AP"], found["AR100"]] == pytest.approx([1, 1])


def test_results_that_fit_no_annotations():
    truth, results = (load("coco", f"{name}.json") for name in ("gt", "results"))
    assert instances.average_precision(truth, [])["AP"] == 0
    for change, message in (
        ({"image_id": 999}, "1 image_id of the results are not among the images of the annotations, such as 999"),
        ({"category_id": 2}, "1 category_id of the results are not among the categories"),
        ({"segmentation": {"size": [4, 5], "counts": "0d0"}}, r"a result of image \d+ has a mask of \[4, 5\] pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            instances.average_precision(truth, [results[0] | change])
    with pytest.raises(ValueError, match="Empty: there is no object to find"):
        instances.mean_precision({"Full": 0.5, "Empty": float("nan")})


# Tracks
def test_average_recall_of_tracks():
    truth, results, golden = (load("ytvis", f"{name}.json") for name in ("gt", "results", "golden"))
    found = tracks.average_recall(truth, results)
    assert_stats(found, [golden["use_cats_1"][name] for name in found])
    of_video = lambda entries: [entry for entry in entries if entry["video_id"] == 1]
    order = sorted(of_video(results), key=lambda track: -track["score"])
    ious = [[tracks.track_iou(ours, theirs) for theirs in of_video(truth["annotations"])] for ours in order]
    np.testing.assert_allclose(ious, golden["ious_video_1_detections_by_score_x_gt"], atol=1e-12)


def test_tracks_that_fit_no_video():
    truth, results = (load("ytvis", f"{name}.json") for name in ("gt", "results"))
    assert tracks.average_recall(truth, [])["AR100"] == 0
    masks = results[0]["segmentations"]
    for change, message in (
        ({"video_id": 99}, "1 video_id of the results are not among the videos"),
        ({"segmentations": masks[1:]}, r"a result of video 1 has 4 frames, expected 5"),
        ({"segmentations": [{"size": [4, 5], "counts": "0d0"}, *masks[1:]]}, r"a result of video 1 has a mask of"),
    ):
        with pytest.raises(ValueError, match=message):
            tracks.average_recall(truth, [results[0] | change])
