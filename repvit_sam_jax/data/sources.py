"""Where photos and masks come from: SA-1B's tar shards, a folder of photos, photos with COCO annotations."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pairs import PairSource
from .records import Record, Source
from .tar import Shard, open_shard


class TarSource:
    """SA-1B's shards as they are distributed: `sa_N.jpg` and `sa_N.json` in `sa_000000.tar`.

    Records are in the order of the shards, by name, and of the members in each.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Indexes shards that have no index yet; errors as in `open_shard`."""
        self._shards: list[Shard] = sorted(map(open_shard, paths), key=_order)
        self._ends = np.cumsum([len(shard.names) for shard in self._shards])
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(repr((shard.path.name, shard.names.tolist(), shard.spans[:, 1::2].tolist())).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Record:
        """The record; IndexError past the end."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        shard = self._shards[number]
        name, photo, annotations = shard.read(i - int(self._ends[number]) + len(shard.names))
        return Record(f"{shard.path}:{name}", photo, annotations)


def _order(shard: Shard) -> tuple[str, bytes]:
    """Name, and among shards of one name a hash of what they hold, wherever they lie."""
    return shard.path.name, hashlib.sha256(shard.names.tobytes() + shard.spans.tobytes()).digest()


class FileSource:
    """Photo files, with annotations or without."""

    def __init__(self, folder: Path, names: Sequence[str], annotations: Sequence[bytes] | None = None) -> None:
        """Args: `names` are relative to the folder; `annotations` as in `Record`."""
        self._folder, self._names, self._annotations = folder, list(names), annotations
        sizes = [(folder / name).stat().st_size for name in names]
        digest = hashlib.sha256(repr((self._names, sizes)).encode())
        for text in annotations or ():
            digest.update(text)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Record:
        """The record; IndexError past the end."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        path = self._folder / self._names[i]
        return Record(str(path), path.read_bytes(), self._annotations[i] if self._annotations else None)


def open_source(spec: str | os.PathLike | Sequence[str | os.PathLike]) -> Source:
    """The source that one path or several name.

    - `.tar` files, or a folder that holds some: SA-1B's shards. A string may be a pattern, `data/sa_0000*.tar`.
    - two folders, photos and masks, or one folder with both as `images` and `masks`: pairs (`pairs.PairSource`).
    - another folder: the photos in it and in folders below, hidden ones excluded, by name; without masks.
    - a `.json` file, alone or with a folder: COCO instances, with `file_name` relative to the folder; if none is given,
      to the JSON's own or to its `info.photos`, which this library writes. Crowd annotations are left out, and those
      without a mask: boxes alone, polygons of less than three points.

    Raises:
      FileNotFoundError: a path doesn't exist, nothing fits a pattern, a folder is empty, or a JSON's photos lack.
      ValueError: the paths together are none of these, or a file is damaged.
    """
    given = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    paths = [path for item in given for path in _expand(item)]
    folders = [path for path in paths if path.is_dir()]
    jsons = [path for path in paths if path.suffix == ".json" and not path.is_dir()]
    if paths and all(path.suffix == ".tar" and not path.is_dir() for path in paths):
        return TarSource(paths)
    if len(jsons) == 1 and len(paths) == len(folders) + 1 <= 2:
        return _open_coco(jsons[0], folders[0] if folders else None)
    if len(folders) == len(paths) == 2 and not any(any(folder.glob("*.tar")) for folder in folders):
        return PairSource(*folders)
    if len(folders) == len(paths) == 1:
        shards, pair = sorted(folders[0].glob("*.tar")), [folders[0] / name for name in ("images", "masks")]
        if not shards and all(folder.is_dir() for folder in pair):
            return PairSource(*pair)
        return TarSource(shards) if shards else _open_folder(folders[0])
    raise ValueError(
        f"{', '.join(map(str, given)) or 'nothing'}: expected .tar files, a folder of them, a folder of photos with "
        "or without one of masks, or a COCO .json with or without its folder of photos"
    )


def _expand(item: str | os.PathLike) -> list[Path]:
    path = Path(item)
    if path.exists():
        return [path]
    if found := sorted(glob.glob(os.fspath(item))):  # noqa: PTH207, Path.glob takes no absolute patterns
        return [Path(name) for name in found]
    raise FileNotFoundError(f"no file, folder or match of a pattern at {item}")


def _open_folder(folder: Path) -> FileSource:
    from ..inference.photos import list_photos  # imports the models, which workers need not

    inner = [path for path in folder.rglob("*") if path.is_dir()]
    visible = [path for path in inner if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    names = sorted(path.relative_to(folder).as_posix() for at in (folder, *visible) for path in list_photos(at))
    if not names:
        raise FileNotFoundError(f"{folder} holds neither .tar shards nor photos")
    return FileSource(folder, names)


def _drawn(segmentation: Any) -> Any:
    """A segmentation without polygons that enclose nothing."""
    if not isinstance(segmentation, list):
        return segmentation
    return [polygon for polygon in segmentation if not isinstance(polygon, list) or len(polygon) >= 6]


def _file_name(folder: Path, name: str) -> str:
    """The name of a photo with this system's separators, if only so it is there."""
    plain = name.replace("\\", "/")
    return name if plain == name or (folder / name).is_file() else plain


def photo_folders(path: Path, content: Any) -> list[Path]:
    """Where photos of a file in COCO's form are, if nobody says: beside it, or where its `info.photos` points."""
    info = content.get("info")
    stated = info.get("photos") if isinstance(info, dict) else None
    return [path.parent, *([path.parent / stated] if isinstance(stated, str) else [])]


def _open_coco(path: Path, folder: Path | None) -> FileSource:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        images = {image["id"]: image for image in content["images"]}
        masks: dict[Any, list[dict[str, Any]]] = {number: [] for number in images}
        unlisted = empty = 0
        for annotation in content["annotations"]:
            others = masks.get(annotation["image_id"])
            if others is None:
                unlisted += 1
            elif kept := _drawn(annotation.get("segmentation")):
                others += [] if annotation.get("iscrowd") else [{**annotation, "segmentation": kept}]
            else:
                empty += 1
        places = photo_folders(path, content) if folder is None else [folder]
        first = [str(image["file_name"]) for image in images.values()][:1]
        folder = next((at for at in places for name in first if (at / _file_name(at, name)).is_file()), places[0])
        names = {number: _file_name(folder, str(image["file_name"])) for number, image in images.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no COCO instances file: {type(error).__name__}: {error}") from error
    if not names:
        raise ValueError(f"{path} lists no images")
    if unlisted:
        warnings.warn(f"{path}: {unlisted} annotations are left out, whose images it does not list", stacklevel=3)
    if empty:
        warnings.warn(
            f"{path}: {empty} annotations are left out, which have no mask but a box, or polygons of less than three "
            "points",
            stacklevel=3,
        )
    if missing := [name for name in names.values() if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(names)} photos of {path}, first {missing[0]}")
    texts = [json.dumps({"image": images[n], "annotations": masks[n]}).encode() for n in names]
    return FileSource(folder, list(names.values()), texts)
