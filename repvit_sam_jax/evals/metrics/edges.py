"""The boundary benchmark of BSDS500: precision and recall of edge maps, ODS, OIS and AP (Arbelaez et al., PAMI 2011).

The official matcher draws random edges, so each of its runs differs a little; here the matching is the optimum, which
finds up to 6 more of 7000 pixels. Which of equally good matchings it is, is drawn with a fixed seed, because one that
follows the order of the pixels would favour the same pixels for each annotator. Everything else is the same.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

RADIUS = 0.0075
"""Distance within which edges match, as a share of the photo's diagonal."""
THRESHOLDS = 99
_UNMATCHED = 100.0
"""What a pixel costs that matches none, in radii."""
_STEPS = np.linspace(0, 1, 100)
"""Places between two thresholds at which precision and recall are interpolated."""

Mask = Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What matched, for each of T thresholds; photos are summed with `+`."""

    matched_truth: Int[np.ndarray, "t"]
    """Pixels of the truth that match, summed over annotators."""
    truth: Int[np.ndarray, "t"]
    matched_edges: Int[np.ndarray, "t"]
    """Pixels of the edge map that match any annotator's."""
    edges: Int[np.ndarray, "t"]

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = (dataclasses.astuple(counts) for counts in (self, other))
        return Counts(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def recall(self) -> Float[np.ndarray, "t"]:
        """0 where there is no truth."""
        return self.matched_truth / np.maximum(self.truth, 1)

    @property
    def precision(self) -> Float[np.ndarray, "t"]:
        """0 where there are no edges."""
        return self.matched_edges / np.maximum(self.edges, 1)


def thresholds(count: int = THRESHOLDS) -> Float[np.ndarray, "t"]:
    """K / (count + 1); what is at least that is an edge."""
    return np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count)


def count_matches(edges: Float[np.ndarray, "h w"], truths: Sequence[Mask], count: int = THRESHOLDS) -> Counts:
    """Match a photo's edge map, thinned at each threshold, with each annotator's boundaries.

    Args:
      edges: strength from 0 to 1.
      truths: boundaries, one an annotator; they are not thinned.
      count: of thresholds.

    Raises:
      ValueError: there is no annotator, or sizes differ.
    """
    from skimage.morphology import thin  # which the extra `eval` brings

    if not truths or any(truth.shape != edges.shape for truth in truths):
        sizes = [truth.shape for truth in truths] or "none"
        raise ValueError(f"an edge map of {edges.shape} pixels, and boundaries of {sizes}")
    rows: list[tuple[int, int, int, int]] = []
    before, draw = None, np.random.default_rng(0)
    for threshold in thresholds(count):
        chosen = edges >= threshold
        if before is None or (chosen != before).any():  # maps of 8 bits repeat, and so do their matches
            rows.append(_count(thin(chosen), truths, draw))
            before = chosen
        else:
            rows.append(rows[-1])
    return Counts(*np.array(rows, np.int64).T)


def _count(edges: Mask, truths: Sequence[Mask], draw: np.random.Generator) -> tuple[int, int, int, int]:
    matched, matched_truth = np.zeros(edges.shape, bool), 0
    for truth in truths:
        ours, theirs = match(edges, truth, draw)
        matched |= ours
        matched_truth += int(theirs.sum())
    return matched_truth, sum(int(truth.sum()) for truth in truths), int(matched.sum()), int(edges.sum())


def match(a: Mask, b: Mask, draw: np.random.Generator) -> tuple[Mask, Mask]:
    """Which pixels of either map have a partner in the other, one to one, as many and as near as can be.

    An assignment of the pixels of the map that has fewer of them: each goes to one nearby, or stays alone at the price
    of two pixels, since a pair saves both. Pixels with nothing nearby stay alone anyway, and are left out.
    """
    places = [draw.permutation(np.argwhere(mask)) for mask in (a, b)]
    found = [np.zeros_like(mask) for mask in (a, b)]
    radius = RADIUS * np.hypot(*a.shape)
    if not all(map(len, places)):
        return found[0], found[1]
    near = cKDTree(places[0]).sparse_distance_matrix(cKDTree(places[1]), radius, output_type="ndarray")
    (first, i), (second, j) = (np.unique(near[side], return_inverse=True) for side in "ij")
    sides = [(first, i), (second, j)]
    fewer = int(len(second) < len(first))
    (rows, row), (columns, column) = sides[fewer], sides[1 - fewer]
    own = np.arange(len(rows))
    alone = 2 * np.rint(100 * _UNMATCHED * radius)
    # To SciPy, a weight of 0 is no edge: all are one more, which changes no assignment.
    weights = 1 + np.concatenate([np.rint(100 * near["v"]), np.full(len(rows), alone)])
    at = np.concatenate([row, own]).astype(np.int32), np.concatenate([column, len(columns) + own]).astype(np.int32)
    graph = sparse.csr_array((weights, at), shape=(len(rows), len(columns) + len(rows)))
    left, right = min_weight_full_bipartite_matching(graph)
    pairs = right < len(columns)
    for side, chosen in ((fewer, rows[left[pairs]]), (1 - fewer, columns[right[pairs]])):
        found[side][tuple(places[side][chosen].T)] = True
    return found[0], found[1]


def summarise(photos: Sequence[Counts], count: int = THRESHOLDS) -> dict[str, float]:
    """`ODS` with `threshold`, `recall` and `precision`; `OIS`; `AP`; over photos.

    ODS is the best F1 at one threshold for all, OIS at each photo's own best one, AP the area under the curve.

    Raises:
      ValueError: there is no photo.
    """
    if not photos:
        raise ValueError("there is no photo to evaluate")
    total = photos[0]
    for counts in photos[1:]:
        total = total + counts
    threshold, recall, precision, ods = best_f1(total, count)
    chosen = [_at(counts, int(np.argmax(_f1(counts.recall, counts.precision)))) for counts in photos]
    own = chosen[0]
    for counts in chosen[1:]:
        own = own + counts
    return {
        "ODS": ods,
        "threshold": threshold,
        "recall": recall,
        "precision": precision,
        "OIS": float(_f1(own.recall, own.precision)[0]),
        "AP": _average_precision(total),
    }


def best_f1(counts: Counts, count: int = THRESHOLDS) -> tuple[float, float, float, float]:
    """Threshold, recall, precision and F1 where F1 is best, in between the thresholds too."""
    t, r, p = (
        np.concatenate([values[:1], *(a + (b - a) * _STEPS for a, b in itertools.pairwise(values))])
        for values in (thresholds(count), counts.recall, counts.precision)
    )
    f1 = _f1(r, p)
    best = int(np.argmax(f1))
    return float(t[best]), float(r[best]), float(p[best]), float(f1[best])


def _average_precision(counts: Counts) -> float:
    recall, first = np.unique(counts.recall, return_index=True)
    if len(recall) < 2:
        return 0.0
    return float(np.interp(np.linspace(0, 1, 101), recall, counts.precision[first], 0, 0).sum() / 100)


def _at(counts: Counts, i: int) -> Counts:
    return Counts(*(values[i : i + 1] for values in dataclasses.astuple(counts)))


def _f1(recall: Float[np.ndarray, "n"], precision: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    total = recall + precision
    return 2 * recall * precision / np.where(total == 0, 1, total)
