"""Average precision by plain loops."""

import numpy as np


def overlap(a, b):
    """IoU of masks, 0 of empty ones."""
    return (a & b).sum() / max((a | b).sum(), 1)


def precision(objects, found, low=0.0, high=1e10):
    """That of one category, NaN without an object.

    Args:
      objects: (image, mask, area).
      found: (image, mask, score, whether it is ignored if there is no object for it).
      low: area of the smallest objects that count.
      high: likewise of the largest.
    """
    total = sum(low <= area <= high for _, _, area in objects)
    if not total:
        return float("nan")
    return np.mean([_at(objects, found, low, high, 0.5 + 0.05 * i, total) for i in range(10)])


def _at(objects, found, low, high, threshold, total):
    taken, hits = set(), []
    for image, mask, score, forgiven in sorted(found, key=lambda one: (one[0], -one[2])):
        best = None
        for ignored in (False, True):  # those that count first
            for i, (where, other, area) in enumerate(objects):
                if where != image or i in taken or (low <= area <= high) == ignored or (ignored and best is not None):
                    continue
                quality = overlap(mask, other)
                if quality >= threshold - 1e-9 and (best is None or quality >= overlap(mask, objects[best][1])):
                    best = i
        if best is not None:
            taken.add(best)
            if low <= objects[best][2] <= high:
                hits.append((score, True))
        elif not forgiven and low <= mask.sum() <= high:
            hits.append((score, False))
    hits.sort(key=lambda one: -one[0])
    right, points = 0, []
    for count, (_, hit) in enumerate(hits, 1):
        right += hit
        points.append((right / total, right / count))
    return np.mean([max((p for r, p in points if r >= wanted), default=0.0) for wanted in np.linspace(0, 1, 101)])
