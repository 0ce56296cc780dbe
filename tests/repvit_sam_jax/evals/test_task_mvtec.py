"""Anomalies on a miniature of MVTec-AD, and their proposals."""

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.data.datasets.mvtec import MvtecAd
from repvit_sam_jax.evals import run
from repvit_sam_jax.evals.proposals import anomalies
from repvit_sam_jax.evals.tasks import mvtec as task_of_mvtec
from repvit_sam_jax.evals.tasks import open_task
from tests.helpers.miniatures import colour_segmenter, mvtec, shifted

pytestmark = pytest.mark.filterwarnings("ignore:.*of the 15 classes:UserWarning")

NAMES = mvtec.names()


@pytest.fixture
def data(tmp_path):
    return mvtec.write(tmp_path)


def save(data, arrays):
    path = data.parent / "proposals.npz"
    np.savez_compressed(path, **arrays)
    return path


def measure(data, arrays, segmenter=None, limit=None):
    path = save(data, arrays)
    task = open_task("mvtec", data.parent, path)
    return run.run(task, segmenter or colour_segmenter(), run.Place(data, path, data.parent / "out"), limit)


def nearest(pixels):
    """At 400 x 400, each pixel being the one of the 64 x 64 that its corner lies in."""
    at = np.arange(400) * 64 // 400
    return pixels[at][:, at]


def bilinear(values):
    """At 400 x 400, by plain loops over one axis at a time."""
    for _ in range(2):
        out = np.zeros((400, values.shape[1]))
        for i in range(400):
            at = min(max((i + 0.5) * len(values) / 400 - 0.5, 0), len(values) - 1)
            low = min(int(at), len(values) - 2)
            out[i] = values[low] * (1 - at + low) + values[low + 1] * (at - low)
        values = out.T
    return values


def best_f1(maps, truths):
    """Over a sweep of all values, which are few."""
    maps, truths = np.stack(maps).astype(np.float32), np.stack(truths)
    counts = [((maps >= t).sum(), (truths & (maps >= t)).sum()) for t in np.unique(maps)[1:]]
    return max(2 * hits / (found + truths.sum()) for found, hits in counts)


def expected(shift=(0, 0)):
    """By class, where each defect has a mask with a score that is the same everywhere, and good photos have none."""
    found = {}
    for name in ("bottle", "zipper"):
        defects = [mvtec.labels_of(photo) == mvtec.DEFECT for photo in NAMES if photo.startswith(name)]
        found[name] = best_f1([bilinear(shifted(d, shift) / 2) for d in defects], [nearest(d) for d in defects])
    return found


def test_perfect_boxes_find_the_anomalies(data):
    found = measure(data, mvtec.proposals())
    assert found.counts == {"photos": 8, "of 15 classes": 2}
    by_class = expected()
    assert min(by_class.values()) > 0.97  # resizing a mask and its truth in two ways costs some
    assert found.numbers == pytest.approx({"max F1": np.mean(list(by_class.values())), **by_class}, abs=1e-6)
    assert found.settings["classes"] == ["bottle", "zipper"]


def test_shifted_masks_find_less(data):
    by_class = expected((4, 3))
    found = measure(data, mvtec.proposals(), colour_segmenter(shift=(4, 3)))
    assert max(by_class.values()) < 0.9
    assert found.numbers == pytest.approx({"max F1": np.mean(list(by_class.values())), **by_class}, abs=1e-6)


def test_saliency_says_which_of_two_masks_is_the_anomaly(data):
    """A box of another object with twice the score, where the photo is not salient."""
    arrays = mvtec.proposals()
    for name in NAMES:
        labels = mvtec.labels_of(name)
        arrays[f"{name}/boxes"] = np.array([*arrays[f"{name}/boxes"], mvtec.box_of(labels, 1)], np.float32)
        arrays[f"{name}/scores"] = np.append(arrays[f"{name}/scores"], 1)
        arrays[f"{name}/saliency"] = np.where(labels == mvtec.DEFECT, 1, 0).astype(np.float16)
    found = measure(data, arrays)  # exp(3) / 2 against 1
    assert found.numbers == pytest.approx({"max F1": found.numbers["max F1"], **expected()}, abs=0.01)
    plain = {k: np.zeros((1, 1)) if k.endswith("saliency") else array for k, array in arrays.items()}
    (data.parent / "out/colours.json").unlink()
    assert measure(data, plain).numbers["max F1"] < 0.6


def test_the_five_best_masks_make_the_map_of_a_photo_whose_channels_are_turned(data, monkeypatch):
    """Six boxes of one object: the worst is left out, and each of the others adds one to the number that divides."""
    arrays, name = mvtec.proposals(), NAMES[0]
    scores = np.array([0.6, 0.1, 0.2, 0.3, 0.4, 0.5])
    arrays[f"{name}/boxes"], arrays[f"{name}/scores"] = np.repeat(arrays[f"{name}/boxes"], 6, 0), scores
    task, segmenter = open_task("mvtec", data, save(data, arrays)), colour_segmenter()
    seen, embed = [], segmenter.predictor.embed
    monkeypatch.setattr(segmenter.predictor, "embed", lambda photos: seen.extend(photos) or embed(photos))
    item = task.load(name)
    (answer,) = task.segment(segmenter, [item])
    inside = mvtec.labels_of(name) == mvtec.DEFECT
    assert answer.map.max() == pytest.approx(np.exp(3 * 0.25) * (0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 6)
    np.testing.assert_array_equal(answer.truth, nearest(inside))
    np.testing.assert_array_equal(seen[0], item.photo[..., ::-1])
    drawn = task.panel(item, answer)
    assert drawn.shape == (64, 64, 3)
    assert drawn[inside][:, 0].min() > 2 * drawn[~inside][:, 0].mean()
    assert (task.panels(item)["truth"][inside] != item.photo[inside]).any()


def test_a_record_keeps_a_map_as_it_is(rng):
    answer = task_of_mvtec.Answer(rng.random((400, 400)), rng.random((400, 400)) < 0.1)
    record = json.loads(json.dumps(task_of_mvtec.score(answer)))
    kept = np.frombuffer(zlib.decompress(base64.b64decode(record["map"])), "<f4").reshape(400, 400)
    np.testing.assert_array_equal(kept, answer.map.astype(np.float32))
    plateau = task_of_mvtec.score(task_of_mvtec.Answer(np.zeros((400, 400)), answer.truth))
    assert len(plateau["map"]) < 1000


def test_photos_without_proposals_have_an_empty_map(data):
    arrays = mvtec.proposals()
    arrays[f"{NAMES[0]}/boxes"], arrays[f"{NAMES[0]}/scores"] = np.zeros((0, 4)), np.zeros(0)
    del arrays[f"{NAMES[0]}/saliency"]
    found = measure(data, arrays)
    areas = [nearest(mvtec.labels_of(name) == mvtec.DEFECT).sum() for name in NAMES[:2]]
    assert found.numbers["bottle"] == pytest.approx(
        2 * areas[1] / (areas[0] + 2 * areas[1]), abs=0.02
    )  # half is missed
    (data.parent / "out/colours.json").unlink()
    for name in NAMES[:4]:
        arrays[f"{name}/boxes"], arrays[f"{name}/scores"] = np.zeros((0, 4)), np.zeros(0)
    with pytest.raises(ValueError, match="class bottle: all maps are 0 everywhere: no photo of the class has a"):
        measure(data, arrays)


def test_classes_without_a_defect_so_far_are_left_out(data):
    for name in ("bottle", "zipper"):  # photos without a defect come first
        (data / f"{name}/test/crack").rename(data / f"{name}/test/tear")
        (data / f"{name}/ground_truth/crack").rename(data / f"{name}/ground_truth/tear")
    arrays = {key.replace("crack", "tear"): array for key, array in mvtec.proposals().items()}
    with pytest.raises(ValueError, match="none of the photos has an anomalous pixel"):
        measure(data, arrays, limit=2)
    found = measure(data, arrays, limit=6)
    assert found.counts["of 15 classes"] == 1
    assert found.counts["classes left out, without an anomalous pixel so far"] == 1
    assert set(found.numbers) == {"max F1", "bottle"}


def test_what_the_data_lack_is_said(data):
    with pytest.warns(UserWarning, match=r"has 2 of the 15 classes; it lacks cable, capsule, .*wood$"):
        assert MvtecAd(data.parent).classes == ["bottle", "zipper"]
    with pytest.raises(ValueError, match="it lacks bottle/test, cable/test"):
        MvtecAd(data / "bottle")
    mask = data / "zipper/ground_truth/crack/001_mask.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(mask)
    task = open_task("mvtec", data, save(data, mvtec.proposals()))
    with pytest.raises(ValueError, match=r"001_mask.png has size \[9, 9\], and its photo \[64, 64\]"):
        task.load("zipper/test/crack/001")
    mask.rename(mask.with_name("001.png"))
    with pytest.raises(ValueError, match=r"001.png is no mask of MVTec-AD, which are called NUMBER_mask.png"):
        MvtecAd(data)
    mask.with_name("001.png").unlink()
    with pytest.raises(ValueError, match=r"ground_truth lacks 1 of the 2 files .* such as that of crack/001"):
        MvtecAd(data)


def change(arrays, **new):
    """The file with other arrays of the first photo; None removes one."""
    changed = {**arrays, **{f"{NAMES[0]}/{kind}": value for kind, value in new.items()}}
    return {key: value for key, value in changed.items() if value is not None}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"boxes": None}, "lacks bottle/test/crack/000/boxes"),
        ({"boxes": np.ones((2, 4))}, r"boxes are \[N, 4\] and scores \[N\], got \(2, 4\) and \(1,\)"),
        ({"boxes": np.array([[9, 9, 5, 20]])}, r"box 0 is inverted, \[9, 9, 5, 20\]"),
        ({"scores": np.array([np.nan])}, "not finite"),
        ({"scores": np.array(["high"])}, "should be numbers, got <U4"),
        ({"saliency": None}, "either saliency or features, got neither"),
        ({"features": np.ones((2, 3, 3))}, "got .'saliency', 'features'."),
    ],
)
def test_invalid_proposals_are_refused_when_they_are_opened(data, new, message):
    with pytest.raises(ValueError, match=message):
        open_task("mvtec", data, save(data, change(mvtec.proposals(), **new)))


def test_proposals_that_do_not_fit_the_data_are_refused(data, tmp_path):
    arrays = mvtec.proposals()
    with pytest.raises(ValueError, match=r"boxes and saliency: give --proposals"):
        open_task("mvtec", data)
    with pytest.raises(ValueError, match="is no file"):
        open_task("mvtec", data, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match=r"text.npz is no .npz file"):
        open_task("mvtec", data, tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"one.npy is no .npz file"):
        open_task("mvtec", data, tmp_path / "one.npy")
    with pytest.raises(ValueError, match="has nothing for 4 of the 8 photos, such as zipper/test/crack/000"):
        open_task("mvtec", data, save(data, mvtec.proposals(NAMES[:4])))
    with pytest.raises(ValueError, match="photos that are not in the data, such as zipper/test/crack/002"):
        open_task("mvtec", data, save(data, mvtec.proposals([*NAMES, "zipper/test/crack/002"])))
    open_task("mvtec", data, save(data, mvtec.proposals([*NAMES, "wood/test/crack/002"])))  # a class that is not here
    task = open_task("mvtec", data, save(data, change(arrays, boxes=np.array([[70, 0, 80, 9]]))))
    with pytest.raises(ValueError, match=r"box 0 of bottle/test/crack/000, .*, lies outside the image of width 64"):
        task.load(NAMES[0])
    task = open_task("mvtec", data, save(data, change(arrays, saliency=np.ones(4))))
    with pytest.raises(ValueError, match=r"saliency must be finite, \[h, w\], got \(4,\)"):
        task.load(NAMES[0])


def test_saliency_comes_from_features(data):
    """Three places alike, one at a right angle to them: by hand."""
    features = np.zeros((2, 2, 2))
    features[0], features[:, 1, 1] = 1, (0, 1)
    given = change(mvtec.proposals(), saliency=None, features=features)
    read = anomalies.AnomalyFile(save(data, given), NAMES).read(NAMES[0])
    np.testing.assert_allclose(read.saliency, [[0.125, 0.125], [0.125, 0.375]])


def test_boxes_are_suppressed_as_saa_does_it():
    golden = Path(__file__).parents[2] / "golden/evals/mvtec/golden.json"
    golden = json.loads(golden.read_text())["box_suppression"]
    found = anomalies.Detections(
        np.array(golden["boxes_cxcywh"]), np.array(golden["token_logits"]), golden["token_words"]
    )
    for case in golden["cases"]:
        boxes, scores = anomalies.suppress(found, case["max_area"], case["filter"])
        np.testing.assert_array_equal(boxes, case["kept_boxes"])
        np.testing.assert_allclose(scores, case["logits"])
    # The larger box of the object has an area of 0.4, of which 0.5 are 0.2; boxes are in pixels of 200 x 100.
    areas = np.array([[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.8, 0.5]])
    objects = anomalies.Detections(areas, np.array([[0, 0.3]] * 2), ["", "carpet"])
    boxes, scores = anomalies.detections(objects, [(found, "carpet")] * 2, 0.5, (100, 200))
    kept = np.array(golden["cases"][2]["kept_boxes"])
    x, y, width, height = kept.T
    corners = np.stack(
        [200 * (x - width / 2), 100 * (y - height / 2), 200 * (x + width / 2), 100 * (y + height / 2)], 1
    )
    np.testing.assert_allclose(boxes, np.tile(corners, (2, 1)), rtol=1e-6)
    np.testing.assert_allclose(scores, golden["cases"][2]["logits"] * 2)
    none = anomalies.Detections(np.zeros((0, 4)), np.zeros((0, 2)), ["", "carpet"])
    boxes, scores = anomalies.detections(none, [(none, "carpet")], 1.0, (100, 200))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_pieces_of_words_are_put_together_and_the_first_token_is_none():
    found = anomalies.Detections(np.full((1, 4), 0.1), np.full((1, 3), 0.5), ["[CLS]", "zip", "##per"])
    assert not len(anomalies.suppress(found, 1, "zipper")[0])
    assert len(anomalies.suppress(found, 1, "CLS")[0])
