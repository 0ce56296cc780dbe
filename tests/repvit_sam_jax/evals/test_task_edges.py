"""Edges on a miniature of BSDS500."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from repvit_sam_jax.data.datasets.bsds import Bsds
from repvit_sam_jax.evals import run
from repvit_sam_jax.evals.tasks import edges, open_task
from tests.helpers.miniatures import bsds, colour_segmenter, scene


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return bsds.write(tmp_path_factory.mktemp("bsds"))


def place(data, tmp_path):
    return run.Place(data, None, tmp_path / "out")


def test_a_segmenter_that_knows_the_regions_finds_their_edges(data, tmp_path):
    task = open_task("edges", data)
    assert task.keys == ["18", "28", "8"]  # as strings
    found = run.run(task, colour_segmenter(256, parts=False), place(data, tmp_path), num_pictures=1)
    assert found.counts == {"photos": 3}
    assert found.numbers["ODS"] > 0.98
    assert found.numbers["precision"] > 0.99
    # What is shifted by more than the radius, 2.4 pixels, matches where lines cross, or along themselves.
    wrong = run.run(task, colour_segmenter(256, shift=(6, 6), name="wrong", parts=False), place(data, tmp_path))
    assert wrong.numbers["ODS"] < 0.6


def test_the_truth_itself_is_perfect_and_half_of_it_has_half_the_recall(data, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    for i, name in enumerate(("8", "18", "28")):
        drawn = bsds.boundaries(scene(i, bsds.SIZE, objects=4))
        double = np.zeros((2 * drawn.shape[0] + 1, 2 * drawn.shape[1] + 1))
        double[2::2, 2::2] = drawn
        savemat(folder / f"{name}.mat", {"ucm2": double})
    task = open_task("edges", data)
    found = run.run(task, edges.Maps(folder), place(data, tmp_path))
    assert [found.numbers[name] for name in ("ODS", "OIS", "precision", "recall")] == [1, 1, 1, 1]
    for i, name in enumerate(("8", "18", "28")):
        (folder / f"{name}.mat").unlink()
        drawn = bsds.boundaries(scene(i, bsds.SIZE, objects=4))
        drawn[: drawn.shape[0] // 2] = False
        Image.fromarray(drawn.astype(np.uint8) * 255).save(folder / f"{name}.png")
    half = run.run(task, edges.Maps(folder), run.Place(data, None, tmp_path / "half"))
    kept = sum(bsds.boundaries(scene(i, bsds.SIZE, 4))[bsds.SIZE[0] // 2 :].sum() for i in range(3))
    whole = sum(bsds.boundaries(scene(i, bsds.SIZE, 4)).sum() for i in range(3))
    assert half.numbers["precision"] == 1
    assert half.numbers["recall"] == pytest.approx(kept / whole, abs=0.01)


def test_edges_of_one_mask_are_the_gradient_on_its_outer_boundary():
    """By plain loops."""
    logits = np.random.default_rng(0).normal(0, 4, (9, 11))
    total = np.zeros_like(logits)
    edges._add_edges(total, logits, 0.0)
    share = np.pad(1 / (1 + np.exp(-logits)), 1, mode="edge")
    kernel = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    for y, x in np.ndindex(logits.shape):
        near = logits[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] > 0
        window = share[y : y + 3, x : x + 3]
        expected = np.hypot((window * kernel).sum(), (window * kernel.T).sum())
        outer = logits[y, x] <= 0 and near.any()
        assert total[y, x] == pytest.approx(expected if outer else 0)


def test_what_is_missing_is_said(data, tmp_path):
    with pytest.raises(ValueError, match=r"lacks images/test, groundTruth/test"):
        Bsds(tmp_path)
    with pytest.raises(ValueError, match="leave --proposals out"):
        open_task("edges", data, tmp_path / "boxes.json")
    with pytest.raises(ValueError, match="holds no edge maps"):
        edges.Maps(tmp_path)
    other = bsds.write(tmp_path / "half")
    (other / "data/groundTruth/test/18.mat").unlink()
    with pytest.raises(ValueError, match=r"groundTruth/test lacks 1 of the 3 files .* such as that of 18"):
        Bsds(other)
    (other / "data/groundTruth/test/18.mat").write_bytes(b"no mat")
    with pytest.raises(ValueError, match=r"18.mat is no .mat file with groundTruth"):
        Bsds(other).truths("18")
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.zeros(bsds.SIZE, np.uint8)).save(maps / "other.png")
    with pytest.raises(ValueError, match=r"has no edge map 18.png"):
        run.run(open_task("edges", data), edges.Maps(maps), place(data, tmp_path))
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(maps / "18.png")
    with pytest.raises(ValueError, match=r"18.png is an edge map of \[5, 6\] pixels, expected \[192, 256\]"):
        run.run(open_task("edges", data), edges.Maps(maps), place(data, tmp_path))


def test_maps_are_stretched_thinned_and_stored_in_8_bits():
    ridge = np.tile(np.exp(-((np.arange(31) - 15.0) ** 2) / 8), (31, 1)) + 3
    thin = edges.thin(ridge)
    assert thin.dtype == np.uint8
    assert thin[15].nonzero()[0].tolist() == [15]
    assert thin[15, 15] == 255
    assert not edges.thin(np.full((31, 31), 3.0)).any()
