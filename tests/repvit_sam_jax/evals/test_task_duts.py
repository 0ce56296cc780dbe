"""Salient objects on a miniature of DUTS-TE."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from repvit_sam_jax.evals import run
from repvit_sam_jax.evals.segmenters import Segmenter
from repvit_sam_jax.evals.tasks import duts as task_of_duts
from repvit_sam_jax.evals.tasks import open_task
from repvit_sam_jax.inference.predictor import SamPredictor
from tests.helpers.miniatures import ColourBackend, colour_segmenter, duts, scene, shifted


@pytest.fixture
def data(tmp_path):
    return duts.write(tmp_path, photos=2)


def measure(data, segmenter):
    return run.run(open_task("duts", data.parent), segmenter, run.Place(data, None, data.parent / "out"))


def best_of(candidates, truth):
    """F1 and error of the mask with the best F1."""
    best = (0, 1)
    for mask in candidates:
        f1 = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        best = (f1, np.abs(mask.astype(float) - truth).mean()) if f1 > best[0] else best
    return best


def test_a_segmenter_that_knows_the_objects_makes_no_error(data):
    found = measure(data, colour_segmenter())
    assert found.numbers == {"MAE": 0, "F1": 1}
    assert found.counts == {"photos": 2, "photos without a mask": 0, "photos whose truth no mask meets": 0}


def test_of_shifted_masks_the_nearest_counts(data):
    scenes = [scene(number) for number in range(2)]
    expected = [best_of([shifted(labels == n, (3, 5)) for n in range(4)], labels == duts.SALIENT) for labels in scenes]
    found = measure(data, colour_segmenter(shift=(3, 5)))
    assert found.numbers["F1"] == pytest.approx(np.mean([f1 for f1, _ in expected]), abs=1e-12)
    assert found.numbers["MAE"] == pytest.approx(np.mean([error for _, error in expected]), abs=1e-12)
    assert found.numbers["MAE"] > 0.05


def test_a_dark_truth_counts_as_one_and_an_empty_one_as_an_error_of_one(data):
    """Half of the brightest pixel, 102, is the border: 50 is outside."""
    labels = scene(0)
    duts.write_truth(data, 0, np.select([labels == duts.SALIENT, labels == 1], [102, 50], 0).astype(np.uint8))
    duts.write_truth(data, 1, np.zeros(labels.shape, np.uint8))
    found = measure(data, colour_segmenter())
    assert found.numbers == {"MAE": 0.5, "F1": 0.5}
    assert found.counts["photos whose truth no mask meets"] == 1
    assert found.counts["photos without a mask"] == 0


def test_a_photo_without_masks_is_an_error_of_one(data):
    backend = ColourBackend()
    backend.IOUS = (0.5, 0.5, 0.25)  # below the threshold
    found = measure(data, Segmenter("none", SamPredictor.over(backend), {}))
    assert found.numbers == {"MAE": 1, "F1": 0}
    assert found.counts["photos without a mask"] == 2


def test_masks_are_resized_to_a_truth_of_another_size(data):
    labels = scene(0)
    double = np.repeat(np.repeat(labels == duts.SALIENT, 2, 0), 2, 1)
    duts.write_truth(data, 0, double.astype(np.uint8) * 255)
    resized = Image.fromarray((labels == duts.SALIENT).astype(np.uint8) * 255)
    resized = np.asarray(resized.resize(double.shape[::-1], Image.Resampling.BILINEAR))
    expected = np.abs(resized / 255 - double).mean()
    assert 0 < expected < 0.05
    assert measure(data, colour_segmenter()).numbers["MAE"] == pytest.approx(expected / 2)


def test_masks_leave_the_device_as_runs_and_the_nearest_is_drawn(data):
    task = open_task("duts", data)
    item = task.load(task.keys[0])
    (answer,) = task.segment(colour_segmenter(), [item])
    assert all(isinstance(mask["counts"], str) for mask in answer.masks)
    assert len(answer.masks) == 4
    salient = scene(0) == duts.SALIENT
    drawn = task.panel(item, answer)
    assert (drawn[salient] != item.photo[salient]).any(-1).all()
    outside = ~ndimage.binary_dilation(salient, iterations=2)
    np.testing.assert_array_equal(drawn[outside], item.photo[outside])
    np.testing.assert_array_equal(task.panels(item)["truth"][..., 0] > 0, salient)
    nothing = task_of_duts.Answer([], item.truth)
    np.testing.assert_array_equal(task.panel(item, nothing), item.photo)


def test_what_is_missing_is_said(data):
    with pytest.raises(ValueError, match="leave --proposals out"):
        open_task("duts", data, data / "boxes.json")
    with pytest.raises(ValueError, match=r"is not DUTS-TE .*: it lacks DUTS-TE-Image, DUTS-TE-Mask"):
        open_task("duts", data / "DUTS-TE-Mask")
    name = "ILSVRC2012_test_00000001"
    (data / f"DUTS-TE-Mask/{name}.png").write_bytes(b"no picture")
    task = open_task("duts", data)
    with pytest.raises(ValueError, match=rf"{name}.png can't be read"):
        task.load(name)
    (data / f"DUTS-TE-Mask/{name}.png").unlink()
    with pytest.raises(ValueError, match=rf"DUTS-TE-Mask lacks 1 of the 2 files .* such as that of {name}"):
        open_task("duts", data)
