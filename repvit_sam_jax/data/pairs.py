"""Photos in one folder and their masks as pictures in another."""

from __future__ import annotations

import collections
import hashlib
import json
import re
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ..inference.rle import counts_to_coco, mask_to_counts
from ..terminal import counted
from .records import DamagedRecordError, Record

SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
"""Pictures that keep numbers as they are."""
VOID = 255
"""What VOC's label maps have where nobody knows what it is."""
SMOOTH = 16
"""A picture of 255 mostly, and of more other numbers than these, is a mask with smoothed edges, and no label map."""


class PairSource:
    """Photos with masks: `STEM.png`, several as `STEM_0.png`, `STEM_1.png`, ..., or all pictures in a folder `STEM`."""

    def __init__(self, photos: Path, masks: Path) -> None:
        """Find pairs; photos without masks are left out with a warning, and so are masks without photos.

        Raises:
          FileNotFoundError: there is no photo with a mask.
        """
        from ..inference.photos import list_photos  # imports the models, which workers need not

        found: dict[Path, list[Path]] = {photo: [] for photo in list_photos(photos)}
        places = {name: photo for photo in found for name in (photo.stem, photo.name)}
        lonely = []
        for path in sorted(p for p in masks.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
            inner = path.relative_to(masks).parts
            names = inner[:1] if len(inner) > 1 else (path.stem, re.sub(r"_\d+$", "", path.stem))
            photo = next((places[name] for name in names if name in places), None)
            lonely.append(path) if photo is None else found[photo].append(path)
        without = [photo for photo, paths in found.items() if not paths]
        if len(without) == len(found):
            raise FileNotFoundError(
                f"no photo of {photos} has a mask in {masks}, such as STEM.png or STEM_0.png for STEM.jpg; masks are "
                f"{', '.join(SUFFIXES)} files"
            )
        for left, kind, lacks in ((without, "photo", "masks"), (lonely, "mask", "photos")):
            if left:
                what = f"{counted(len(left), kind)} without {lacks}"
                warnings.warn(f"left out: {what}, such as {left[0]}", stacklevel=3)
        self._pairs = [(photo, paths) for photo, paths in found.items() if paths]
        files = [[path.name, path.stat().st_size] for photo, paths in self._pairs for path in (photo, *paths)]
        self.fingerprint = hashlib.sha256(repr(files).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Record:
        """The record; IndexError past the end, and DamagedRecordError for a picture that is no mask."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        photo, paths = self._pairs[i]
        try:
            masks = [mask for path in paths for mask in read_masks(path)]
        except ValueError as error:
            raise DamagedRecordError(str(error)) from error
        return Record(str(photo), photo.read_bytes(), _annotations(masks))


def read_masks(path: Path) -> list[Bool[np.ndarray, "h w"]]:
    """The objects of a picture: what is not 0, or if it holds several numbers, what has the same number.

    Of several numbers 255 is none, as in VOC's label maps. Colours of a palette count as their numbers.

    Raises:
      ValueError: the picture can't be read, has colours, or has smooth edges.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode not in ("1", "L", "P", "I", "I;16"):
                raise ValueError(f"{path} is in {opened.mode}: a mask is grey or has a palette, with 0 outside")
            numbers = np.asarray(opened)
    except OSError as error:
        raise ValueError(f"{path} can't be read as a mask: {error}") from error
    objects, counts = np.unique(numbers[numbers != 0], return_counts=True)
    if len(objects) == 1:
        return [numbers != 0]
    known = objects != VOID
    if known.sum() >= SMOOTH and counts[~known].sum() > counts[known].sum():
        raise ValueError(f"{path} has smooth edges: give masks of 0 and 255 alone, not resized or compressed ones")
    return [numbers == number for number in objects[known]]


def _annotations(masks: list[Bool[np.ndarray, "h w"]]) -> bytes:
    """Those of one photo, as in `Record`. If sizes differ, that of most of them is said to be the photo's."""
    size, _ = collections.Counter(mask.shape for mask in masks).most_common(1)[0] if masks else ((0, 0), 0)
    about = {"height": size[0], "width": size[1]}
    found = [{"segmentation": counts_to_coco(mask_to_counts(mask), mask.shape)} for mask in masks]
    return json.dumps({"image": about, "annotations": found}).encode()
