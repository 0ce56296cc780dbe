"""What visitors see of their session: the picture, and words about it."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..inference import rle
from ..inference.overlay import draw_masks, draw_overlay
from ..terminal import counted
from .session import Photo, Session


def picture(session: Session, opacity: float) -> UInt8[np.ndarray, "h w 3"] | None:
    """The photo, scaled to `session.SHOWN` pixels, with masks and prompts; None without a photo.

    Args:
      session: of the visitor.
      opacity: of masks, from 0 to 1.
    """
    photo, now = session.photo, session.now
    if photo is None:
        return None
    if session.records is not None:
        masks = (_scaled(record["segmentation"], photo) for record in session.records)
        return draw_masks(photo.shown, masks, opacity)
    size = photo.shown.shape[:2]
    scale = np.array([size[1] / photo.size[1], size[0] / photo.size[0]])
    box = None if now.box is None else (np.array(now.box) * np.tile(scale, 2)).tolist()
    points = (np.array(now.points).reshape(-1, 2) * scale).tolist()
    return draw_overlay(photo.shown, session.mask(size), points, now.labels, box, opacity=opacity)


def _scaled(segmentation: dict, photo: Photo) -> np.ndarray:
    mask = rle.counts_to_mask(rle.read_segmentation(segmentation, photo.size), photo.size)
    if mask.shape == photo.shown.shape[:2]:
        return mask
    height, width = photo.shown.shape[:2]
    return np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)) > 127


def candidates(session: Session) -> list[str]:
    """What the masks to choose from are called; empty if none are shown."""
    if session.records is not None or session.now.answer is None:
        return []
    return [f"{number}: {iou:.2f}" for number, iou in enumerate(session.now.answer.predicted_iou, start=1)]


def words(session: Session) -> str:
    """Size, times and scores in a line of Markdown."""
    photo, now = session.photo, session.now
    if photo is None:
        return "No photo yet: upload one, or take an example."
    height, width = photo.size
    parts = [f"**{_plain(photo.name)}**, {width} x {height} pixels", f"encoded once, in {_shown(photo.seconds)}"]
    if session.records is not None:
        found = f"{counted(len(session.records), 'mask')} of everything, in {_shown(session.seconds_of_everything)}"
        return "; ".join([*parts, found])
    if now.answer is None:
        only_background = "these points say what is not meant; add one of what is, or a box"
        return "; ".join([*parts, only_background if now.points else "click on an object, or drag a box around it"])
    iou = now.answer.predicted_iou[now.chosen]
    parts += [f"mask decoded in {_shown(now.answer.seconds)}", f"predicted IoU {iou:.2f}"]
    return "; ".join(parts + [f"refined {counted(now.refined, 'time')}"] * bool(now.refined))


def _plain(name: str) -> str:
    """A name of a file, without what Markdown and HTML would read."""
    return "".join(c if c.isalnum() or c in " .-" else "_" for c in name)[:80]


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
