"""MVTec-AD: photos of 15 kinds of objects and textures, and masks of their defects (Bergmann et al., CVPR 2019)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from ... import transforms
from . import layout

WHAT = "MVTec-AD (mvtec.com), with CLASS/test/TYPE/000.png and CLASS/ground_truth/TYPE/000_mask.png"

CLASSES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)
GOOD = "good"
"""The type of photos without a defect, which have no mask."""


class MvtecAd:
    """The 1725 test photos, or those of the classes that there are."""

    def __init__(self, folder: Path) -> None:
        """Find the photos and their masks; a warning names classes that are missing.

        Args:
          folder: the data set's, or one above it.

        Raises:
          ValueError: the folder holds no class, or a class lacks photos or masks.
        """
        root = next((place for place in (folder, folder / "mvtec_anomaly_detection") if _classes_of(place)), folder)
        self.classes = _classes_of(root)
        """Those that there are, sorted."""
        if not self.classes:
            layout.find_root(folder, (".",), [f"{name}/test" for name in CLASSES], WHAT)
        if absent := [name for name in CLASSES if name not in self.classes]:
            warnings.warn(
                f"{root} has {len(self.classes)} of the {len(CLASSES)} classes; it lacks {', '.join(absent)}",
                stacklevel=2,
            )
        self._photos: dict[str, Path] = {}
        self._truths: dict[str, Path] = {}
        for name in self.classes:
            self._find(root / name)
        self.names = sorted(self._photos)
        """`CLASS/test/TYPE/NUMBER`, sorted as strings."""

    def _find(self, folder: Path) -> None:
        """Add a class."""
        photos, truths = _by_type(folder / "test", ""), _by_type(folder / "ground_truth", "_mask")
        defects = {name: path for name, path in photos.items() if name.partition("/")[0] != GOOD}
        layout.paired(defects, truths, (str(folder / "test"), str(folder / "ground_truth")))
        self._photos |= {f"{folder.name}/test/{name}": path for name, path in photos.items()}
        self._truths |= {f"{folder.name}/test/{name}": path for name, path in truths.items()}

    def photo(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """A photo in RGB; some classes are gray."""
        return transforms.load_image(self._photos[name])

    def truth(self, name: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """The defect on a photo of `size` (height, width), empty for good ones. Raises ValueError if sizes differ."""
        if name not in self._truths:
            return np.zeros(size, bool)
        mask = layout.read_gray(self._truths[name]) > 0
        if mask.shape != size:
            raise ValueError(f"{self._truths[name]} has size {list(mask.shape)}, and its photo {list(size)}")
        return mask


def class_of(name: str) -> str:
    """The class of a photo's name."""
    return name.partition("/")[0]


def _classes_of(root: Path) -> list[str]:
    return [name for name in CLASSES if (root / name / "test").is_dir()]


def _by_type(folder: Path, ending: str) -> dict[str, Path]:
    """PNG files of the folders in a folder, by `TYPE/NUMBER`; `ending` is what follows the number."""
    types = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found: dict[str, Path] = {}
    for place in types:
        for stem, path in layout.by_stem(place, ".png").items():
            if not stem.endswith(ending):
                raise ValueError(f"{path} is no mask of MVTec-AD, which are called NUMBER{ending}.png")
            found[f"{place.name}/{stem.removesuffix(ending)}"] = path
    return found
