"""Synthetic scenes with exact masks: material that may be passed on, and knows no photo.

A scene is a function of its seed and number, the same on every machine: NumPy's integers, elementwise arithmetic, sums
along an axis one after the other, and square roots, which round alike everywhere; no text, no libraries of graphics,
and no sums or products of matrices over pixels whose order differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

Contours = list[Float[np.ndarray, "n 2"]]
"""Closed polygons (x, y); a point is inside if it is within an odd number of them, so that a second one is a hole."""

Shape = list[Contours]
"""Pieces about the origin, at most 1 from it, mostly; together they are the shape."""

SPECK = 12
"""Visible pixels that a thing needs for a mask, at least."""

SPECK_SHARE = 0.002
"""Likewise, as a share of the picture: 23 x 23 pixels of 512 x 512."""

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
        self.image = np.zeros((*size, 3), np.float32)
        self.owner = np.zeros(size, np.int32)
        self.parents: list[int] = []  # of each thing, itself for a whole
        colours, brightness = rng.random((2, int(rng.integers(3, 10)), 3))
        vivid = rng.uniform(0.05, 0.9) * rng.uniform(0.4, 1, (len(colours), 1))
        self.palette = brightness[:, :1] + vivid * (colours - brightness[:, :1])
        self.light = _turn(rng.uniform(0, 2 * math.pi))
        self.contrast = rng.uniform(0.1, 0.5)
        self.relief = rng.uniform(0, 1.2)

    def draw_background(self) -> None:
        """One surface, or some one in front of the other, such as sky, hills and a meadow, with litter on them."""
        height, width = self.size
        whole = [np.array([(-1, -1), (width + 1, -1), (width + 1, height + 1), (-1, height + 1)], float)]
        self.draw([whole], parent=None, shadow=False, relief=False)
        self.draw_litter(0)
        for _ in range(self.rng.choice([0, 0, 1, 1, 2, 3])):
            y = self.rng.uniform(0.2, 0.8) * height
            slope = self.rng.uniform(-0.3, 0.3) * height * (self.rng.random() < 0.5)
            wave = self.rng.uniform(0, 0.04) * height * (self.rng.random() < 0.5)
            hill = self.rng.uniform(-0.2, 0.2) * height * (self.rng.random() < 0.4)
            x = np.linspace(-1, width + 1, 129)
            bow = (2 * x / width - 1) * (2 * x / width - 1)
            rough = [_value_noise(self.rng, (129, 1), period)[:, 0] - 0.5 for period in (40, 10, 2.5)]
            ridge = y + slope * (x / width - 0.5) + hill * bow + wave * (4 * rough[0] + 1.5 * rough[1] + rough[2])
            lower = np.array([(width + 1, height + 1), (-1, height + 1)], float)
            ground = [np.concatenate([np.stack([x, ridge], -1), lower])]
            self.draw_litter(self.draw([ground], parent=None, shadow=self.rng.random() < 0.3, relief=False))
        for _ in range(self.rng.choice([0, 0, 1, 3, 6])):  # rocks, bushes, patches
            centre = self.rng.random(2) * self.size[::-1]
            clump = _placed([_outline("blob", self.rng)], self.rng.uniform(0.1, 0.5) * max(self.size), centre)
            self.draw_litter(self.draw(clump, parent=None, shadow=self.rng.random() < 0.3))
        if self.rng.random() < 0.4:
            self.blur(self.rng.uniform(0.5, 6))

    def draw_objects(self, close_up: bool) -> None:
        """Things of all sizes, the large ones mostly first; each covers what is there."""
        shorter = min(self.size)
        most = 6 if close_up else 28
        count = int(2 * (most / 2) ** self.rng.random())
        largest, smallest = self.rng.uniform(0.25, 0.7), 0.12 if close_up else max(4 / shorter, 0.05)
        radii = shorter * smallest * (largest / smallest) ** self.rng.random(count)
        heaps = self.rng.uniform(0.2, 0.8, (self.rng.integers(1, 4), 2))
        gathered = self.rng.random() < 0.5
        focus = int(self.rng.integers(0, 3 * count))  # things before it are out of focus
        for i, radius in enumerate(radii[np.argsort(-radii * self.rng.uniform(0.5, 2, count))]):
            if i == focus:
                self.blur(self.rng.uniform(0.5, 3))
            centre = self.rng.random(2)
            if gathered and self.rng.random() < 0.8:
                centre = self.rng.choice(heaps) + 0.4 * (centre - 0.5)
            centre = centre * self.size[::-1]
            if radius < 0.08 * shorter and self.rng.random() < 0.25:
                self.draw_row(centre, radius)
            else:
                self.draw_thing(centre, radius)

    def draw_row(self, centre: np.ndarray, radius: float) -> None:
        """Several alike, side by side."""
        step = _turn(self.rng.uniform(0, 2 * math.pi)) * radius * self.rng.uniform(1.8, 3.5)
        shape, material = _shape(self.rng), self.material()
        for i in range(self.rng.integers(3, 9)):
            jitter = self.rng.uniform(-0.15, 0.15, 2) * radius
            self.draw(_placed(shape, radius, centre + i * step + jitter), None, material=material)

    def draw_thing(self, centre: np.ndarray, radius: float) -> None:
        """A whole, sometimes with markings, sometimes with parts, which sometimes have parts."""
        thing = self.draw(_placed(_shape(self.rng), radius, centre), None)
        if self.rng.random() < 0.3:
            self.draw_litter(thing, centre, radius)
        if radius > 10 and self.rng.random() < 0.6:
            self.draw_parts(thing, centre, radius)

    def draw_parts(self, whole: int, centre: np.ndarray, radius: float, depth: int = 1) -> None:
        """Concentric, scattered or in a band across; clipped to the whole."""
        kind = self.rng.integers(3)
        if kind == 0:
            inner = radius * self.rng.uniform(0.3, 0.65)
            part = self.draw(_placed(_shape(self.rng), inner, centre), whole, shadow=False)
            if depth < 2 and inner > 10 and self.rng.random() < 0.6:
                self.draw_parts(part, centre, inner, depth + 1)
        elif kind == 1:
            shape, alike = _shape(self.rng), self.rng.random() < 0.5
            material = self.material()
            for _ in range(self.rng.integers(2, 7)):
                at = centre + self.rng.uniform(-0.6, 0.6, 2) * radius
                placed = _placed(shape if alike else _shape(self.rng), radius * self.rng.uniform(0.15, 0.35), at)
                self.draw(placed, whole, shadow=False, material=material if alike else None)
        else:
            along = _turn(self.rng.uniform(0, 2 * math.pi))
            across = np.array([-along[1], along[0]])
            near = self.rng.uniform(-0.5, 0.3)
            far = near + self.rng.uniform(0.15, 0.5) if self.rng.random() < 0.6 else 3.0
            corners = [near * across - 3 * along, near * across + 3 * along]
            corners += [far * across + 3 * along, far * across - 3 * along]
            self.draw([[radius * np.array(corners) + centre]], whole, shadow=False)

    def draw(
        self,
        shape: Shape,
        parent: int | None,
        *,
        shadow: bool = True,
        relief: bool = True,
        material: _Material | None = None,
    ) -> int:
        """Cover pixels by a new thing, whose number is returned; of a part, those of its whole that are still seen."""
        number = len(self.parents)
        self.parents.append(number if parent is None else parent)
        top, left, coverage = _cover(shape, self.size)
        if not coverage.size:
            return number
        at = slice(top, top + coverage.shape[0]), slice(left, left + coverage.shape[1])
        if parent is not None:
            coverage = coverage * (self.owner[at] == parent)
        if shadow and self.rng.random() < 0.7:
            self.draw_shadow(top, left, coverage)
        colours = (material or self.material()).paint(coverage.shape, self)
        if relief:
            colours *= self.shading(coverage)[..., None]
        self.image[at] += (colours - self.image[at]) * coverage[..., None]
        self.owner[at][coverage >= 0.5] = number
        return number

    def shading(self, coverage: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Of a surface that rises from its outline, as round as the light is high."""
        strength = self.relief * self.rng.uniform(0, 1)
        reach = max(1, int(max(coverage.shape) * self.rng.uniform(0.05, 0.3)))
        height = _smooth(np.pad(coverage, 1), reach)
        slope = [height[1:-1, 2:] - height[1:-1, :-2], height[2:, 1:-1] - height[:-2, 1:-1]]
        lit = (slope[0] * np.float32(self.light[0]) + slope[1] * np.float32(self.light[1])) * reach
        return np.clip(1 - strength * lit, 0.3, 1.6)

    def draw_shadow(self, top: int, left: int, coverage: np.ndarray) -> None:
        """Darken what lies behind, away from the light."""
        length = 0.02 * min(self.size) * self.rng.uniform(0.2, 2.5)
        length = min(length, 0.3 * max(coverage.shape))
        for step in (0.4, 0.7, 1.0):
            y, x = (
                round(value) for value in (top - step * length * self.light[1], left - step * length * self.light[0])
            )
            self.stamp(y, x, coverage, np.zeros(3, np.float32), opacity=0.22)

    def draw_litter(self, thing: int, centre: np.ndarray | None = None, radius: float = 0.0) -> None:
        """Leaves, pebbles, spots: things too many and too small to have masks; they belong to what they lie on."""
        if self.rng.random() < 0.5:
            return
        if centre is None:
            centre, radius = np.array(self.size[::-1]) / 2, max(self.size) / 2
        largest = max(2.0, min(radius * self.rng.uniform(0.02, 0.15), 0.03 * max(self.size)))
        radii, middle, everywhere = largest * self.rng.uniform(0.4, 1, 3), np.full(2, 1.3 * largest), (1 << 16, 1 << 16)
        stamps = [_cover(_placed(_shape(self.rng), size, middle), everywhere)[2] for size in radii]
        colours = [self.material().first for _ in range(3)]
        for _ in range(int(4 * 60 ** self.rng.random())):
            stamp = stamps[self.rng.integers(3)]
            x, y = (centre + self.rng.uniform(-1, 1, 2) * radius).astype(int)
            if self.rng.random() < 0.5:
                stamp = stamp.T
            self.stamp(y, x, stamp, colours[self.rng.integers(3)] * self.rng.uniform(0.7, 1.2), thing=thing)

    def stamp(
        self, y: int, x: int, coverage: np.ndarray, colour: np.ndarray, *, opacity: float = 1, thing: int | None = None
    ) -> None:
        """Tint what is covered, of one thing alone if there is one; parts outside are left out."""
        coverage = coverage[max(-y, 0) : max(self.size[0] - y, 0), max(-x, 0) : max(self.size[1] - x, 0)]
        y, x = max(y, 0), max(x, 0)
        at = slice(y, y + coverage.shape[0]), slice(x, x + coverage.shape[1])
        if thing is not None:
            coverage = coverage * (self.owner[at] == thing)
        self.image[at] += (colour - self.image[at]) * (opacity * coverage)[..., None]

    def blur(self, radius: float) -> None:
        """All that is there: it is out of focus."""
        self.image = _smooth(self.image, max(1, round(radius * min(self.size) / 512)))

    def material(self) -> _Material:
        """Of the scene's colours, or like what is there."""
        first, second = self.palette[self.rng.integers(len(self.palette), size=2)]
        jitter = self.rng.uniform(-0.15, 0.15, (2, 3))
        return _Material(
            np.clip(first + jitter[0], 0, 1).astype(np.float32),
            np.clip(second + jitter[1], 0, 1).astype(np.float32),
            str(self.rng.choice(_PATTERNS)),
            float(self.rng.uniform(0.1, 1.0)),
            float(2.0 ** self.rng.uniform(2, 6.5)),
            self.rng.uniform(0, 2 * math.pi),
            float(self.rng.uniform(0.2, 1.0)) if self.rng.random() < 0.5 else 0.0,
        )

    def develop(self) -> UInt8[np.ndarray, "h w 3"]:
        """Light that falls off, exposure, a cast, blur, and noise."""
        height, width = self.size
        y, x = np.arange(height)[:, None] / height - 0.5, np.arange(width)[None] / width - 0.5
        fall = 1 + self.contrast * (x * self.light[0] + y * self.light[1]) - self.rng.uniform(0, 0.5) * (x * x + y * y)
        image = self.image * fall[..., None].astype(np.float32)
        gain = self.rng.uniform(0.75, 1.15) * self.rng.uniform(0.9, 1.1, 3)
        image = self.rng.uniform(0, 0.12) + image * gain
        if self.rng.random() < 0.15:
            image = image * image  # dark, with deep shadows
        elif self.rng.random() < 0.2:
            image = np.sqrt(np.maximum(image, 0))
        image = image.astype(np.float32)
        for _ in range(self.rng.integers(0, 3)):
            for axis in (0, 1):
                image = (_shift(image, axis, -1) + 2 * image + _shift(image, axis, 1)) / 4
        noise = self.rng.integers(-128, 128, (2, height, width, 3), np.int16)
        if self.rng.random() < 0.5:  # of brightness alone
            noise = noise[..., :1]
        level = self.rng.uniform(0, 0.08) * self.rng.random()
        image = 255 * image + level * (noise[0] + noise[1])
        return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)

    def masks(self) -> list[Bool[np.ndarray, "h w"]]:
        """Of all things of which enough is seen."""
        found = []
        speck = max(SPECK, SPECK_SHARE * self.size[0] * self.size[1])
        lineages = [set(self.lineage(i)) for i in range(len(self.parents))]
        for number in range(len(self.parents)):
            mine = np.array([number in lineage for lineage in lineages])
            mask = mine[self.owner]
            if np.count_nonzero(mask) >= speck:
                found.append(mask)
        return found

    def lineage(self, number: int) -> Iterator[int]:
        """A thing, what it is a part of, and so on."""
        yield number
        while self.parents[number] != number:
            number = self.parents[number]
            yield number


_PATTERNS = (
    "flat",
    "gradient",
    "gradient",
    "stripes",
    "checks",
    "dots",
    "noise",
    "rough",
    "rough",
    "rough",
    "fibres",
    "fibres",
    "blotches",
    "cells",
)


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
    warp: float
    """How far the pattern is bent, as a share of twice its period."""

    def paint(self, shape: tuple[int, int], canvas: _Canvas) -> Float[np.ndarray, "h w 3"]:
        """Colours of a window, which the light falls on from the side."""
        height, width = shape
        y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]
        x = (np.arange(width, dtype=np.float32) + 0.5)[None]
        cos, sin = _turn(self.angle).astype(np.float32)
        u: np.ndarray = x * cos + y * sin
        v: np.ndarray = y * cos - x * sin
        if self.warp and self.pattern not in ("flat", "noise", "rough"):
            bend = 2 * self.warp * self.period
            u, v = (w + bend * _value_noise(canvas.rng, shape, 3 * self.period) for w in (u, v))
        mix = self._mix(u, v, shape, canvas.rng) * self.strength
        colours = self.first + (self.second - self.first) * mix[..., None]
        slope = (x / width - 0.5) * canvas.light[0] + (y / height - 0.5) * canvas.light[1]
        grain = 1 + canvas.rng.uniform(0, 0.25) * (_value_noise(canvas.rng, shape, 2.0) - 0.5)
        return colours * ((1 + 2 * canvas.contrast * slope).astype(np.float32) * grain)[..., None]

    def _mix(self, u: np.ndarray, v: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        period = self.period
        if self.pattern == "gradient":
            return np.clip((u - u.min()) / (u.max() - u.min() + 1), 0, 1)
        if self.pattern == "stripes":
            return np.clip(np.abs(u / period % 1 - 0.5) * 8 - 1.5, 0, 1)
        if self.pattern == "checks":
            return (np.floor(u / period) + np.floor(v / period)) % 2
        if self.pattern == "dots":
            a, b = u / period % 1 - 0.5, v / period % 1 - 0.5
            return (a * a + b * b < 0.1).astype(np.float32)
        if self.pattern == "noise":
            return _value_noise(rng, shape, self.period)
        if self.pattern == "blotches":
            mixed = _value_noise(rng, shape, self.period) + 0.4 * _value_noise(rng, shape, self.period / 3)
            return np.clip((mixed - rng.uniform(0.5, 0.9)) * 8, 0, 1)
        if self.pattern == "fibres":  # hair, grass, wood
            length = rng.uniform(3, 12)
            coarse = _noise_at(rng, 4 * u / period, 4 * v / (period * length))
            return 0.7 * coarse + 0.5 * _noise_at(rng, u / 2, v / (2 * length))
        if self.pattern == "cells":  # stones, scales
            return _cells(rng, u / period, v / period)
        if self.pattern == "rough":
            octaves = [_value_noise(rng, shape, max(self.period * factor, 1.5)) for factor in (4, 1, 0.25)]
            mixed = octaves[0] * 0.5 + octaves[1] * 0.35 + octaves[2] * 0.4
            return np.clip(mixed - 0.1, 0, 1)
        return np.zeros(shape, np.float32)


def _value_noise(rng: np.random.Generator, shape: tuple[int, int], period: float) -> Float[np.ndarray, "h w"]:
    """Random numbers on a grid, and between its points a smooth step from one to the next."""
    grid: np.ndarray = rng.random([int(side / period) + 2 for side in shape], np.float32)
    for axis, side in enumerate(shape):
        low, step = _steps(np.arange(side, dtype=np.float32) / period)
        step = step.reshape((-1, 1) if axis == 0 else (1, -1))
        below, above = np.take(grid, low, axis), np.take(grid, np.minimum(low + 1, grid.shape[axis] - 1), axis)
        grid = below + (above - below) * step
    return grid


_TABLE = 64
"""Side of the table of random numbers that `_noise_at` repeats."""


def _noise_at(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> Float[np.ndarray, "h w"]:
    """The like at any places, one grid point a unit."""
    table = rng.random((_TABLE, _TABLE), np.float32)
    (i, a), (j, b) = _steps(u), _steps(v)
    i, j, below, right = i % _TABLE, j % _TABLE, (i + 1) % _TABLE, (j + 1) % _TABLE
    upper = table[i, j] + (table[i, right] - table[i, j]) * b
    lower = table[below, j] + (table[below, right] - table[below, j]) * b
    return upper + (lower - upper) * a


def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> Float[np.ndarray, "h w"]:
    """A number for each cell about a jittered point of the grid, dark where two meet."""
    table = rng.random((3, _TABLE, _TABLE), np.float32)
    i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    nearest, second, value = np.full(u.shape, 9, np.float32), np.full(u.shape, 9, np.float32), np.zeros_like(u)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            a, b = (i + di) % _TABLE, (j + dj) % _TABLE
            du, dv = i + di + table[0, a, b] - u, j + dj + table[1, a, b] - v
            distance = (du * du + dv * dv).astype(np.float32)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            value = np.where(closer, table[2, a, b], value)
            nearest = np.minimum(nearest, distance)
    return value * np.clip((second - nearest) * 6, 0, 1)


def _steps(position: np.ndarray) -> tuple[np.ndarray, Float[np.ndarray, "*shape"]]:
    """Whole numbers below positions, and smooth steps from there."""
    low = np.floor(position)
    step = position - low
    return low.astype(np.int32), (step * step * (3 - 2 * step)).astype(np.float32)


def _smooth(values: np.ndarray, reach: int) -> Float[np.ndarray, "h w *c"]:
    """Means over squares of 2 `reach` + 1 pixels, twice; what lies outside is as the edge."""
    values = values.astype(np.float32)
    for axis in (0, 1, 0, 1):
        side = values.shape[axis]
        index = np.clip(np.arange(-reach - 1, side + reach), 0, side - 1)
        total = np.cumsum(np.take(values, index, axis), axis, dtype=np.float64)
        ends = np.arange(2 * reach + 1, side + 2 * reach + 1)
        values = ((np.take(total, ends, axis) - np.take(total, ends - 2 * reach - 1, axis)) / (2 * reach + 1)).astype(
            np.float32
        )
    return values


def _placed(shape: Shape, radius: float, centre: np.ndarray) -> Shape:
    return [[radius * contour + centre for contour in piece] for piece in shape]


def _shape(rng: np.random.Generator) -> Shape:
    """A random one; some have holes."""
    kinds = _OUTLINES | _COMPOSED
    kind = str(rng.choice(list(kinds), p=[w / sum(kinds.values()) for w in kinds.values()]))
    shape = [_outline(kind, rng)] if kind in _OUTLINES else _compose(kind, rng)
    squash = rng.uniform(0.08, 0.25) if kind in _OUTLINES and rng.random() < 0.05 else rng.uniform(0.5, 1)
    cos, sin = _turn(rng.uniform(0, 2 * math.pi))
    turned = lambda p: np.stack([p[:, 0] * cos - p[:, 1] * squash * sin, p[:, 0] * sin + p[:, 1] * squash * cos], -1)
    return [[turned(contour) for contour in piece] for piece in shape]


_OUTLINES = {"round": 3, "box": 4, "polygon": 3, "star": 1, "blob": 5, "ring": 1, "crescent": 1, "tee": 1, "vessel": 4}
"""Kinds of outlines and how often each occurs."""

_COMPOSED = {"animal": 5, "branch": 0.7, "flower": 1, "lattice": 0.3, "pair": 3}
"""Likewise, shapes of several pieces."""


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
        low, step = _steps((y + 0.95) / 1.9 * (knots - 1))
        widths = np.append(rng.uniform(0.08, 0.75, knots), 0)
        half = widths[low] + (widths[low + 1] - widths[low]) * step
        return [np.concatenate([np.stack([half, y], -1), np.stack([-half, y], -1)[::-1]])]
    return [circle]


def _compose(kind: str, rng: np.random.Generator) -> Shape:
    circle = _circle(np.arange(64) * (2 * math.pi / 64))
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
                joints.append(joints[-1] + 0.28 * _turn(turn))
            pieces.append(_limb(joints, list(wide * np.linspace(1, rng.uniform(0.3, 1), len(joints)))))
        return pieces
    if kind == "flower":  # and leaves of one stalk, wheels with spokes
        count, inner, wide = int(rng.integers(3, 10)), rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4)
        arms = [_turn(i * 2 * math.pi / count) for i in range(count)]
        return [[inner * circle], *(_limb([0.2 * arm, 0.8 * arm], [wide * 0.5, wide * 0.7]) for arm in arms)]
    if kind == "lattice":  # fences, windows, ladders
        columns, rows, wide = int(rng.integers(2, 7)), int(rng.integers(2, 5)), rng.uniform(0.03, 0.1)
        bars = [_limb([(x, -0.8), (x, 0.8)], [wide, wide]) for x in np.linspace(-0.8, 0.8, columns)]
        return bars + [_limb([(-0.8, y), (0.8, y)], [wide, wide]) for y in np.linspace(-0.8, 0.8, rows)]
    kinds = list(_OUTLINES)  # a pair: two outlines that are one thing
    first, second = (_outline(kinds[rng.integers(len(kinds))], rng) for _ in range(2))
    place = _turn(rng.uniform(0, 2 * math.pi)) * 0.45
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
    half = _circle(np.arange(1, 8) * (math.pi / 8))  # from a side round to the other
    forward, sideways = half[:, 1:], half[:, :1]
    cap = lambda at, ahead, aside, r: path[at] + r * (forward * ahead + sideways * aside)
    side = np.stack([-steps[:, 1], steps[:, 0]], -1)
    end, start = cap(-1, steps[-1], side[-1], radii[-1]), cap(0, -steps[0], -side[0], radii[0])
    return [np.concatenate([path + normals, end, (path - normals)[::-1], start])]


def _cover(shape: Shape, size: tuple[int, int]) -> tuple[int, int, Float[np.ndarray, "h w"]]:
    """Top, left and the coverage of each pixel of the part of the picture where some piece may be."""
    found = [piece for piece in (_rasterize(contours, size) for contours in shape) if piece[2].size]
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


def _rasterize(contours: Contours, size: tuple[int, int]) -> tuple[int, int, Float[np.ndarray, "h w"]]:
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


def _shift(image: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Neighbouring pixels; at the edge, the pixel itself."""
    return np.take(image, np.clip(np.arange(image.shape[axis]) + step, 0, image.shape[axis] - 1), axis)


def _circle(angles: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """Points of the unit circle; rounded, because machines differ in the last digits of sines."""
    return np.round(np.stack([np.cos(angles), np.sin(angles)], -1), 9)


def _turn(angle: float) -> Float[np.ndarray, "2"]:
    return _circle(np.array([angle]))[0]
