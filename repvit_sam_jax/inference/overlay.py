"""Masks and prompts drawn over a photo, to look at."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

_TINT = np.array([30, 144, 255])
_FOREGROUND, _BACKGROUND, _BOX = (60, 220, 90), (235, 60, 60), (255, 210, 0)


def draw_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    point_coords: Sequence[Sequence[float]] = (),
    point_labels: Sequence[int] = (),
    box: Sequence[float] | None = None,
    caption: str = "",
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with the mask tinted blue and outlined, points (green foreground, red background) and box (yellow).

    Args:
      image: RGB.
      mask: of the same size.
      point_coords: (x, y) in pixels.
      point_labels: 1 or 0 for each point.
      box: XYXY in pixels.
      caption: written into a bar at the top, if not empty.

    Raises:
      ValueError: mask and image differ in size, or the mask is not of booleans.
    """
    _check_mask(mask, image, "the mask")
    canvas = image.astype(np.float32)
    canvas[mask] = 0.5 * canvas[mask] + 0.5 * _TINT
    width = max(1, round(max(image.shape[:2]) / 400))
    canvas[_outline(mask, width)] = 255
    drawing = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawing)
    if box is not None:
        pen.rectangle([float(v) for v in box], outline=_BOX, width=2 * width)
    radius = 3 * width + 2
    for (x, y), label in zip(point_coords, point_labels, strict=True):
        corners = [x - radius, y - radius, x + radius, y + radius]
        pen.ellipse(corners, fill=_FOREGROUND if label else _BACKGROUND, outline=(255, 255, 255), width=width)
    if caption:
        size = max(11, image.shape[1] // 45)
        pen.rectangle([0, 0, image.shape[1], size * 1.6], fill=(0, 0, 0))
        pen.text((size * 0.4, size * 0.2), caption, fill=(255, 255, 255), font_size=size)
    return np.array(drawing)


def draw_masks(
    image: UInt8[np.ndarray, "h w 3"], masks: Iterable[Bool[np.ndarray, "h w"]]
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with each mask tinted in a colour of its own and outlined; later masks lie over earlier ones.

    Raises:
      ValueError: a mask and the image differ in size, or a mask is not of booleans.
    """
    canvas = image.astype(np.float32)
    width = max(1, round(max(image.shape[:2]) / 800))
    for i, mask in enumerate(masks):
        _check_mask(mask, image, f"mask {i}")
        # Steps of the golden ratio round the colour wheel keep neighbouring numbers apart.
        colour = 255 * np.array(colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.8, 1))
        canvas[mask] = 0.5 * image[mask] + 0.5 * colour
        canvas[_outline(mask, width)] = colour
    return canvas.round().astype(np.uint8)


def _check_mask(mask: np.ndarray, image: np.ndarray, name: str) -> None:
    if mask.shape != image.shape[:2]:
        raise ValueError(f"{name} has shape {mask.shape}, the image {image.shape[:2]}")
    if mask.dtype != bool:  # numbers would choose rows
        raise ValueError(f"{name} has dtype {mask.dtype}; give booleans, such as mask.astype(bool)")


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of the mask within `width` of its border, the photo's edge not counting as one."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
