"""Random materials of the synthetic scenes: two colours, a pattern, and what light makes of it."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from . import shapes, textures

PATTERNS: tuple[str, ...] = (
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
"""How surfaces change, each as often as it occurs here."""


HUES = np.array(
    [
        (-0.3, 0.2, -0.55),
        (-0.1, 0.2, -0.6),
        (0.3, 0.1, -0.5),
        (0.4, -0.05, -0.45),
        (-0.4, 0, 0.4),
        (0, 0, 0),
        (0.6, -0.4, -0.4),
    ]
)
"""Leaves, meadows, straw, earth, sky and water, stone, blossoms: what light of a colour has more or less than grey."""

_NATURAL = ("rock", "leaves", "fur", "water")

SURFACES: tuple[str, ...] = 4 * _NATURAL + ("rock", "rock", "flat", "gradient", "stripes", "noise")
"""Likewise, outdoors."""


@dataclasses.dataclass(frozen=True)
class Material:
    """Two colours, and how a surface changes from one to the other."""

    first: Float[np.ndarray, "3"]
    second: Float[np.ndarray, "3"]
    pattern: str
    strength: float
    """From 0, the first colour alone, to 1."""
    period: float
    """Size of the pattern, in pixels."""
    angle: float
    warp: float
    """How far the pattern is bent, as a share of twice its period."""

    def paint(
        self, shape: tuple[int, int], rng: np.random.Generator, light: np.ndarray, contrast: float
    ) -> Float[np.ndarray, "h w 3"]:
        """Colours of a window, which the light falls on from the side."""
        height, width = shape
        y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]
        x = (np.arange(width, dtype=np.float32) + 0.5)[None]
        cos, sin = shapes.direction(self.angle).astype(np.float32)
        u: np.ndarray = x * cos + y * sin
        v: np.ndarray = y * cos - x * sin
        if self.warp and self.pattern not in ("flat", "noise", "rough", "rock"):
            bend = 2 * self.warp * self.period
            u, v = (w + bend * textures.value_noise(rng, shape, 3 * self.period) for w in (u, v))
        if self.pattern in _NATURAL:
            colours = self._natural(u, v, shape, rng, light)
        else:
            mix = self._mix(u, v, shape, rng) * self.strength
            colours = self.first + (self.second - self.first) * mix[..., None]
        slope = (x / width - 0.5) * light[0] + (y / height - 0.5) * light[1]
        grain = 1 + rng.uniform(0, 0.25) * (textures.value_noise(rng, shape, 2.0) - 0.5)
        return colours * ((1 + 2 * contrast * slope).astype(np.float32) * grain)[..., None]

    def _natural(
        self, u: np.ndarray, v: np.ndarray, shape: tuple[int, int], rng: np.random.Generator, light: np.ndarray
    ) -> np.ndarray:
        """Detail of all sizes, which has height, and so light and shade; with patches of the other colour."""
        period = self.period
        if self.pattern == "leaves":
            scale = period / 2
            height = 0.6 * textures.cells(rng, u / scale, v / scale)
            height = height + 0.5 * textures.fractal(rng, u / (2 * period), v / (2 * period), 4)
        else:
            stretch = {"rock": 1.0, "fur": rng.uniform(4, 12), "water": rng.uniform(2, 6)}[self.pattern]
            height = textures.fractal(rng, 2 * u / period, 2 * v / (period * stretch), 6 if stretch == 1 else 4)
            if self.pattern == "rock" and rng.random() < 0.4:
                height = 1 - 2 * np.abs(height - 0.5)
        broad = textures.value_noise(rng, shape, max(4.0, max(shape) * rng.uniform(0.15, 0.6)))
        if rng.random() < 0.5:  # patches
            mix = 0.7 * broad + 0.5 * height - rng.uniform(0.3, 0.8)
            mix = np.clip(mix * rng.uniform(3, 15), 0, 1)
        else:
            mix = np.clip((height - 0.5) * rng.uniform(1, 5) + 0.5, 0, 1)
        colours = self.first + (self.second - self.first) * (self.strength * mix)[..., None]
        lit = 1 + rng.uniform(0.2, 2) * (height - 0.5) + rng.uniform(0, 0.9) * (broad - 0.5)
        strength = rng.uniform(0, 6) * rng.random()
        for axis in (0, 1):
            slope = textures.shift(height, axis, 1) - textures.shift(height, axis, -1)
            lit = lit - strength * np.float32(light[1 - axis]) * slope
        return colours * np.clip(lit, 0.15, 1.9)[..., None].astype(np.float32)

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
            return textures.value_noise(rng, shape, self.period)
        if self.pattern == "blotches":
            mixed = textures.value_noise(rng, shape, self.period) + 0.4 * textures.value_noise(
                rng, shape, self.period / 3
            )
            return np.clip((mixed - rng.uniform(0.5, 0.9)) * 8, 0, 1)
        if self.pattern == "fibres":  # hair, grass, wood
            length = rng.uniform(3, 12)
            coarse = textures.noise_at(rng, 4 * u / period, 4 * v / (period * length))
            return 0.7 * coarse + 0.5 * textures.noise_at(rng, u / 2, v / (2 * length))
        if self.pattern == "cells":  # stones, scales
            return textures.cells(rng, u / period, v / period)
        if self.pattern == "rough":
            octaves = [textures.value_noise(rng, shape, max(self.period * factor, 1.5)) for factor in (4, 1, 0.25)]
            mixed = octaves[0] * 0.5 + octaves[1] * 0.35 + octaves[2] * 0.4
            return np.clip(mixed - 0.1, 0, 1)
        return np.zeros(shape, np.float32)
