"""YOLO's folders: labels in `labels/`, photos in `images/`, names of classes in `data.yaml` or `classes.txt`."""

from __future__ import annotations

from pathlib import Path

from repvit_sam_jax.inference.photos import list_photos
from repvit_sam_jax.terminal import counted

from .collected import Collected, reading


def read_yolo(folder: Path, photos: Path | None) -> Collected:
    """Segmentation labels, `class x1 y1 x2 y2 ...` a line, in shares of the photo's sides.

    A photo's label has its name, and lies beside it or in the folder whose last `images` is `labels`. A photo without a
    label has no objects. Lines of boxes, `class x y width height`, have no mask.

    Args:
      folder: the data set.
      photos: of the photos, if not the data set itself.

    Raises:
      ValueError: a label is damaged, of no photo, or of a class that is not listed; or there are no names of classes.
    """
    root = photos or folder
    names = _class_names(folder)
    collected = Collected(root, names)
    labels = set(folder.rglob("labels/**/*.txt")) or set(folder.rglob("*.txt")) - {folder / "classes.txt"}
    inner = [root, *sorted(path for path in root.rglob("*") if path.is_dir())]
    for photo in [photo for at in inner for photo in list_photos(at)]:
        name = photo.relative_to(root).as_posix()
        size = collected.open(name, None, str(photo))
        label = next((path for path in _label_paths(name, folder) if path in labels), None)
        if label is None:
            continue
        labels.remove(label)
        with reading(label, "YOLO's labels"):
            for number, line in enumerate(label.read_text().splitlines(), start=1):
                if line.strip():
                    _read_line(collected, name, size, line, f"{label}, line {number}")
    if labels:
        lacking = f"{counted(len(labels), 'label')}, first {min(labels)}"
        raise FileNotFoundError(f"{root} lacks photos of {lacking}; give their folder with --photos")
    return collected


def _label_paths(name: str, folder: Path) -> list[Path]:
    """Where a photo's label may be."""
    parts = list(Path(name).with_suffix(".txt").parts)
    turned = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
    other = ["labels", *parts] if turned is None else [*parts[:turned], "labels", *parts[turned + 1 :]]
    return [folder.joinpath(*other), folder.joinpath(*parts)]


def _read_line(collected: Collected, name: str, size: tuple[int, int], line: str, where: str) -> None:
    first, *rest = line.split()
    shares = [float(value) for value in rest]
    number = int(first)
    if not 0 <= number < len(collected.categories):
        raise ValueError(f"{where}: class {number} is not among the {len(collected.categories)} that are listed")
    if len(shares) == 4:
        collected.leave_out(where, "is a box, which has no mask, or a polygon of 2 points")
        return
    if len(shares) % 2:
        raise ValueError(f"{where}: {len(shares)} coordinates, expected x and y of each corner")
    points = [[x * size[1], y * size[0]] for x, y in zip(shares[::2], shares[1::2], strict=True)]
    collected.polygon(name, points, collected.categories[number], where)


def _class_names(folder: Path) -> list[str]:
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        import yaml

        with reading(path, "YOLO's list of classes"):
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
            if isinstance(content, dict) and "names" in content:
                names = content["names"]
                if isinstance(names, dict):
                    names = [names[number] for number in range(len(names))]
                return [str(name) for name in names]
    if (folder / "classes.txt").is_file():
        return [line.strip() for line in (folder / "classes.txt").read_text("utf-8").splitlines() if line.strip()]
    raise FileNotFoundError(f"{folder} holds no names of classes: no data.yaml with names, and no classes.txt")
