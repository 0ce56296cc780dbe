"""Points that a tracker followed through videos, in the one form that tasks read, and from trackers' own forms.

The file is a NumPy archive, `FILE.npz`, with four arrays for each video, named after it:

- `VIDEO/points`, float [T, K, N, 2]: (x, y) in pixels of the video's frames, for T frames, K objects and N points each;
- `VIDEO/visible`, bool [T, K, N]: whether a point is seen in a frame; False where an object has fewer than N points;
- `VIDEO/labels`, int [K, N]: 1 for points on the object, 0 for points beside it;
- `VIDEO/size`, int [2]: (height, width) of the frames.

`repvit-sam eval tracks` writes it from a file a video: what SAM-PT returns (SysCV/sam-pt, `SamPt.forward`), or what
CoTracker returns (facebookresearch/co-tracker).
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from ...files import write_atomically

VISIBLE = 0.7
"""Probability from which on SAM-PT takes CoTracker's points for visible (`visibility_threshold`)."""
ARRAYS = ("points", "visible", "labels", "size")


@dataclasses.dataclass(frozen=True, eq=False)
class Tracks:
    """The points of a video; see the module."""

    points: Float[np.ndarray, "t k n 2"]
    visible: Bool[np.ndarray, "t k n"]
    labels: Int[np.ndarray, "k n"]
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the tracks of a video have to fit."""

    frames: int
    size: tuple[int, int]
    """(height, width) of the frames."""
    objects: int | None = None
    """Any number if None."""


class TracksFile:
    """The file; a video is read when it is asked for."""

    def __init__(self, path: Path | None, videos: Mapping[str, Expected]) -> None:
        """Hold the file against the videos, without reading points.

        Raises:
          ValueError: there is no such file, it has another form, lacks a video or has an unknown one, or tracks are of
            another number of frames or objects, or of frames of another size.
        """
        if path is None or not path.is_file():
            given = "it is missing" if path is None else f"there is no file {path}"
            raise ValueError(
                f"the task starts from points that a tracker followed, --proposals FILE.npz, and {given}; "
                "repvit-sam eval tracks makes it of what SAM-PT or CoTracker returned"
            )
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
                self._check_names({name.rpartition("/")[0] for name in names}, set(videos))
                for name, expected in videos.items():
                    if absent := [array for array in ARRAYS if f"{name}/{array}" not in names]:
                        raise ValueError(f"{path} lacks {name}/{absent[0]}")
                    self._check_video(archive, name, expected)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no NumPy archive, as repvit-sam eval tracks writes it: {error}") from error

    def _check_names(self, given: set[str], expected: set[str]) -> None:
        for what, names in (("lacks", expected - given), ("has unknown", given - expected)):
            if names:
                raise ValueError(
                    f"{self._path} {what} {len(names)} videos, such as {min(names)!r}; is it of another set?"
                )

    def _check_video(self, archive: zipfile.ZipFile, name: str, expected: Expected) -> None:
        (points, kind), visible, labels = (_header(archive, f"{name}/{array}") for array in ARRAYS[:3])
        with archive.open(f"{name}/size.npy") as file:
            size = tuple(np.lib.format.read_array(file, allow_pickle=False).tolist())
        where = f"{self._path}: {name}"
        if len(points) != 4 or points[3] != 2 or kind != "f":
            raise ValueError(f"{where}/points should be float [T, K, N, 2], got {list(points)}")
        if visible != (points[:3], "b"):
            raise ValueError(f"{where}/visible should be bool {list(points[:3])}, got {list(visible[0])}")
        if labels[0] != points[1:3] or labels[1] not in "iu":
            raise ValueError(f"{where}/labels should be int {list(points[1:3])}, got {list(labels[0])}")
        if size != expected.size:
            raise ValueError(f"{where} has tracks of frames of size {list(size)}, expected {list(expected.size)}")
        if points[0] != expected.frames:
            raise ValueError(f"{where} has tracks of {points[0]} frames, expected {expected.frames}")
        if expected.objects not in (None, points[1]):
            raise ValueError(f"{where} has tracks of {points[1]} objects, expected {expected.objects}")

    def read(self, name: str) -> Tracks:
        """The tracks of a video. Raises ValueError if a label is neither 0 nor 1, or a visible point not finite."""
        with np.load(self._path) as archive:
            points, visible, labels, size = (archive[f"{name}/{array}"] for array in ARRAYS)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(f"{self._path}: {name}/labels should be 1 on the object and 0 beside it")
        if not np.isfinite(points[visible]).all():
            raise ValueError(f"{self._path}: {name}/points has visible points that are not finite")
        return Tracks(points, visible, labels, tuple(size.tolist()))


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], str]:
    """Shape and kind of an array."""
    with archive.open(f"{name}.npy") as file:
        return _read_header(file)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], str]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype.kind


def write(path: Path, videos: Iterable[tuple[str, Tracks]]) -> None:
    """Write the file, one video at a time."""

    def save(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, tracks in videos:
                for array in ARRAYS:
                    with archive.open(f"{name}/{array}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.asarray(getattr(tracks, array)))

    write_atomically(path, save)


def from_trackers(found: Mapping[str, Num[np.ndarray, "..."]], positives: int, points: int | None = None) -> Tracks:
    """Tracks from what a tracker returned for a video.

    Args:
      found: `size` (height, width), and either SAM-PT's `trajectories` [T, K, N, 2] and `visibilities` [T, K, N], where
        1 is visible, or CoTracker's `tracks` [1, T, K * N, 2] and `visibility` [1, T, K * N], object by object, as
        booleans or as probabilities, which are visible over `VISIBLE`.
      positives: points of an object that are on it, the first ones; the others are beside it.
      points: N, which CoTracker's form does not say; `positives` if None.

    Raises:
      ValueError: these are neither of them, or of other shapes.
    """
    if {"trajectories", "visibilities", "size"} <= set(found):
        paths, visible = np.asarray(found["trajectories"]), np.asarray(found["visibilities"]) == 1
    elif {"tracks", "visibility", "size"} <= set(found):
        paths, visible = (np.asarray(found[name]) for name in ("tracks", "visibility"))
        count = points or positives
        if paths.ndim != 4 or len(paths) != 1 or paths.shape[2] % count or visible.shape[:3] != paths.shape[:3]:
            raise ValueError(f"tracks of shape {list(paths.shape)} are not [1, T, K * {count}, 2]; see --points")
        paths = paths.reshape(paths.shape[1], -1, count, 2)
        visible = (visible if visible.dtype == bool else visible > VISIBLE).reshape(paths.shape[:3])
    else:
        raise ValueError(
            f"expected size, and trajectories and visibilities, or tracks and visibility; got {', '.join(found)}"
        )
    if paths.ndim != 4 or paths.shape[3] != 2 or visible.shape != paths.shape[:3] or paths.shape[2] < positives:
        raise ValueError(
            f"trajectories of shape {list(paths.shape)} and visibilities {list(visible.shape)} are not [T, K, N, 2] "
            f"and [T, K, N] with at least {positives} points"
        )
    labels = np.zeros(paths.shape[1:3], np.int8)
    labels[:, :positives] = 1
    height, width = (int(side) for side in found["size"])
    return Tracks(paths.astype(np.float32), visible, labels, (height, width))


def convert(folder: Path, out: Path, positives: int, points: int | None = None) -> int:
    """Write the file from a tracker's, VIDEO.npz in a folder, with the arrays that `from_trackers` takes.

    Returns:
      The number of videos.

    Raises:
      ValueError: the folder holds none, a number is too small, or as `from_trackers`, naming the file.
    """
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not files:
        raise ValueError(f"--from {folder} holds no VIDEO.npz")
    if out.suffix != ".npz":
        raise ValueError(f"--out {out}: the file is written as .npz")
    if positives < 1 or (points is not None and points < positives):
        raise ValueError(f"--positives {positives} must be at least 1, and --points {points} as many or more")

    def videos() -> Iterable[tuple[str, Tracks]]:
        for path in files:
            yield path.stem, _read_found(path, positives, points)

    write(out, videos())
    return len(files)


def _read_found(path: Path, positives: int, points: int | None) -> Tracks:
    try:
        with np.load(path) as archive:
            found: dict[str, Any] = dict(archive.items())
        return from_trackers(found, positives, points)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error
