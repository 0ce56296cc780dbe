"""Sources of a few small photos with masks, in every layout; and the smallest models."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import config
from repvit_sam_jax.masks import counts_to_coco, mask_to_counts
from train.shards import write_shards

from . import micro


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def annotation(mask: np.ndarray) -> dict:
    return {"segmentation": counts_to_coco(mask_to_counts(mask)[0], mask.shape), "area": int(mask.sum())}


def annotations(size: tuple[int, int], *masks: np.ndarray) -> bytes:
    image = {"height": size[0], "width": size[1], "file_name": "x.jpg"}
    return json.dumps({"image": image, "annotations": [annotation(mask) for mask in masks]}).encode()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def photo_and_masks(number: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A photo whose size and masks depend on its number: boxes, the later the smaller."""
    rng = np.random.default_rng(number)
    height, width = 40 + 3 * (number % 5), 60 - 7 * (number % 4)
    masks = []
    for i in range(5):
        mask = np.zeros((height, width), bool)
        y, x = rng.integers(0, 20, 2)
        mask[y : y + 20 - 3 * i, x : x + 18 - 2 * i] = True
        masks.append(mask)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), masks


@pytest.fixture
def shards(tmp_path):
    """A folder of two shards, eight and five photos."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard, numbers in enumerate((range(8), range(8, 13))):
        members = {}
        for number in numbers:
            image, masks = photo_and_masks(number)
            members[f"sa_{number}.jpg"] = jpeg(image)
            members[f"sa_{number}.json"] = annotations(image.shape[:2], *masks)
        write_tar(folder / f"sa_{shard:06d}.tar", members)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where indices of tars in read-only folders go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "repvit-sam"


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with a tar shard of scenes."""
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_shards(folder, 24, seed=3, size=96)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def micro_models():
    """The presets of `micro`, for as long as a module's tests run."""
    micro.register()
    yield
    for preset in micro.PRESETS:
        del config.MODELS[preset.name]
