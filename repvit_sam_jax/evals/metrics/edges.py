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
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

RADIUS = 0.0075
"""Distance within which edges match, as a share of the photo's diagonal."""
THRESHOLDS = 99
_UNMATCHED = 100.0
"""What a pixel costs that matches none, in radii."""
_TOGETHER = 400
"""Pixels from which on a group is matched by itself."""
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

    Pixels with nothing nearby stay alone, and are left out; groups of others that are not near each other are matched
    apart, which is faster.
    """
    places = [draw.permutation(np.argwhere(mask)) for mask in (a, b)]
    found = np.zeros_like(a), np.zeros_like(b)
    radius = RADIUS * np.hypot(*a.shape)
    if not all(map(len, places)):
        return found
    near = cKDTree(places[0]).sparse_distance_matrix(cKDTree(places[1]), radius, output_type="ndarray")
    alone = np.rint(100 * _UNMATCHED * radius)
    for pairs in _apart(near["i"], near["j"]):
        chosen = _assign(near["i"][pairs], near["j"][pairs], np.rint(100 * near["v"][pairs]), alone)
        for mask, place, numbers in zip(found, places, chosen, strict=True):
            mask[tuple(place[numbers].T)] = True
    return found


Numbers = Int[np.ndarray, "n"]


def _apart(i: Numbers, j: Numbers) -> list[Numbers]:
    """Indices of pairs in groups that share no pixel, of `_TOGETHER` pixels of the first map or more."""
    if not len(i):
        return []
    n, m = int(i.max()) + 1, int(j.max()) + 1
    graph = sparse.csr_array((np.ones(len(i), bool), (i, n + j)), shape=(n + m, n + m))
    count, labels = connected_components(graph, directed=False)
    groups = np.cumsum(np.bincount(labels[:n], minlength=count)) // _TOGETHER
    of_pairs = groups[labels[i]]
    order = np.argsort(of_pairs, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of_pairs[order])) + 1)


def _assign(
    i: Numbers, j: Numbers, costs: Float[np.ndarray, "n"], alone: float
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Numbers of the pixels that match, of either map.

    An assignment of the pixels of the map that has fewer of them: each goes to one nearby, or stays alone at the price
    of two pixels, since a pair saves both.

    Args:
      i: numbers of pixels in the first map, of pairs that are near each other.
      j: likewise in the second one.
      costs: of the pairs.
      alone: what a pixel costs that matches none.
    """
    sides = [np.unique(numbers, return_inverse=True) for numbers in (i, j)]
    fewer = int(len(sides[1][0]) < len(sides[0][0]))
    (rows, row), (columns, column) = sides[fewer], sides[1 - fewer]
    own = np.arange(len(rows))
    # To SciPy, a weight of 0 is no edge: all are one more, which changes no assignment.
    weights = 1 + np.concatenate([costs, np.full(len(rows), 2 * alone)])
    at = np.concatenate([row, own]).astype(np.int32), np.concatenate([column, len(columns) + own]).astype(np.int32)
    graph = sparse.csr_array((weights, at), shape=(len(rows), len(columns) + len(rows)))
    left, right = min_weight_full_bipartite_matching(graph)
    pairs = right < len(columns)
    chosen = rows[left[pairs]], columns[right[pairs]]
    return (chosen[1], chosen[0]) if fewer else chosen


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
