"""Masks and prompts drawn over a photo, to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from . import colours
from .masks import box_of

_FOREGROUND, _BACKGROUND, _BOX = (60, 220, 90), (235, 60, 60), (255, 210, 0)
_FINER = 4
"""Points are drawn so many times larger, and made smaller again."""


def draw_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    point_coords: Sequence[Sequence[float]] = (),
    point_labels: Sequence[int] = (),
    box: Sequence[float] | None = None,
    caption: str = "",
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with the mask tinted blue and outlined, points (green foreground, red background) and box (yellow).

    Args:
      image: RGB.
      mask: of the same size.
      point_coords: (x, y) in pixels.
      point_labels: 1 or 0 for each point.
      box: XYXY in pixels.
      caption: written into a bar that is put on top, if not empty; the picture is higher by `caption_height`.
      opacity: of the tint, from 0 to 1.

    Raises:
      ValueError: mask and image differ in size, or the mask is not of booleans.
    """
    _check_mask(mask, image, "the mask")
    canvas = image.astype(np.float32)
    width = max(1.5, max(image.shape[:2]) / 400)
    _blend(canvas, mask, np.array(colours.FIRST), opacity, width, np.full(3, 255))
    drawing = Image.fromarray(canvas.round().astype(np.uint8))
    if box is not None:
        outline = [float(v) for v in box]
        ImageDraw.Draw(drawing).rectangle(outline, outline=_BOX, width=2 * round(width))
    for (x, y), label in zip(point_coords, point_labels, strict=True):
        _draw_point(drawing, x, y, 3 * width + 2, _FOREGROUND if label else _BACKGROUND)
    return _captioned(drawing, caption) if caption else np.array(drawing)


def caption_height(width: int) -> int:
    """Pixels of the bar over a picture of this width."""
    return round(1.6 * max(11, width // 45))


def _captioned(drawing: Image.Image, caption: str) -> UInt8[np.ndarray, "h w 3"]:
    size = max(11, drawing.width // 45)
    bar = Image.new("RGB", (drawing.width, caption_height(drawing.width)))
    ImageDraw.Draw(bar).text((size * 0.4, size * 0.2), caption, fill=(255, 255, 255), font_size=size)
    return np.concatenate([np.array(bar), np.array(drawing)])


def _draw_point(drawing: Image.Image, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    """A disc with a white rim, smooth at its edge."""
    side = 2 * int(radius + 2) + 1
    left, top = int(x) - side // 2, int(y) - side // 2
    patch = drawing.crop((left, top, left + side, top + side))
    large = patch.resize((side * _FINER, side * _FINER), Image.Resampling.NEAREST)
    centre, reach = np.array([x - left + 0.5, y - top + 0.5]) * _FINER, radius * _FINER
    corners = [*(centre - reach), *(centre + reach)]
    rim = max(1, round(radius / 4)) * _FINER
    ImageDraw.Draw(large).ellipse(corners, fill=colour, outline=(255, 255, 255), width=rim)
    drawing.paste(large.resize((side, side), Image.Resampling.BOX), (left, top))


def draw_masks(
    image: UInt8[np.ndarray, "h w 3"], masks: Iterable[Bool[np.ndarray, "h w"]], opacity: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with each mask tinted in a colour of its own and outlined; later masks lie over earlier ones.

    Colours are those of `colours.palette`.

    Raises:
      ValueError: a mask and the image differ in size, or a mask is not of booleans.
    """
    canvas, shown = image.astype(np.float32), colours.palette(colours.MOST).astype(np.float32)
    width = max(1.5, max(image.shape[:2]) / 800)
    for i, mask in enumerate(masks):
        _check_mask(mask, image, f"mask {i}")
        colour = shown[i % colours.MOST]
        _blend(canvas, mask, colour, opacity, width, colour, image)
    return canvas.round().astype(np.uint8)


def _blend(
    canvas: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    tint: Float[np.ndarray, "3"],
    opacity: float,
    width: float,
    line: Float[np.ndarray, "3"],
    under: UInt8[np.ndarray, "h w 3"] | None = None,
) -> None:
    """Tint the mask and draw its outline, both smooth at their edges.

    Args:
      canvas: what is drawn on.
      mask: of the same size.
      tint: colour inside.
      opacity: its share there.
      width: of the outline, in pixels, about half of it on either side of the mask's edge.
      line: colour of the outline.
      under: what the tint lies over, if not the canvas.
    """
    box = box_of(mask)
    if box is None:
        return
    margin = int(width) + 3
    part = slice(max(box[1] - margin, 0), box[3] + margin + 1), slice(max(box[0] - margin, 0), box[2] + margin + 1)
    inside = _signed_distance(mask[part])
    share = np.clip(inside + 0.5, 0, 1)[..., None]
    base = canvas[part] if under is None else under[part]
    tinted = (1 - opacity) * base + opacity * tint
    canvas[part] += share * (tinted - canvas[part])
    edge = np.clip(width / 2 + 0.5 - np.abs(inside), 0, 1)[..., None]
    canvas[part] += edge * (line - canvas[part])


def _signed_distance(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Pixels to the mask's edge, positive inside; stairs are smoothed, and the photo's edge is none."""
    from scipy import ndimage  # importing it takes as long as all of the library

    if mask.all():
        return np.full(mask.shape, np.inf)
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    distance -= np.copysign(0.5, distance)
    return np.clip(ndimage.gaussian_filter(distance, 0.7, mode="nearest"), -1e6, 1e6)


def _check_mask(mask: np.ndarray, image: np.ndarray, name: str) -> None:
    if mask.shape != image.shape[:2]:
        raise ValueError(f"{name} has shape {mask.shape}, the image {image.shape[:2]}")
    if mask.dtype != bool:  # numbers would choose rows
        raise ValueError(f"{name} has dtype {mask.dtype}; give booleans, such as mask.astype(bool)")
