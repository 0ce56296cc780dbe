"""DAVIS-2017's measures of semi-supervised video object segmentation: J of regions, F of boundaries (arXiv 1704.00675).

The arithmetic is that of davisvideochallenge/davis2017-evaluation: the first and the last frame are left out, void is
background, and the mean is over the objects of all sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

BOUNDARY = 0.008
"""Distance that boundaries may have, as a share of the frame's diagonal."""
VOID = 255

Labels = Int[np.ndarray, "t h w"]
"""Numbers of objects, 0 background, for each frame."""


def region_similarity(mask: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """J: intersection over union; 1 if both masks are empty."""
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0


def boundary_accuracy(mask: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """F: of precision and recall of boundary pixels, which match within `BOUNDARY`; 1 if neither mask has any."""
    radius = np.ceil(BOUNDARY * np.hypot(*mask.shape))
    ours, theirs = boundary(mask), boundary(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    near = lambda pixels: ndimage.distance_transform_edt(~pixels) <= radius
    precision = np.count_nonzero(ours & near(theirs)) / np.count_nonzero(ours)
    recall = np.count_nonzero(theirs & near(ours)) / np.count_nonzero(theirs)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that differ from their neighbour to the right, below, or both; the frame's edge is no boundary."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edges = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1])
    edges[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edges


def statistics(values: Float[np.ndarray, "t"]) -> tuple[float, float, float]:
    """Mean, recall (share of frames over 0.5) and decay (the first quarter's mean minus the last's) of an object."""
    ends = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    quarters = [values[first : last + 1].mean() for first, last in itertools.pairwise(ends)]
    return float(values.mean()), float((values > 0.5).mean()), float(quarters[0] - quarters[-1])


def sequence_scores(prediction: Labels, truth: Labels) -> tuple[Float[np.ndarray, "k t"], Float[np.ndarray, "k t"]]:
    """J and F of each object on each frame but the first and the last.

    Objects are those of the truth's first frame; an object that is not predicted is an empty mask.

    Raises:
      ValueError: frames differ in number or size, there are fewer than three, or an object is predicted that is none.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"predicted frames are {prediction.shape}, those of the truth {truth.shape}")
    if len(truth) < 3:
        raise ValueError(f"a sequence of {len(truth)} frames; without the first and the last one nothing is left")
    truth = np.where(truth == VOID, 0, truth)
    count, most = int(truth[0].max()), int(prediction.max())
    if most > count:
        raise ValueError(f"object {most} is predicted, and the first frame has {count}")
    scores = np.array(
        [
            [
                (
                    region_similarity(ours == number, theirs == number),
                    boundary_accuracy(ours == number, theirs == number),
                )
                for ours, theirs in zip(prediction[1:-1], truth[1:-1], strict=True)
            ]
            for number in range(1, count + 1)
        ]
    ).reshape(count, len(truth) - 2, 2)
    return scores[..., 0], scores[..., 1]


Statistics = dict[str, list[tuple[float, float, float]]]
"""`J` and `F`: mean, recall and decay of each object."""


def objects(prediction: Labels, truth: Labels) -> Statistics:
    """The measures of a sequence's objects. Raises ValueError as `sequence_scores`."""
    scores = zip("JF", sequence_scores(prediction, truth), strict=True)
    return {measure: [statistics(of_object) for of_object in values] for measure, values in scores}


def summarise(sequences: Iterable[Statistics]) -> dict[str, float]:
    """The measures of a set: `J&F-Mean`, and `Mean`, `Recall` and `Decay` of J and of F, over all objects.

    Raises:
      ValueError: there is no object at all.
    """
    columns: dict[str, list[Sequence[float]]] = {"J": [], "F": []}
    for sequence in sequences:
        for measure, column in columns.items():
            column += sequence[measure]
    if not columns["J"]:
        raise ValueError("there is no object to evaluate")
    means = {measure: np.mean(rows, axis=0) for measure, rows in columns.items()}
    result = {"J&F-Mean": float((means["J"][0] + means["F"][0]) / 2)}
    for measure, values in means.items():
        result |= {f"{measure}-{n}": float(v) for n, v in zip(("Mean", "Recall", "Decay"), values, strict=True)}
    return result


def davis(sequences: Mapping[str, tuple[Labels, Labels]]) -> dict[str, float]:
    """`summarise` of sequences, name -> (prediction, truth), as `sequence_scores` takes them.

    Raises:
      ValueError: as `sequence_scores`, naming the sequence; or there is no object at all.
    """
    measured = []
    for name, (prediction, truth) in sequences.items():
        try:
            measured.append(objects(prediction, truth))
        except ValueError as error:
            raise ValueError(f"sequence {name}: {error}") from error
    return summarise(measured)
