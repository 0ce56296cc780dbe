"""Synthetic scenes with exact masks: material that may be passed on, and knows no photo.

A scene is a function of its seed and number, the same on every machine: NumPy's integers, elementwise arithmetic, sums
along an axis one after the other, and square roots, which round alike everywhere; no text, no libraries of graphics,
and no sums or products of matrices over pixels whose order differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ...inference.masks import box_of
from . import materials, shapes, textures

SPECK = 12
"""Visible pixels that a thing needs for a mask, at least."""

FILLED = 0.25
"""Share of its box that a thing needs to fill for a mask: slivers behind other things would be many, and of the masks
that people draw of photos (BSDS500) fewer than 5% fill less."""


View = Literal["usual", "close_up", "far", "outdoors", "strips"]


@dataclasses.dataclass(frozen=True)
class _View:
    most: int
    """Things in front of the background, at most; their parts and rows of them not counted."""
    smallest: float
    """Radius of a thing, as a share of the shorter side."""
    speck: float
    """Visible share of the picture that a thing needs for a mask: of 512 x 512 pixels 0.003 are 28 x 28."""
    outdoors: bool = False
    """Colours and surfaces as of landscapes, plants and animals, in sun and shade, in place of any."""
    strips: bool = False
    """Layers of ground, each in front of the one above it, and things that are long along a side of the picture."""


_VIEWS: dict[View, _View] = {
    "usual": _View(16, 0.07, 0.003),
    "close_up": _View(6, 0.12, 0.003),
    "far": _View(48, 0.02, 0.0005),
    "outdoors": _View(26, 0.025, 0.0006, outdoors=True),
    "strips": _View(26, 0.04, 0.0006, outdoors=True, strips=True),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and the masks of everything in it."""

    image: UInt8[np.ndarray, "h w 3"]
    masks: list[Bool[np.ndarray, "h w"]]
    """Visible parts of backgrounds, wholes and their parts; a whole includes its parts. Specks and slivers are left
    out."""


def render(seed: int, number: int, size: tuple[int, int], *, view: View = "usual") -> Scene:
    """Draw a scene.

    Args:
      seed: of the series.
      number: of the scene in it.
      size: (height, width) in pixels, 32 or more each.
      view: `close_up` has few and large things, of which models at low resolution can see shape and colour; `far` has
        more and smaller ones, and masks of smaller ones too; `outdoors` has them of all sizes, with surfaces like
        rock, leaves, fur and water, of few colours, in sun and shade; `strips` is the same with layers of ground and
        long things, as poles, trunks, boards and shores are.
    """
    canvas = _Canvas(np.random.Generator(np.random.PCG64([seed, number])), size, _VIEWS[view])
    canvas.draw_background()
    canvas.draw_objects()
    return Scene(canvas.develop(), canvas.masks())


class _Canvas:
    """The picture so far, in [0, 1], and which thing each pixel belongs to."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], view: _View) -> None:
        if min(size) < 32:
            raise ValueError(f"a scene has 32 pixels or more a side, got {size}")
        self.rng, self.size, self.view = rng, size, view
        self.image = np.zeros((*size, 3), np.float32)
        self.owner = np.zeros(size, np.int32)
        self.parents: list[int] = []  # of each thing, itself for a whole
        colours, brightness = rng.random((2, int(rng.integers(3, 10)), 3))
        vivid = rng.uniform(0.05, 0.9) * rng.uniform(0.4, 1, (len(colours), 1))
        self.palette = brightness[:, :1] + vivid * (colours - brightness[:, :1])
        if view.outdoors:
            chosen = rng.integers(len(materials.HUES), size=len(colours))
            hues = materials.HUES[chosen] + rng.uniform(-0.1, 0.1, colours.shape)
            self.palette = (0.08 + 0.87 * brightness[:, :1]) * (1 + rng.uniform(0.15, 0.9) * hues)
        self.light = shapes.direction(rng.uniform(0, 2 * math.pi))
        self.contrast = rng.uniform(0.1, 0.5)
        self.relief = rng.uniform(0, 1.2)
        self.stretch: tuple[np.ndarray, np.ndarray] | None = None  # factors of x and y, and the point that stays

    def draw_background(self) -> None:
        """One surface, or some one in front of the other, such as sky, hills and a meadow, with litter on them."""
        height, width = self.size
        whole = [np.array([(-1, -1), (width + 1, -1), (width + 1, height + 1), (-1, height + 1)], float)]
        self.draw([whole], parent=None, shadow=False, relief=False)
        self.draw_litter(0)
        layers = self.rng.choice([1, 2, 3, 4, 5, 6] if self.view.strips else [0, 0, 1, 1, 2, 3])
        for i in range(layers):
            y = self.rng.uniform(0.2, 0.8) * height
            slope = self.rng.uniform(-0.3, 0.3) * height * (self.rng.random() < 0.5)
            wave = self.rng.uniform(0, 0.04) * height * (self.rng.random() < 0.5)
            hill = self.rng.uniform(-0.2, 0.2) * height * (self.rng.random() < 0.4)
            x = np.linspace(-1, width + 1, 129)
            bow = (2 * x / width - 1) * (2 * x / width - 1)
            rough = [textures.value_noise(self.rng, (129, 1), period)[:, 0] - 0.5 for period in (40, 10, 2.5)]
            rise = slope * (x / width - 0.5) + hill * bow + wave * (4 * rough[0] + 1.5 * rough[1] + rough[2])
            if self.view.strips:
                y, rise = (0.1 + 0.8 * (i + y / height) / layers) * height, 0.3 * rise
            ridge = y + rise
            lower = np.array([(width + 1, height + 1), (-1, height + 1)], float)
            ground = [np.concatenate([np.stack([x, ridge], -1), lower])]
            self.draw_litter(self.draw([ground], parent=None, shadow=self.rng.random() < 0.3, relief=False))
        for _ in range(self.rng.choice([0, 0, 1, 3, 6])):  # rocks, bushes, patches
            centre = self.rng.random(2) * self.size[::-1]
            blob = [shapes.outline("blob", self.rng)]
            clump = shapes.placed(blob, self.rng.uniform(0.1, 0.5) * max(self.size), centre)
            self.draw_litter(self.draw(clump, parent=None, shadow=self.rng.random() < 0.3))
        if self.rng.random() < 0.4:
            self.blur(self.rng.uniform(0.5, 6))

    def draw_objects(self) -> None:
        """Things of all sizes, the large ones mostly first; each covers what is there."""
        shorter = min(self.size)
        count = int(2 * (self.view.most / 2) ** self.rng.random())
        largest, smallest = self.rng.uniform(0.25, 0.7), max(4 / shorter, self.view.smallest)
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
        step = shapes.direction(self.rng.uniform(0, 2 * math.pi)) * radius * self.rng.uniform(1.8, 3.5)
        shape, material = shapes.random_shape(self.rng), self.material()
        for i in range(self.rng.integers(3, 9)):
            jitter = self.rng.uniform(-0.15, 0.15, 2) * radius
            self.draw(shapes.placed(shape, radius, centre + i * step + jitter), None, material=material)

    def draw_thing(self, centre: np.ndarray, radius: float) -> None:
        """A whole, sometimes with markings, sometimes with parts, which sometimes have parts."""
        if self.view.strips and self.rng.random() < 0.75:
            long = 2.0 ** self.rng.uniform(0.5, 1.8)
            factors = np.array([long, 1 / long] if self.rng.random() < 0.6 else [1 / long, long])
            self.stretch = factors, centre
        thing = self.draw(shapes.placed(shapes.random_shape(self.rng), radius, centre), None)
        if self.rng.random() < 0.3:
            self.draw_litter(thing, centre, radius)
        if radius > 10 and self.rng.random() < 0.6:
            self.draw_parts(thing, centre, radius)
        self.stretch = None

    def draw_parts(self, whole: int, centre: np.ndarray, radius: float, depth: int = 1) -> None:
        """Concentric, scattered or in a band across; clipped to the whole."""
        kind = self.rng.integers(3)
        if kind == 0:
            inner = radius * self.rng.uniform(0.3, 0.65)
            part = self.draw(shapes.placed(shapes.random_shape(self.rng), inner, centre), whole, shadow=False)
            if depth < 2 and inner > 10 and self.rng.random() < 0.6:
                self.draw_parts(part, centre, inner, depth + 1)
        elif kind == 1:
            shape, alike = shapes.random_shape(self.rng), self.rng.random() < 0.5
            material = self.material()
            for _ in range(self.rng.integers(2, 7)):
                at = centre + self.rng.uniform(-0.6, 0.6, 2) * radius
                placed = shapes.placed(
                    shape if alike else shapes.random_shape(self.rng), radius * self.rng.uniform(0.15, 0.35), at
                )
                self.draw(placed, whole, shadow=False, material=material if alike else None)
        else:
            along = shapes.direction(self.rng.uniform(0, 2 * math.pi))
            across = np.array([-along[1], along[0]])
            near = self.rng.uniform(-0.5, 0.3)
            far = near + self.rng.uniform(0.15, 0.5) if self.rng.random() < 0.6 else 3.0
            corners = [near * across - 3 * along, near * across + 3 * along]
            corners += [far * across + 3 * along, far * across - 3 * along]
            self.draw([[radius * np.array(corners) + centre]], whole, shadow=False)

    def draw(
        self,
        shape: shapes.Shape,
        parent: int | None,
        *,
        shadow: bool = True,
        relief: bool = True,
        material: materials.Material | None = None,
    ) -> int:
        """Cover pixels by a new thing, whose number is returned; of a part, those of its whole that are still seen."""
        number = len(self.parents)
        self.parents.append(number if parent is None else parent)
        if self.stretch is not None:
            factors, fixed = self.stretch
            shape = [[fixed + factors * (contour - fixed) for contour in piece] for piece in shape]
        top, left, coverage = shapes.cover(shape, self.size)
        if not coverage.size:
            return number
        at = slice(top, top + coverage.shape[0]), slice(left, left + coverage.shape[1])
        if parent is not None:
            coverage = coverage * (self.owner[at] == parent)
        if shadow and self.rng.random() < 0.7:
            self.draw_shadow(top, left, coverage)
        colours = (material or self.material()).paint(coverage.shape, self.rng, self.light, self.contrast)
        if relief:
            colours *= self.shading(coverage)[..., None]
        self.image[at] += (colours - self.image[at]) * coverage[..., None]
        self.owner[at][coverage >= 0.5] = number
        return number

    def shading(self, coverage: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Shading of a surface that rises from its outline, as round as the light is high."""
        strength = self.relief * self.rng.uniform(0, 1)
        reach = max(1, int(max(coverage.shape) * self.rng.uniform(0.05, 0.3)))
        height = textures.smooth(np.pad(coverage, 1), reach)
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
        stamps = [
            shapes.cover(shapes.placed(shapes.random_shape(self.rng), size, middle), everywhere)[2] for size in radii
        ]
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
        self.image = textures.smooth(self.image, max(1, round(radius * min(self.size) / 512)))

    def material(self) -> materials.Material:
        """A colour of the scene, or one like what is there."""
        first, second = self.palette[self.rng.integers(len(self.palette), size=2)]
        jitter = self.rng.uniform(-0.15, 0.15, (2, 3))
        patterns = materials.PATTERNS
        if self.view.outdoors:
            patterns, jitter = materials.SURFACES, jitter / 4
            if self.rng.random() < 0.7:
                second = first * self.rng.uniform(0.15, 0.7)
        return materials.Material(
            np.clip(first + jitter[0], 0, 1).astype(np.float32),
            np.clip(second + jitter[1], 0, 1).astype(np.float32),
            str(self.rng.choice(patterns)),
            float(self.rng.uniform(0.1, 1.0)),
            float(2.0 ** self.rng.uniform(2, 6.5)),
            self.rng.uniform(0, 2 * math.pi),
            float(self.rng.uniform(0.2, 1.0)) if self.rng.random() < 0.5 else 0.0,
        )

    def develop(self) -> UInt8[np.ndarray, "h w 3"]:
        """Light that falls off, exposure, a cast, blur, and noise."""
        height, width = self.size
        if self.view.outdoors and self.rng.random() < 0.4:  # shade of trees and clouds
            period = np.float32(2.0 ** self.rng.uniform(3.5, 7.5))
            across, down = (np.arange(side, dtype=np.float32) / period for side in (width, height))
            shade = textures.fractal(self.rng, across[None], down[:, None], 3)
            shade = np.clip((shade - self.rng.uniform(0.4, 0.6)) * self.rng.uniform(2, 20), 0, 1)
            self.image *= 1 - np.float32(self.rng.uniform(0.2, 0.65)) * shade[..., None]
        y, x = np.arange(height)[:, None] / height - 0.5, np.arange(width)[None] / width - 0.5
        fall = 1 + self.contrast * (x * self.light[0] + y * self.light[1]) - self.rng.uniform(0, 0.5) * (x * x + y * y)
        image = self.image * fall[..., None].astype(np.float32)
        gain = self.rng.uniform(0.75, 1.15) * self.rng.uniform(0.9, 1.1, 3)
        image = self.rng.uniform(0, 0.04 if self.view.outdoors else 0.12) + image * gain
        if self.view.outdoors and self.rng.random() < 0.5:
            image = np.clip(image, 0, 1)
            image = image * image * (3 - 2 * image)
        if self.rng.random() < 0.15:
            image = image * image  # dark, with deep shadows
        elif self.rng.random() < 0.2:
            image = np.sqrt(np.maximum(image, 0))
        image = image.astype(np.float32)
        for _ in range(self.rng.integers(0, 2 if self.view.outdoors else 3)):
            for axis in (0, 1):
                image = (textures.shift(image, axis, -1) + 2 * image + textures.shift(image, axis, 1)) / 4
        noise = self.rng.integers(-128, 128, (2, height, width, 3), np.int16)
        if self.rng.random() < 0.5:  # of brightness alone
            noise = noise[..., :1]
        level = self.rng.uniform(0, 0.08) * self.rng.random()
        image = 255 * image + level * (noise[0] + noise[1])
        return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)

    def masks(self) -> list[Bool[np.ndarray, "h w"]]:
        """Masks of all things of which enough is seen."""
        found = []
        speck = max(SPECK, self.view.speck * self.size[0] * self.size[1])
        lineages = [set(self.lineage(i)) for i in range(len(self.parents))]
        for number in range(len(self.parents)):
            mine = np.array([number in lineage for lineage in lineages])
            mask = mine[self.owner]
            area = np.count_nonzero(mask)
            if area >= speck and area >= FILLED * _box_area(mask):
                found.append(mask)
        return found

    def lineage(self, number: int) -> Iterator[int]:
        """A thing, what it is a part of, and so on."""
        yield number
        while self.parents[number] != number:
            number = self.parents[number]
            yield number


def _box_area(mask: Bool[np.ndarray, "h w"]) -> int:
    box = box_of(mask)
    assert box is not None
    x0, y0, x1, y1 = box
    return (x1 - x0 + 1) * (y1 - y0 + 1)
