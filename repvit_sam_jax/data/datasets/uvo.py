"""UVO v1.0, the densely annotated videos: masks of all objects in each frame (Wang et al., arXiv 2104.04691)."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ...inference import rle
from . import layout

WHAT = (
    "UVO v1.0 (sites.google.com/view/unidentified-video-object/dataset), with VideoDenseSet/UVO_video_val_dense.json "
    "and the frames of the videos, uvo_videos_dense_frames/VIDEO/0.png, 1.png, ... (or .jpg)"
)
FRAMES = "uvo_videos_dense_frames"
CATEGORY: Mapping[str, Any] = {"id": 1, "name": "object"}
"""The only one: annotations with others count as this one."""


class Uvo:
    """The validation split, in the form of YouTube-VIS."""

    def __init__(self, folder: Path) -> None:
        """Read the annotations, and find the folders of the frames.

        Args:
          folder: the data set's, or one above its `VideoDenseSet`.

        Raises:
          ValueError: the folder or the annotations have another form, or videos have no frames.
        """
        needed = ("VideoDenseSet/UVO_video_val_dense.json", FRAMES)
        root = layout.find_root(folder, (".", "UVOv1.0", "UVO"), needed, WHAT)
        self._file, self._frames = root / needed[0], root / FRAMES
        content = layout.read_json(self._file, f"annotations of {WHAT}")
        try:
            videos = {_folder_of(video): video for video in sorted(content["videos"], key=lambda video: video["id"])}
            ids = {video["id"] for video in videos.values()}
            self._tracks = collections.defaultdict(list)
            for track in content["annotations"]:
                self._tracks[track["video_id"]].append(track)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{self._file} is not in the form of YouTube-VIS: {error!r}") from error
        if not videos or not len(videos) == len(ids) == len(content["videos"]):
            raise ValueError(f"{self._file} should hold videos with ids and folders of their own")
        if unknown := set(self._tracks) - ids:
            raise ValueError(f"{self._file} has annotations of video {min(unknown)}, which it lacks")
        if absent := [name for name in videos if not (self._frames / name).is_dir()]:
            raise ValueError(
                f"{self._frames} lacks the frames of {len(absent)} of {len(videos)} videos, such as those of "
                f"{absent[0]}, {absent[0]}/0.png and so on"
            )
        self.videos: Mapping[str, Mapping[str, Any]] = videos
        """By the name of their folder, in the order of their `id`; with `height`, `width`, `length`, `file_names`."""

    def size(self, name: str) -> tuple[int, int]:
        """(height, width) of a video."""
        return self.videos[name]["height"], self.videos[name]["width"]

    def frames(self, name: str) -> list[Path]:
        """A video's frames, in order, as JPEG where the listed PNG isn't there. Raises ValueError if one is missing."""
        found = []
        for listed in self.videos[name]["file_names"]:
            path = self._frames / listed
            given = next((p for p in (path, path.with_suffix(".jpg"), path.with_suffix(".png")) if p.is_file()), None)
            if given is None:
                raise ValueError(f"there is no frame {path}")
            found.append(given)
        return found

    def tracks(self, name: str) -> list[dict[str, Any]]:
        """Objects of a video, in the order of the file: `video_id`, `category_id`, `iscrowd`, and `segmentations`.

        The last are, for each frame, a compressed RLE or None.

        Raises:
          ValueError: an annotation has another number of frames, or a mask is none or has another size.
        """
        video, size = self.videos[name], self.size(name)
        tracks = []
        for track in self._tracks[video["id"]]:
            masks = track.get("segmentations")
            if not isinstance(masks, list) or len(masks) != video["length"]:
                raise ValueError(
                    f"{self._file}: annotation {track.get('id')} of {name} has no mask or null for each frame"
                )
            try:
                read = [rle.counts_to_coco(rle.read_segmentation(m, size), size) if m else None for m in masks]
            except ValueError as error:
                raise ValueError(f"{self._file}: annotation {track.get('id')} of {name}: {error}") from error
            crowd = int(track.get("iscrowd", 0))
            tracks.append(
                {"video_id": video["id"], "category_id": CATEGORY["id"], "iscrowd": crowd, "segmentations": read}
            )
        return tracks


def _folder_of(video: Mapping[str, Any]) -> str:
    names = video["file_names"]
    if len(names) != video["length"] or not all(int(video[side]) > 0 for side in ("height", "width", "length")):
        raise ValueError(f"video {video['id']} has {len(names)} file_names and a length of {video['length']}")
    return str(PurePosixPath(names[0]).parent)
