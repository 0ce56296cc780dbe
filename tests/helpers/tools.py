"""What annotation tools do around a pair of ONNX files, written from their documented behaviour.

AnyLabeling 0.4, X-AnyLabeling 4.2 (`SegmentAnythingONNX`) and CVAT's plugin `sam`; docs/annotation-tools.md says what.
"""

from collections.abc import Callable

import numpy as np

CANVAS = (684, 1024)
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Inputs of a file by name to its outputs by name."""


def warp(array: np.ndarray, scale: float, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's warpAffine by a scale, bilinear: pixel (y, x) is taken at (y, x) / scale, and zero is outside."""
    bordered = np.pad(array.astype(np.float64), [(0, 1), (0, 1)] + [(0, 0)] * (array.ndim - 2))
    for axis in (0, 1):
        bordered = np.moveaxis(bordered, axis, 0)
        position = np.arange(size[axis]) / scale
        low = np.minimum(np.floor(position).astype(int), len(bordered) - 1)
        share = (position - np.floor(position)).reshape(-1, *[1] * (bordered.ndim - 1))
        high = np.minimum(low + 1, len(bordered) - 1)
        bordered = np.moveaxis(bordered[low] * (1 - share) + bordered[high] * share, 0, axis)
    return bordered


def anylabeling(encoder: Run, decoder: Run, photo: np.ndarray, canvas: tuple[int, int] = CANVAS) -> Callable:
    """The function from marks, (x, y, 1 or 0) and (x1, y1, x2, y2), to a mask of the photo's size.

    The photo goes to the upper left of a black canvas; points go to its pixels, always with a point of label -1 after
    them; the first mask comes at the canvas' size and is warped back, then it is what exceeds 0.
    """
    scale = min(canvas[0] / photo.shape[0], canvas[1] / photo.shape[1])
    picture = np.rint(warp(photo, scale, canvas)).astype(np.uint8).astype(np.float32)
    (embedding,) = encoder({"input_image": picture}).values()

    def ask(*marks: tuple[float, ...]) -> np.ndarray:
        points = [(mark[:2],) if len(mark) == 3 else (mark[:2], mark[2:]) for mark in marks]
        labels = [(mark[2],) if len(mark) == 3 else (2, 3) for mark in marks]
        coords = np.array([xy for each in points for xy in each] + [(0, 0)], np.float32)[None] * np.float32(scale)
        found = decoder(
            {
                "image_embeddings": embedding,
                "point_coords": coords,
                "point_labels": np.array([label for each in labels for label in each] + [-1], np.float32)[None],
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array(canvas, np.float32),
            }
        )
        masks, _, _ = found.values()
        return warp(masks[0][0], 1 / scale, photo.shape[:2]) > 0

    return ask


def cvat(embedding: np.ndarray, decoder: Run, size: tuple[int, int], *, appends: bool = False) -> Callable:
    """The function from clicks and a box to a mask, as CVAT's page does it with the blob that a function gave.

    Positive points come first, then negative ones; the newest page puts a box before them. The first page that had
    the plugin, `appends`, puts a point of label -1 at the end. The mask comes within its bounds.
    """
    scale = 1024 / max(size)
    tensor = embedding.reshape(1, 256, 64, 64)

    def ask(positive=(), negative=(), box=(), low_res=None):
        coords = [*np.reshape(box, (-1, 2)), *positive, *negative] + [(0, 0)] * appends
        labels = [*((2, 3) if len(box) else ()), *[1] * len(positive), *[0] * len(negative)] + [-1] * appends
        given = np.zeros((1, 1, 256, 256)) if low_res is None else low_res.reshape(1, 1, 256, 256)
        found = decoder(
            {
                "image_embeddings": tensor,
                "point_coords": np.array(coords, np.float32)[None] * np.float32(scale),
                "point_labels": np.array(labels, np.float32)[None],
                "orig_im_size": np.array(size, np.float32),
                "mask_input": given.astype(np.float32),
                "has_mask_input": np.array([low_res is not None], np.float32),
            }
        )
        left, top, right, bottom = (int(found[name][0]) for name in ("xtl", "ytl", "xbr", "ybr"))
        assert found["masks"].dtype == np.uint8
        mask = np.zeros(size, bool)
        mask[top : bottom + 1, left : right + 1] = found["masks"].reshape(bottom - top + 1, right - left + 1) > 0
        return mask, found["low_res_masks"]

    return ask
