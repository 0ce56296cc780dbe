"""`repvit-sam convert annotations`."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from repvit_sam_jax.files import check_new_file, new_folder
from repvit_sam_jax.inference import formats

from . import FILES, Form
from .coco import read_coco, read_sa1b
from .collected import Collected, read_json
from .labelme import read_labelme, write_labelme
from .labelstudio import read_labelstudio, write_labelstudio
from .yolo import read_yolo


def convert(
    source: Path, out: Path, to: Form = "coco", *, photos: Path | None = None, overwrite: bool = False
) -> Collected:
    """Read annotations of any form, and write them in another one.

    Args:
      source: a file or a folder, recognised by what it holds; see `read`.
      out: a file `.json` for one of `FILES`, otherwise a folder that is new or empty.
      to: the form.
      photos: the folder of the photos, if it is not the source's.
      overwrite: replace the file.

    Returns:
      What was converted.

    Raises:
      FileNotFoundError: there is no such source, or photos lack.
      ValueError: as `read`; or `out` can't be written.
    """
    if to in FILES:
        check_new_file(out, "OUT", [".json"], overwrite)
    collected = read(source, photos)
    collected.check()
    names = _names(list(collected.found), to)
    found = {names[name]: of_photo for name, of_photo in collected.found.items()}
    place = formats.relative(collected.photos, out.parent if to in FILES else out)
    if to == "labelstudio":
        write_labelstudio(out, collected)
    elif to in ("coco", "polygons"):
        content = formats.coco_file(list(found.values()), collected.categories, photos=place, polygons=to == "polygons")
        formats.write(out, formats.as_json(content))
    else:
        with new_folder(out, "OUT") as folder:
            if to == "labelme":
                write_labelme(folder, collected, names, out)
            else:
                formats.write_folder(folder, found, to, collected.categories)
    return collected


def read(source: Path, photos: Path | None = None) -> Collected:
    """Annotations of a form that is told by what the source holds.

    - a `.json`: COCO's (`images`, `annotations`, `categories`), Label Studio's (a list of tasks), labelme's (`shapes`)
      or SA-1B's (`image`, `annotations`);
    - a folder with one such file, or with many of labelme or SA-1B;
    - a folder of YOLO, which has names of classes in `data.yaml` or `classes.txt`.

    Raises:
      FileNotFoundError: there is no such source.
      ValueError: it has none of these forms, or is damaged.
    """
    if not source.exists():
        raise FileNotFoundError(f"no annotations at {source}")
    if source.is_dir():
        files = sorted(path for path in source.rglob("*.json") if not path.name.startswith("."))
        if any((source / name).is_file() for name in ("data.yaml", "classes.txt")) or not files:
            return read_yolo(source, photos)
        return _read_files(files, source, photos)
    if source.suffix == ".tar":
        raise ValueError(f"{source} is a shard of SA-1B, which training and evaluation read as it is")
    if source.suffix.lower() != ".json":
        raise ValueError(f"{source}: annotations are a file .json or a folder")
    return _read_files([source], source.parent, photos)


def _read_files(files: Sequence[Path], folder: Path, photos: Path | None) -> Collected:
    form = _form(read_json(files[0]))
    if form == "labelme":
        return read_labelme(files, photos)
    if form == "SA-1B":
        return read_sa1b(files, photos or folder)
    if form is None:
        raise ValueError(f"{files[0]} has none of the forms of COCO, SA-1B, labelme and Label Studio")
    if len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} files .json, and {files[0].name} is {form}'s; give one of them")
    return read_coco(files[0], photos) if form == "COCO" else read_labelstudio(files[0], photos or folder)


def _form(content: Any) -> str | None:
    if isinstance(content, list):
        return (
            "Label Studio" if content and all(isinstance(task, dict) and "data" in task for task in content) else None
        )
    if not isinstance(content, dict):
        return None
    needed = {"COCO": {"images", "annotations"}, "SA-1B": {"image", "annotations"}, "labelme": {"shapes", "imagePath"}}
    return next((form for form, names in needed.items() if names <= set(content)), None)


def _names(photos: Sequence[str], to: Form) -> dict[str, str]:
    """What files about photos are called: as the photos without their suffixes, or in full where two would share it."""
    stems = {name: PurePosixPath(name).with_suffix("").as_posix() for name in photos}
    counts = collections.Counter(stem.casefold() for stem in stems.values())
    shared = [name for name, stem in stems.items() if counts[stem.casefold()] > 1]
    if shared and to == "yolo":
        raise ValueError(f"YOLO calls labels by the stems of photos, and these share theirs: {', '.join(shared)}")
    if outside := [name for name in photos if to not in FILES and (name.startswith("/") or ".." in name.split("/"))]:
        raise ValueError(f"{outside[0]} lies outside of the photos' folder, which files about photos are named after")
    return {name: name if shared else stem for name, stem in stems.items()}
