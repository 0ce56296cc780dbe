"""Where `repvit-sam segment` writes masks and overlays."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import SUFFIXES, Format
from ..files import check_new_file, check_new_folder
from .common import is_same_file, save_picture, size_of

if TYPE_CHECKING:
    from ..inference.photos import Segmented
    from ..inference.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class Target:
    """Files for the masks of a photo, or folders for those of a folder."""

    photo: Path
    out: Path
    form: Format
    overlay: Path | None

    @classmethod
    def of(cls, photo: Path, out: Path | None, form: Format, overlay: Path | None) -> Target:
        """With the usual name, if none is given."""
        usual = "masks" if photo.is_dir() else f"mask{SUFFIXES[form]}"
        return cls(photo, out or Path(usual), form, overlay)

    def files(self, count: int) -> tuple[list[Path], list[Path]]:
        """Files of so many masks of a photo, and of their overlays."""
        overlays = [] if self.overlay is None else _numbered(self.overlay, count)
        return _numbered(self.out, count) if self.form == "png" else [self.out], overlays

    def check(self, count: int, overwrite: bool, others: Sequence[Path]) -> None:
        """Hold the paths against what is there; `others` are files of the command that are not to be replaced.

        Raises:
          ValueError: one is taken, can't be written, or is there twice.
        """
        if self.photo.is_dir():
            check_new_folder(self.out, "--out")
            if self.overlay is not None:
                check_new_folder(self.overlay, "--overlay")
                if self.overlay.resolve() == self.out.resolve():
                    raise ValueError("--out and --overlay must be different folders")
            if any(
                path.resolve() in {folder.resolve() for folder in (self.out, self.overlay) if folder} for path in others
            ):
                raise ValueError("masks, overlays and embeddings must be in different folders")
            return
        masks, overlays = self.files(count)
        if any(is_same_file(*pair) for pair in itertools.combinations((self.photo, *masks, *overlays, *others), 2)):
            raise ValueError("photo, --out and --overlay must be different files")
        for path in masks:
            check_new_file(path, "--out", [SUFFIXES[self.form]], overwrite)
        for path in overlays:
            check_new_file(path, "--overlay", [".png"], overwrite)

    def write_photo(self, done: Sequence[Segmented]) -> list[dict[str, Any]]:
        """Write the masks of a photo; what a result says about each."""
        from ..inference import formats

        masks, overlays = self.files(len(done))
        for number, one in enumerate(done):
            if self.form == "png":
                save_picture(one.mask, masks[number])
            if overlays:
                save_overlay(one, overlays[number])
        if self.form != "png":
            found = formats.found_in(self.photo.name, done[0].image.shape[:2], [_record(one) for one in done])
            formats.write(self.out, formats.content(found, self.form))
        files = masks if self.form == "png" else masks * len(done)
        return [
            about(one, mask, overlay)
            for one, mask, overlay in zip(done, files, overlays or itertools.repeat(None, len(done)), strict=True)
        ]

    def open_folder(self, counts: Mapping[Path, int]) -> FolderWriter:
        """What writes the masks of a folder's photos, of which there are so many each."""
        for folder in filter(None, (self.out, self.overlay)):
            folder.mkdir(parents=True, exist_ok=True)
        return FolderWriter(self, counts)


class FolderWriter:
    """Writes PNGs as they come, and other forms when all are there."""

    def __init__(self, target: Target, counts: Mapping[Path, int]) -> None:
        from ..inference.photos import mask_names

        self._target, self._names = target, mask_names(counts)
        self._results: list[dict[str, Any]] = []
        self._records: dict[Path, list[dict[str, Any]]] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}

    def add(self, done: Segmented) -> None:
        """A mask."""
        target, name = self._target, self._names[done.path][done.number] + ".png"
        overlay = None if target.overlay is None else target.overlay / name
        if target.form == "png":
            save_picture(done.mask, target.out / name)
        else:
            self._records.setdefault(done.path, []).append(_record(done))
            self._sizes[done.path] = done.image.shape[:2]
        if overlay is not None:
            save_overlay(done, overlay)
        mask = target.out / name if target.form == "png" else target.out
        self._results.append({**size_of(done.path, done.image), **about(done, mask, overlay)})

    def finish(self, photos: Path, names: Mapping[Path, str]) -> list[dict[str, Any]]:
        """Write what was kept, of photos in a folder and with these names; what the result says of each mask."""
        from ..inference import formats

        target = self._target
        if target.form != "png":
            found = {
                names[path]: formats.found_in(path.name, self._sizes[path], records)
                for path, records in sorted(self._records.items())
            }
            formats.write_folder(target.out, found, target.form, photos=formats.relative(photos, target.out))
        return sorted(self._results, key=lambda result: result["photo"])


def save_overlay(done: Segmented, path: Path) -> None:
    """Draw a mask and its prompt over the photo."""
    from ..inference.overlay import draw_overlay

    save_picture(draw_overlay(done.image, done.mask, *_lists(done.prompt)), path)


def about(done: Segmented, mask: Path, overlay: Path | None) -> dict[str, Any]:
    """What a result says about a mask."""
    from ..inference.masks import box_of

    box = box_of(done.mask)
    return {
        "mask": str(mask),
        "overlay": None if overlay is None else str(overlay),
        "predicted_iou": done.predicted_iou,
        "area": int(done.mask.sum()),
        "box": None if box is None else list(box),
    }


def _record(done: Segmented) -> dict[str, Any]:
    from ..inference.formats import answer_to

    return answer_to(done.mask, done.predicted_iou, *_lists(done.prompt))


def _lists(prompt: Prompt) -> tuple[list[list[float]], list[int], list[float] | None]:
    return prompt.points.tolist(), prompt.labels.tolist(), None if prompt.box is None else prompt.box.tolist()


def _numbered(path: Path, count: int) -> list[Path]:
    return [path] if count == 1 else [path.with_stem(f"{path.stem}_{number}") for number in range(count)]
