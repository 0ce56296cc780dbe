"""Synthetic scenes with exact masks: material that may be passed on, and knows no photo.

A scene is a function of its seed and number, the same on every machine: NumPy's integers, elementwise float64
arithmetic and square roots, which round alike everywhere; no text, no libraries of graphics, and no sums or products of
matrices over pixels, whose order differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

Contours = list[Float[np.ndarray, "n 2"]]
"""Closed polygons (x, y); a point is inside if it is within an odd number of them, so that a second one is a hole."""

SPECK = 12
"""Visible pixels that a thing needs for a mask."""

_OVERSAMPLING = 3
"""Samples along a side of a pixel, for smooth edges."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and the masks of everything in it."""

    image: UInt8[np.ndarray, "h w 3"]
    masks: list[Bool[np.ndarray, "h w"]]
    """Visible parts of backgrounds, wholes and their parts; a whole includes its parts. Specks are left out."""


def render(seed: int, number: int, size: tuple[int, int], *, close_up: bool = False) -> Scene:
    """Draw a scene.

    Args:
      seed: of the series.
      number: of the scene in it.
      size: (height, width) in pixels, 32 or more each.
      close_up: few and large things, of which models at low resolution can see shape and colour.
    """
    canvas = _Canvas(np.random.Generator(np.random.PCG64([seed, number])), size)
    canvas.draw_background()
    canvas.draw_objects(close_up)
    return Scene(canvas.develop(), canvas.masks())


class _Canvas:
    """The picture so far, in [0, 1], and which thing each pixel belongs to."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        if min(size) < 32:
            raise ValueError(f"a scene has 32 pixels or more a side, got {size}")
        self.rng, self.size = rng, size
        self.image = np.zeros((*size, 3))
        self.owner = np.zeros(size, np.int32)
        self.parents: list[int] = []  # of each thing, itself for a whole
        colours, brightness = rng.random((2, int(rng.integers(3, 9)), 3))
        self.palette = brightness[:, :1] + rng.uniform(0.1, 0.9) * (colours - brightness[:, :1])
        self.light = _turn(rng.uniform(0, 2 * math.pi))
        self.contrast = rng.uniform(0.1, 0.5)

    def draw_background(self) -> None:
        """One surface, or two or three one in front of the other, such as a wall and a floor."""
        height, width = self.size
        whole = [np.array([(-1, -1), (width + 1, -1), (width + 1, height + 1), (-1, height + 1)], float)]
        self.draw(whole, parent=None, shadow=False)
        for _ in range(self.rng.integers(0, 3)):
            y = self.rng.uniform(0.2, 0.8) * height
            slope = self.rng.uniform(-0.3, 0.3) * height * (self.rng.random() < 0.5)
            wave = self.rng.uniform(0, 0.04) * height * (self.rng.random() < 0.5)
            x = np.linspace(-1, width + 1, 33)
            ridge = y + slope * (x / width - 0.5) + wave * self.rng.uniform(-1, 1, 33)
            lower = np.array([(width + 1, height + 1), (-1, height + 1)], float)
            self.draw([np.concatenate([np.stack([x, ridge], -1), lower])], parent=None, shadow=False)

    def draw_objects(self, close_up: bool) -> None:
        """Things of all sizes, the large ones mostly first; each covers what is there."""
        shorter = min(self.size)
        count = int(self.rng.integers(2, 8) if close_up else self.rng.integers(6, 36))
        largest, smallest = self.rng.uniform(0.2, 0.5), 0.12 if close_up else max(3 / shorter, 0.012)
        radii = shorter * smallest * (largest / smallest) ** self.rng.random(count)
        heaps = self.rng.uniform(0.2, 0.8, (self.rng.integers(1, 4), 2))
        gathered = self.rng.random() < 0.5
        for radius in radii[np.argsort(-radii * self.rng.uniform(0.5, 2, count))]:
            centre = self.rng.random(2)
            if gathered and self.rng.random() < 0.8:
                centre = self.rng.choice(heaps) + 0.4 * (centre - 0.5)
            centre = centre * self.size[::-1]
            if radius < 0.06 * shorter and self.rng.random() < 0.25:
                self.draw_row(centre, radius)
            else:
                self.draw_thing(centre, radius)

    def draw_row(self, centre: np.ndarray, radius: float) -> None:
        """Several alike, side by side."""
        step = _turn(self.rng.uniform(0, 2 * math.pi)) * radius * self.rng.uniform(1.8, 3.5)
        shape, material = _shape(self.rng), self.material()
        for i in range(self.rng.integers(3, 9)):
            jitter = self.rng.uniform(-0.15, 0.15, 2) * radius
            self.draw([radius * part + centre + i * step + jitter for part in shape], None, material=material)

    def draw_thing(self, centre: np.ndarray, radius: float) -> None:
        """A whole, sometimes with parts, which sometimes have parts."""
        thing = self.draw([radius * part + centre for part in _shape(self.rng)], None)
        if radius > 10 and self.rng.random() < 0.6:
            self.draw_parts(thing, centre, radius)

    def draw_parts(self, whole: int, centre: np.ndarray, radius: float, depth: int = 1) -> None:
        """Concentric, scattered or in a band across; clipped to the whole."""
        kind = self.rng.integers(3)
        if kind == 0:
            inner = radius * self.rng.uniform(0.3, 0.65)
            part = self.draw([inner * p + centre for p in _shape(self.rng)], whole, shadow=False)
            if depth < 2 and inner > 10 and self.rng.random() < 0.6:
                self.draw_parts(part, centre, inner, depth + 1)
        elif kind == 1:
            shape, alike = _shape(self.rng), self.rng.random() < 0.5
            material = self.material()
            for _ in range(self.rng.integers(2, 7)):
                at = centre + self.rng.uniform(-0.6, 0.6, 2) * radius
                contours = [
                    radius * self.rng.uniform(0.1, 0.25) * p + at for p in (shape if alike else _shape(self.rng))
                ]
                self.draw(contours, whole, shadow=False, material=material if alike else None)
        else:
            along = _turn(self.rng.uniform(0, 2 * math.pi))
            across = np.array([-along[1], along[0]])
            near = self.rng.uniform(-0.5, 0.3)
            far = near + self.rng.uniform(0.15, 0.5) if self.rng.random() < 0.6 else 3.0
            corners = [near * across - 3 * along, near * across + 3 * along]
            corners += [far * across + 3 * along, far * across - 3 * along]
            self.draw([radius * np.array(corners) + centre], whole, shadow=False)

    def draw(
        self, contours: Contours, parent: int | None, *, shadow: bool = True, material: _Material | None = None
    ) -> int:
        """Cover pixels by a new thing, whose number is returned; of a part, those of its whole that are still seen."""
        number = len(self.parents)
        self.parents.append(number if parent is None else parent)
        top, left, coverage = _rasterize(contours, self.size)
        if not coverage.size:
            return number
        at = slice(top, top + coverage.shape[0]), slice(left, left + coverage.shape[1])
        if parent is not None:
            coverage = coverage * (self.owner[at] == parent)
        if shadow and self.rng.random() < 0.7:
            self.draw_shadow(top, left, coverage)
        colours = (material or self.material()).paint(coverage.shape, self)
        self.image[at] += (colours - self.image[at]) * coverage[..., None]
        self.owner[at][coverage >= 0.5] = number
        return number

    def draw_shadow(self, top: int, left: int, coverage: np.ndarray) -> None:
        """Darken what lies behind, away from the light."""
        length = 0.02 * min(self.size) * self.rng.uniform(0.2, 1.2)
        length = min(length, 0.3 * max(coverage.shape))
        for step in (0.4, 0.7, 1.0):
            y, x = (
                round(value) for value in (top - step * length * self.light[1], left - step * length * self.light[0])
            )
            rows = slice(max(y, 0), max(min(y + coverage.shape[0], self.size[0]), 0))
            columns = slice(max(x, 0), max(min(x + coverage.shape[1], self.size[1]), 0))
            part = coverage[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
            self.image[rows, columns] *= 1 - 0.22 * part[..., None]

    def material(self) -> _Material:
        """Of the scene's colours, or like what is there."""
        first, second = self.palette[self.rng.integers(len(self.palette), size=2)]
        jitter = self.rng.uniform(-0.15, 0.15, (2, 3))
        return _Material(
            np.clip(first + jitter[0], 0, 1),
            np.clip(second + jitter[1], 0, 1),
            str(self.rng.choice(_PATTERNS)),
            float(self.rng.uniform(0.1, 1.0)),
            float(2.0 ** self.rng.uniform(2, 6.5)),
            self.rng.uniform(0, 2 * math.pi),
        )

    def develop(self) -> UInt8[np.ndarray, "h w 3"]:
        """Light that falls off, blur, and noise."""
        height, width = self.size
        y, x = np.arange(height)[:, None] / height - 0.5, np.arange(width)[None] / width - 0.5
        image = self.image * (1 + self.contrast * (x * self.light[0] + y * self.light[1]))[..., None]
        for _ in range(self.rng.integers(0, 3)):
            for axis in (0, 1):
                image = (_shift(image, axis, -1) + 2 * image + _shift(image, axis, 1)) / 4
        noise = self.rng.integers(-128, 128, (2, height, width, 3), np.int16)
        image = 255 * image + self.rng.uniform(0, 0.06) * (noise[0] + noise[1])
        return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)

    def masks(self) -> list[Bool[np.ndarray, "h w"]]:
        """Of all things of which enough is seen."""
        found = []
        for number in range(len(self.parents)):
            mine = [i for i in range(number, len(self.parents)) if number in self.lineage(i)]
            mask = np.isin(self.owner, mine)
            if np.count_nonzero(mask) >= SPECK:
                found.append(mask)
        return found

    def lineage(self, number: int) -> Iterator[int]:
        """A thing, what it is a part of, and so on."""
        yield number
        while self.parents[number] != number:
            number = self.parents[number]
            yield number


_PATTERNS = ("flat", "gradient", "stripes", "checks", "dots", "noise", "rough", "rough")


@dataclasses.dataclass(frozen=True)
class _Material:
    """Two colours, and how a surface changes from one to the other."""

    first: Float[np.ndarray, "3"]
    second: Float[np.ndarray, "3"]
    pattern: str
    strength: float
    """From 0, the first colour alone, to 1."""
    period: float
    """Of the pattern, in pixels."""
    angle: float

    def paint(self, shape: tuple[int, int], canvas: _Canvas) -> Float[np.ndarray, "h w 3"]:
        """Colours of a window, which the light falls on from the side."""
        height, width = shape
        y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
        cos, sin = _turn(self.angle)
        mix = self._mix(x * cos + y * sin, y * cos - x * sin, shape, canvas.rng) * self.strength
        colours = self.first + (self.second - self.first) * mix[..., None]
        slope = (x / width - 0.5) * canvas.light[0] + (y / height - 0.5) * canvas.light[1]
        grain = 1 + canvas.rng.uniform(0, 0.15) * (_value_noise(canvas.rng, shape, 2.0) - 0.5)
        return colours * ((1 + 2 * canvas.contrast * slope) * grain)[..., None]

    def _mix(self, u: np.ndarray, v: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        period = self.period
        if self.pattern == "gradient":
            return np.clip((u - u.min()) / (u.max() - u.min() + 1), 0, 1)
        if self.pattern == "stripes":
            return np.clip(np.abs(u / period % 1 - 0.5) * 8 - 1.5, 0, 1)
        if self.pattern == "checks":
            return (np.floor(u / period) + np.floor(v / period)) % 2
        if self.pattern == "dots":
            return ((u / period % 1 - 0.5) ** 2 + (v / period % 1 - 0.5) ** 2 < 0.1).astype(float)
        if self.pattern == "noise":
            return _value_noise(rng, shape, period)
        if self.pattern == "rough":
            octaves = [_value_noise(rng, shape, max(period * factor, 1.5)) for factor in (4, 1, 0.25)]
            return np.clip(octaves[0] * 0.5 + octaves[1] * 0.35 + octaves[2] * 0.4 - 0.1, 0, 1)
        return np.zeros(shape)


def _value_noise(rng: np.random.Generator, shape: tuple[int, int], period: float) -> Float[np.ndarray, "h w"]:
    """Random numbers on a grid, and between its points a smooth step from one to the next."""
    grid = rng.random([int(side / period) + 2 for side in shape])
    for axis, side in enumerate(shape):
        position = np.arange(side) / period
        low = position.astype(int)
        step = position - low
        step = (step * step * (3 - 2 * step)).reshape((-1, 1) if axis == 0 else (1, -1))
        below, above = np.take(grid, low, axis), np.take(grid, low + 1, axis)
        grid = below + (above - below) * step
    return grid


def _shape(rng: np.random.Generator) -> Contours:
    """A random outline about the origin, at most 1 from it, mostly; some have holes."""
    kind = rng.choice(list(_OUTLINES), p=[w / sum(_OUTLINES.values()) for w in _OUTLINES.values()])
    contours = _outline(str(kind), rng)
    squash = rng.uniform(0.08, 0.25) if rng.random() < 0.12 else rng.uniform(0.45, 1)
    cos, sin = _turn(rng.uniform(0, 2 * math.pi))
    return [
        np.stack([p[:, 0] * cos - p[:, 1] * squash * sin, p[:, 0] * sin + p[:, 1] * squash * cos], -1) for p in contours
    ]


_OUTLINES = {"round": 4, "box": 5, "polygon": 3, "star": 1, "blob": 4, "ring": 1.5, "crescent": 1, "tee": 1}
"""Kinds of outlines and how often each occurs."""


def _outline(kind: str, rng: np.random.Generator) -> Contours:
    circle = _circle(np.arange(64) * (2 * math.pi / 64))
    if kind == "box":
        power = rng.uniform(0.02, 0.5)  # of a superellipse; nearly sharp to nearly round
        box = np.sign(circle) * np.abs(circle) ** power * 0.8
        return [box, box * rng.uniform(0.4, 0.85)] if rng.random() < 0.15 else [box]
    if kind == "polygon":
        return [_circle(np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 9))))]
    if kind == "star":
        tips = int(rng.integers(4, 10))
        star = _circle(np.arange(2 * tips) * (math.pi / tips))
        star[1::2] *= rng.uniform(0.35, 0.75)
        return [star]
    if kind == "blob":
        reach = np.full((64, 1), 0.7)
        for wave in range(1, 7):
            phase = (wave * np.arange(64) + rng.integers(64)) % 64
            reach += rng.uniform(-0.25, 0.25) / math.sqrt(wave) * circle[phase, :1]
        blob = circle * np.clip(reach, 0.15, 1.2)
        hole = rng.uniform(-0.1, 0.1, 2) + circle * rng.uniform(0.1, 0.15)
        return [blob, hole] if rng.random() < 0.15 else [blob]
    if kind == "ring":
        return [circle, circle * rng.uniform(0.35, 0.85) + rng.uniform(-0.1, 0.1, 2)]
    if kind == "crescent":
        bulge = rng.uniform(-0.2, 0.8)
        return [np.concatenate([circle[:33], circle[32::-1] * (1, bulge)])]
    if kind == "tee":
        stem, bar, side = rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.5), rng.uniform(-0.4, 0.4)
        corners = [(-0.9, -0.8), (0.9, -0.8), (0.9, bar - 0.8), (side + stem, bar - 0.8), (side + stem, 0.9)]
        return [np.array([*corners, (side - stem, 0.9), (side - stem, bar - 0.8), (-0.9, bar - 0.8)])]
    return [circle]


def _rasterize(contours: Contours, size: tuple[int, int]) -> tuple[int, int, Float[np.ndarray, "h w"]]:
    """Top, left and the coverage of each pixel of the part of the picture where the outline may be."""
    n = _OVERSAMPLING
    contours = [np.round(points, 6) for points in contours]
    points = np.concatenate(contours)
    left, top = np.clip(np.floor(points.min(0)), 0, size[::-1]).astype(int)
    right, bottom = np.clip(np.ceil(points.max(0)), 0, size[::-1]).astype(int)
    height, width = n * max(bottom - top, 0), n * max(right - left, 0)
    if not height * width:
        return top, left, np.zeros((0, 0))
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
    return top, left, counts / n**2


def _shift(image: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Neighbouring pixels; at the edge, the pixel itself."""
    return np.take(image, np.clip(np.arange(image.shape[axis]) + step, 0, image.shape[axis] - 1), axis)


def _circle(angles: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """Points of the unit circle; rounded, because machines differ in the last digits of sines."""
    return np.round(np.stack([np.cos(angles), np.sin(angles)], -1), 9)


def _turn(angle: float) -> Float[np.ndarray, "2"]:
    return _circle(np.array([angle]))[0]
