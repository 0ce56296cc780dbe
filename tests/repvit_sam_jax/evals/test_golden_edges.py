"""Edges of BSDS500's benchmark against what its official code computes on inputs of our own."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from repvit_sam_jax.evals.metrics import edge_nms, edges
from tests.helpers.measures import GOLDEN

BSDS = GOLDEN / "evals" / "bsds"
SETS = {"a": (99, ("1001", "1002", "1003"), "a_99_thresholds"), "b": (9, ("2001", "2002"), "b_9_thresholds")}
RUNS = ("run_1", "run_2", "run_3")
"""Of the official code, which is random."""


def photo(name, number):
    with Image.open(BSDS / name / "png" / f"{number}.png") as image:
        strength = np.array(image) / 255
    annotators = loadmat(BSDS / name / "groundTruth" / f"{number}.mat")["groundTruth"][0]
    return strength, [annotator["Boundaries"][0, 0].astype(bool) for annotator in annotators]


def official_counts(name, number, run):
    columns = np.loadtxt(BSDS / "official" / SETS[name][2] / run / f"{number}_ev1.txt").T
    return edges.Counts(*columns[1:].astype(int))


def official_summary(name, run):
    values = np.loadtxt(BSDS / "official" / SETS[name][2] / run / "eval_bdry.txt")
    names = ("threshold", "recall", "precision", "ODS", "own recall", "own precision", "OIS", "AP")
    return dict(zip(names, values, strict=True))


@pytest.fixture(scope="module")
def found():
    """Counts of set b, and of one photo of set a, on which all thresholds are tried."""
    of = lambda name, number: edges.count_matches(*photo(name, number), SETS[name][0])
    return {("a", "1003"): of("a", "1003"), **{("b", number): of("b", number) for number in SETS["b"][1]}}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", SETS)
def test_summaries_of_the_official_counts(name, run):
    count, numbers, _ = SETS[name]
    summary = edges.summarise([official_counts(name, number, run) for number in numbers], count)
    expected = official_summary(name, run)
    for key, value in summary.items():
        assert value == pytest.approx(expected[key], abs=1e-6), key


@pytest.mark.parametrize("run", RUNS)
def test_counts(found, run):
    for (name, number), counts in found.items():
        expected = official_counts(name, number, run)
        np.testing.assert_array_equal(counts.truth, expected.truth)
        np.testing.assert_array_equal(counts.edges, expected.edges)
        more = counts.matched_truth - expected.matched_truth
        assert (more >= -2).all()
        assert (more <= 8).all()
        assert (np.abs(counts.matched_edges - expected.matched_edges) <= 10).all()


@pytest.mark.parametrize("run", RUNS)
def test_summaries(found, run):
    count, numbers, _ = SETS["b"]
    summary, expected = edges.summarise([found["b", number] for number in numbers], count), official_summary("b", run)
    for key in ("ODS", "OIS", "AP"):
        assert summary[key] == pytest.approx(expected[key], abs=1e-3), key


def test_matches_are_the_cheapest(rng):
    """Against all pairings of a few pixels: as many as can be, then as near as can be."""
    for _ in range(20):
        a, b = (np.zeros((400, 300), bool) for _ in range(2))  # a radius of 3.75 pixels
        for mask in (a, b):
            mask[tuple(rng.integers(100, 107, (2, 5)))] = True
        ours, theirs = edges.match(a, b, rng)
        assert ours.sum() == theirs.sum() == _largest(list(np.argwhere(a)), list(np.argwhere(b)), 0.0075 * 500)[0]


def _largest(left, right, radius):
    """Number and total distance of the best pairing, by trying all."""
    if not left:
        return 0, 0.0
    best = _largest(left[1:], right, radius)
    for i, place in enumerate(right):
        distance = np.hypot(*(left[0] - place))
        if distance <= radius:
            number, total = _largest(left[1:], right[:i] + right[i + 1 :], radius)
            best = max(best, (number + 1, total - distance))
    return best


def test_nearer_pixels_match(rng):
    a, b = (np.zeros((400, 300), bool) for _ in range(2))
    a[100, 100] = b[100, 101] = b[100, 97] = True
    ours, theirs = edges.match(a, b, rng)
    np.testing.assert_array_equal(np.argwhere(theirs), [[100, 101]])
    np.testing.assert_array_equal(ours, a)


def test_best_f1_is_between_thresholds():
    """Recall falls from 1 to 0.2 while precision rises likewise: half way both are 0.6."""
    counts = edges.Counts(*(np.array(values) for values in ([10, 2], [10, 10], [2, 10], [10, 10])))
    assert edges.best_f1(counts, 2) == pytest.approx((0.5, 0.6, 0.6, 0.6), abs=5e-3)


def test_maps_that_can_not_be_matched():
    empty, full = np.zeros((20, 30)), np.ones((20, 30), bool)
    counts = edges.count_matches(empty, [full])
    assert counts.matched_truth.sum() == counts.edges.sum() == 0
    assert edges.summarise([counts])["ODS"] == 0
    assert edges.summarise([counts])["AP"] == 0
    perfect = np.zeros((20, 30))
    perfect[10] = 1
    summary = edges.summarise([edges.count_matches(perfect, [perfect == 1])])
    assert summary["ODS"] == summary["OIS"] == 1
    for truths, message in (([], "boundaries of none"), ([full[1:]], r"boundaries of \[\(19, 30\)\]")):
        with pytest.raises(ValueError, match=message):
            edges.count_matches(empty, truths)
    with pytest.raises(ValueError, match="no photo"):
        edges.summarise([])


def test_suppression():
    strength = photo("a", "1001")[0].astype(np.float32)
    golden = np.load(BSDS / "official" / "edge_nms.npz")
    expected = golden["1001_orientation"]
    angles = edge_nms.orientation(strength)
    difference = np.abs(angles - expected)
    assert (np.minimum(difference, np.pi - difference) > 0.01).mean() < 1e-3
    for radius in (1, 2):
        thin = golden[f"1001_nms_r{radius}_s5"]
        np.testing.assert_allclose(edge_nms.suppress(strength, expected, radius), thin, atol=1e-6)
        assert ((edge_nms.suppress(strength, radius=radius) > 0) != (thin > 0)).sum() <= 10
