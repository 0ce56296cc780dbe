"""Random shapes of the synthetic scenes, as polygons, and how much of each pixel they cover."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from . import textures

Contours = list[Float[np.ndarray, "n 2"]]
"""Closed polygons (x, y); a point is inside if it is within an odd number of them, so that a second one is a hole."""

Shape = list[Contours]
"""Pieces about the origin, at most 1 from it, mostly; together they are the shape."""

_OVERSAMPLING = 3
"""Samples along a side of a pixel, for smooth edges."""


def placed(shape: Shape, radius: float, centre: np.ndarray) -> Shape:
    """A shape as large as a radius, about a centre (x, y), in pixels."""
    return [[radius * contour + centre for contour in piece] for piece in shape]


def random_shape(rng: np.random.Generator) -> Shape:
    """A random one; some have holes."""
    kinds = _OUTLINES | _COMPOSED
    kind = str(rng.choice(list(kinds), p=[w / sum(kinds.values()) for w in kinds.values()]))
    shape = [outline(kind, rng)] if kind in _OUTLINES else _compose(kind, rng)
    squash = rng.uniform(0.08, 0.25) if kind in _OUTLINES and rng.random() < 0.05 else rng.uniform(0.5, 1)
    cos, sin = direction(rng.uniform(0, 2 * math.pi))
    turned = lambda p: np.stack([p[:, 0] * cos - p[:, 1] * squash * sin, p[:, 0] * sin + p[:, 1] * squash * cos], -1)
    return [[turned(contour) for contour in piece] for piece in shape]


_OUTLINES = {"round": 3, "box": 4, "polygon": 3, "star": 1, "blob": 5, "ring": 1, "crescent": 1, "tee": 1, "vessel": 4}
"""Kinds of outlines and how often each occurs."""

_COMPOSED = {"animal": 5, "branch": 0.7, "flower": 1, "lattice": 0.3, "pair": 3}
"""Likewise, shapes of several pieces."""


def outline(kind: str, rng: np.random.Generator) -> Contours:
    """A random shape of one piece, of a kind in `_OUTLINES`."""
    circle = circle_points(np.arange(64) * (2 * math.pi / 64))
    if kind == "box":
        power = rng.uniform(0.02, 0.5)  # of a superellipse; nearly sharp to nearly round
        box = np.sign(circle) * np.abs(circle) ** power * 0.8
        return [box, box * rng.uniform(0.4, 0.85)] if rng.random() < 0.15 else [box]
    if kind == "polygon":
        return [circle_points(np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 9))))]
    if kind == "star":
        tips = int(rng.integers(4, 10))
        star = circle_points(np.arange(2 * tips) * (math.pi / tips))
        star[1::2] *= rng.uniform(0.35, 0.75)
        return [star]
    if kind == "blob":
        reach = np.full((64, 1), 0.7)
        for wave in range(1, 7):
            phase = (wave * np.arange(64) + rng.integers(64)) % 64
            reach += rng.uniform(-0.25, 0.25) / math.sqrt(wave) * circle[phase, :1]
        reach += rng.choice([0, 0, 0.08, 0.2]) * (rng.random((64, 1)) - 0.5)  # as of leaves
        blob = circle * np.clip(reach, 0.15, 1.2)
        hole = lambda: rng.uniform(-0.35, 0.35, 2) + circle * rng.uniform(0.06, 0.18)
        return [blob, *(hole() for _ in range(rng.choice([0, 0, 0, 0, 1, 2])))]
    if kind == "ring":
        return [circle, circle * rng.uniform(0.35, 0.85) + rng.uniform(-0.1, 0.1, 2)]
    if kind == "crescent":
        bulge = rng.uniform(-0.2, 0.8)
        return [np.concatenate([circle[:33], circle[32::-1] * (1, bulge)])]
    if kind == "tee":
        stem, bar, side = rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.5), rng.uniform(-0.4, 0.4)
        corners = [(-0.9, -0.8), (0.9, -0.8), (0.9, bar - 0.8), (side + stem, bar - 0.8), (side + stem, 0.9)]
        return [np.array([*corners, (side - stem, 0.9), (side - stem, bar - 0.8), (-0.9, bar - 0.8)])]
    if kind == "vessel":  # the same on both sides: bottles, vases, mushrooms, trees
        knots = int(rng.integers(3, 8))
        y = np.linspace(-0.95, 0.95, 41)
        low, step = textures.smooth_steps((y + 0.95) / 1.9 * (knots - 1))
        widths = np.append(rng.uniform(0.08, 0.75, knots), 0)
        half = widths[low] + (widths[low + 1] - widths[low]) * step
        return [np.concatenate([np.stack([half, y], -1), np.stack([-half, y], -1)[::-1]])]
    return [circle]


def _compose(kind: str, rng: np.random.Generator) -> Shape:
    circle = circle_points(np.arange(64) * (2 * math.pi / 64))
    if kind == "animal":  # a body, a head, legs and perhaps a tail
        length, thick = rng.uniform(0.35, 0.6), rng.uniform(0.16, 0.35)
        body = _limb([(-length, 0), (0, rng.uniform(-0.12, 0.12)), (length, rng.uniform(-0.1, 0.1))], [thick] * 3)
        size = rng.uniform(0.12, 0.28)
        neck = np.array([length + rng.uniform(0, 0.2), -rng.uniform(0.1, 0.5)])
        pieces = [body, _limb([(length * 0.8, 0), neck], [thick * 0.7, size * 0.8]), [size * circle * (1.2, 1) + neck]]
        for hip in rng.uniform(-length, length, rng.integers(2, 7)):
            knee = np.array([hip + rng.uniform(-0.15, 0.15), thick + rng.uniform(0.05, 0.3)])
            foot = knee + rng.uniform((-0.2, 0.1), (0.2, 0.35))
            wide = rng.uniform(0.04, 0.12)
            pieces.append(_limb([(hip, 0), knee, foot], [1.5 * wide, wide, 0.7 * wide]))
        if rng.random() < 0.6:
            tip = (-length - rng.uniform(0.1, 0.4), rng.uniform(-0.5, 0.4))
            pieces.append(_limb([(-length, 0), (-length - 0.15, rng.uniform(-0.3, 0.3)), tip], [0.08, 0.05, 0.02]))
        return pieces
    if kind == "branch":  # and cables, sticks, rivers
        pieces = []
        wide = rng.uniform(0.03, 0.12)
        for _ in range(rng.integers(1, 4)):
            at, turn = rng.uniform(-0.9, 0.9, 2) if pieces else np.array([-0.95, 0.0]), rng.uniform(-0.6, 0.6)
            joints = [at]
            for _ in range(rng.integers(3, 9)):
                turn += rng.uniform(-0.7, 0.7)
                joints.append(joints[-1] + 0.28 * direction(turn))
            pieces.append(_limb(joints, list(wide * np.linspace(1, rng.uniform(0.3, 1), len(joints)))))
        return pieces
    if kind == "flower":  # and leaves of one stalk, wheels with spokes
        count, inner, wide = int(rng.integers(3, 10)), rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4)
        arms = [direction(i * 2 * math.pi / count) for i in range(count)]
        return [[inner * circle], *(_limb([0.2 * arm, 0.8 * arm], [wide * 0.5, wide * 0.7]) for arm in arms)]
    if kind == "lattice":  # fences, windows, ladders
        columns, rows, wide = int(rng.integers(2, 7)), int(rng.integers(2, 5)), rng.uniform(0.03, 0.1)
        bars = [_limb([(x, -0.8), (x, 0.8)], [wide, wide]) for x in np.linspace(-0.8, 0.8, columns)]
        return bars + [_limb([(-0.8, y), (0.8, y)], [wide, wide]) for y in np.linspace(-0.8, 0.8, rows)]
    kinds = list(_OUTLINES)  # a pair: two outlines that are one thing
    first, second = (outline(kinds[rng.integers(len(kinds))], rng) for _ in range(2))
    place = direction(rng.uniform(0, 2 * math.pi)) * 0.45
    scale = rng.uniform(0.3, 0.6)
    return [[0.6 * contour - 0.6 * place for contour in first], [scale * contour + place for contour in second]]


def _limb(joints: list, radii: list[float]) -> Contours:
    """A band along a path, as wide as the radii at its joints, with round ends."""
    path, radii = np.array(joints, float), list(map(float, radii))
    steps = np.diff(path, axis=0)
    lengths = np.sqrt(steps[:, :1] * steps[:, :1] + steps[:, 1:] * steps[:, 1:])
    steps = steps / np.maximum(lengths, 1e-9)
    directions = np.concatenate([steps[:1], (steps[:-1] + steps[1:]) / 2, steps[-1:]])
    normals = np.stack([-directions[:, 1], directions[:, 0]], -1) * np.array(radii)[:, None]
    half = circle_points(np.arange(1, 8) * (math.pi / 8))  # from a side round to the other
    forward, sideways = half[:, 1:], half[:, :1]
    cap = lambda at, ahead, aside, r: path[at] + r * (forward * ahead + sideways * aside)
    side = np.stack([-steps[:, 1], steps[:, 0]], -1)
    end, start = cap(-1, steps[-1], side[-1], radii[-1]), cap(0, -steps[0], -side[0], radii[0])
    return [np.concatenate([path + normals, end, (path - normals)[::-1], start])]


def cover(shape: Shape, size: tuple[int, int]) -> tuple[int, int, Float[np.ndarray, "h w"]]:
    """Top, left and the coverage of each pixel of the part of the picture where some piece may be."""
    found = [piece for piece in (rasterize(contours, size) for contours in shape) if piece[2].size]
    if not found:
        return 0, 0, np.zeros((0, 0), np.float32)
    if len(found) == 1:
        return found[0]
    top, left = min(t for t, _, _ in found), min(x for _, x, _ in found)
    height = max(t + c.shape[0] for t, _, c in found) - top
    width = max(x + c.shape[1] for _, x, c in found) - left
    whole = np.zeros((height, width), np.float32)
    for t, x, coverage in found:
        part = whole[t - top : t - top + coverage.shape[0], x - left : x - left + coverage.shape[1]]
        np.maximum(part, coverage, out=part)
    return top, left, whole


def rasterize(contours: Contours, size: tuple[int, int]) -> tuple[int, int, Float[np.ndarray, "h w"]]:
    """Top, left and the coverage of each pixel of the part of the picture where the outline may be."""
    n = _OVERSAMPLING
    contours = [np.round(points, 6) for points in contours]
    points = np.concatenate(contours)
    left, top = np.clip(np.floor(points.min(0)), 0, size[::-1]).astype(int)
    right, bottom = np.clip(np.ceil(points.max(0)), 0, size[::-1]).astype(int)
    height, width = n * max(bottom - top, 0), n * max(right - left, 0)
    if not height * width:
        return int(top), int(left), np.zeros((0, 0), np.float32)
    start = points * n - (n * left + 0.5, n * top + 0.5)
    end = np.concatenate([np.roll(p, -1, 0) for p in contours]) * n - (n * left + 0.5, n * top + 0.5)
    # Rows of samples that an edge crosses, and where it does; samples right of it change sides.
    first = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, height).astype(int)
    last = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, height).astype(int)
    edge = np.repeat(np.arange(len(start)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
    slope = (end - start)[edge]
    x = start[edge, 0] + (row - start[edge, 1]) * slope[:, 0] / slope[:, 1]
    column = np.clip(np.ceil(x), 0, width).astype(int)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)) % 2
    inside = np.bitwise_xor.accumulate(crossings.astype(np.uint8).reshape(height, width + 1), axis=1)[:, :-1]
    counts = inside.reshape(height // n, n, width // n, n).sum((1, 3), dtype=np.int64)
    return int(top), int(left), (counts / n**2).astype(np.float32)


def circle_points(angles: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """Points of the unit circle; rounded, because machines differ in the last digits of sines."""
    return np.round(np.stack([np.cos(angles), np.sin(angles)], -1), 9)


def direction(angle: float) -> Float[np.ndarray, "2"]:
    """(cosine, sine) of an angle in radians."""
    return circle_points(np.array([angle]))[0]
