"""Outlines of masks as polygons, along the edges between pixels: they give the very mask back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from .masks import box_of

Polygon = list[int]
"""[x, y, x, y, ...], corners of pixels: (0, 0) is the top left corner of the top left pixel."""


def mask_to_polygons(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """COCO's polygons of a mask, whose union is the mask, pixel by pixel.

    Each is the outline of 4-connected pixels. COCO's polygons have no holes, so that a part with holes is cut through
    them, along straight lines, into parts that have none.

    Args:
      mask: of any size; an empty one has no polygons.

    Returns:
      Polygons of four corners or more, each with the mask to the right of its way.
    """
    box = box_of(mask)
    if box is None:
        return []
    parts, whole = [(mask[box[1] : box[3] + 1, box[0] : box[2] + 1], (box[0], box[1]))], []
    while parts:
        part, (x, y) = parts.pop()
        whole += [_outline(piece, offset) for piece, offset in _without_holes(part, (x, y), parts)]
    return sorted(whole, key=len, reverse=True)


def joined(polygons: Sequence[Polygon]) -> Polygon:
    """One polygon with the area of several that do not overlap, for forms that know one polygon an object.

    From each polygon a line goes to the nearest corner of those before it, there and back: it encloses nothing, by the
    even-odd and by the non-zero rule.

    Args:
      polygons: such as `mask_to_polygons` gives; of none, the result is empty.
    """
    if not polygons:
        return []
    parts = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    corners = np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])
    ahead = np.arange(1, len(corners) + 1)
    ahead[ends - 1] = np.concatenate([[0], ends[:-1]])
    # Corners are the nodes of one way: where a line begins, the way turns off, around the part, and comes back.
    turns: dict[int, list[int]] = {}
    before = _Corners()
    for part, start in zip(parts, [0, *ends[:-1].tolist()], strict=True):
        if start:
            here, there = before.nearest(part)
            turns.setdefault(there, []).append(start + here)
        before.add(np.arange(start, start + len(part)), part)
    way, waiting = [0], [(0, 0, iter(turns.get(0, ())))]
    while waiting:
        first, at, lines = waiting[-1]
        if (other := next(lines, None)) is not None:
            way.append(other)
            waiting.append((other, other, iter(turns.get(other, ()))))
            continue
        waiting.pop()
        following = int(ahead[at])
        way.append(following)
        if following != first:
            waiting.append((first, following, iter(turns.get(following, ()))))
        elif waiting:
            way.append(waiting[-1][1])
    return corners[way[:-1]].ravel().tolist()


class _Corners:
    """Numbered points, among which the nearest one is found, also while there come more.

    Trees can't grow, so there are several, each more than twice as large as the next: of n points, a point is in log n.
    """

    def __init__(self) -> None:
        self._trees: list[tuple[np.ndarray, Any]] = []

    def add(self, numbers: np.ndarray, points: np.ndarray) -> None:
        from scipy.spatial import KDTree  # importing it takes as long as all of this library

        while self._trees and len(self._trees[-1][0]) <= 2 * len(numbers):
            more, tree = self._trees.pop()
            numbers, points = np.concatenate([more, numbers]), np.concatenate([tree.data, points])
        self._trees.append((numbers, KDTree(points)))

    def nearest(self, points: np.ndarray) -> tuple[int, int]:
        """Which of the points is nearest to one of these, and that one's number."""
        found = []
        for numbers, tree in self._trees:
            distances, places = tree.query(points)
            here = int(distances.argmin())
            found.append((float(distances[here]), here, int(numbers[places[here]])))
        _, here, there = min(found)
        return here, there


_Part = tuple[Bool[np.ndarray, "h w"], tuple[int, int]]
"""Pixels, and (x, y) of the first one in the photo."""


def _without_holes(mask: Bool[np.ndarray, "h w"], at: tuple[int, int], rest: list[_Part]) -> list[_Part]:
    """The connected parts that have no hole; of others, two halves go to the `rest`."""
    from scipy import ndimage  # importing it takes as long as all of this library

    numbers, _ = ndimage.label(mask)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
        part = numbers[rows, columns] == number
        x, y = at[0] + columns.start, at[1] + rows.start
        # The outside reaches through corners, where parts that are 4-connected do not.
        holes = ndimage.binary_fill_holes(part, np.ones((3, 3))) & ~part
        if not holes.any():
            found.append((part, (x, y)))
            continue
        columns_with_holes = np.flatnonzero(holes.any(0))
        cut = int(columns_with_holes[len(columns_with_holes) // 2])  # so that as many are to the left as to the right
        rest += [(part[:, :cut], (x, y)), (part[:, cut:], (x + cut, y))]
    return found


def _outline(part: Bool[np.ndarray, "h w"], at: tuple[int, int]) -> Polygon:
    """The way around 4-connected pixels without holes, clockwise from the first corner of the first row."""
    padded = np.pad(part, 1)
    x = int(part[0].argmax())
    start, y, way, corners = (x, 0), 0, 0, Polygon()
    while True:
        # The pixels ahead, to the left and to the right of the way, in the padded part.
        (dx, dy), (left, right) = _WAYS[way], _AHEAD[way]
        x, y = x + dx, y + dy
        if not padded[y + right[1], x + right[0]]:
            turn = 1
        elif padded[y + left[1], x + left[0]]:
            turn = 3
        else:
            continue
        corners += [x + at[0], y + at[1]]
        way = (way + turn) % 4
        if (x, y) == start and way == 0:
            return corners


_WAYS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Right, down, left, up."""
_AHEAD = (((1, 0), (1, 1)), ((1, 1), (0, 1)), ((0, 1), (0, 0)), ((0, 0), (1, 0)))
"""(x, y) from a corner to the pixels ahead of it, left and right of each way, in the padded part."""
