"""The kinds of input that are mutated: how a case is made from a random generator, and what it may end in.

A case returns `RIGHT` or `REFUSED`. Anything else, an exception of another type included, is a fault.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repvit_sam_jax import PRESETS, CheckpointError, transforms
from repvit_sam_jax.data import open_source
from repvit_sam_jax.data.examples import read_annotations
from repvit_sam_jax.inference import photos
from repvit_sam_jax.inference.prompts import pack, read_prompts
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.formats.state_dict import read_state_dict
from repvit_sam_jax.weights.loading import read_params
from tests.helpers.photos import annotations, jpeg, photo_and_masks, write_tar

RIGHT, REFUSED = "right", "refused"
Rng = np.random.Generator
Case = Callable[[Rng, Path], str]


def flip(content: bytes, rng: Rng, most: int = 4) -> bytes:
    """Some bytes changed, left out, put in or repeated."""
    data = bytearray(content)
    for _ in range(rng.integers(1, most + 1)):
        at = int(rng.integers(0, max(len(data), 1)))
        kind = rng.integers(5)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << int(rng.integers(8))
        elif kind == 1 and data:
            data[at % len(data)] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 20))]
        elif kind == 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 40))]
    return bytes(data[: int(rng.integers(len(data) + 1))] if rng.random() < 0.1 else data)


# Prompts


USUAL = [0, 1, -1, 2, 5.5, 30, 59.9, 60, 1e9, -0.0]
ODD = [math.nan, math.inf, 10**400, 1j, "5", None, True, np.float16(3), np.int64(2**62), b"1", [], {}, 2**63, object()]


def _odd_array(rng: Rng, depth: int) -> Any:
    """Nested lists of numbers, usual ones and odd ones, as arrays or not, or something else."""
    if rng.random() < 0.04:
        return [None, 5, "text", np.zeros((0, 4)), np.zeros((2, 0, 2)), np.array(3), {}, b"", np.ma.ones(4)][
            rng.integers(9)
        ]
    if not depth:
        values = USUAL if rng.random() < 0.8 else ODD
        return values[rng.integers(len(values))]
    value = [_odd_array(rng, depth - 1) for _ in range(rng.choice([0, 1, 2, 2, 3, 4, 4]))]
    if rng.random() < 0.3:
        try:
            return np.array(value)
        except ValueError:
            return value
    return value


def _good_prompts(rng: Rng) -> dict[str, Any]:
    """Of one or of several, in the forms that SAM takes."""
    many, n = int(rng.integers(0, 4)), int(rng.integers(1, 4))
    lead = (many,) if many else ()
    given: dict[str, Any] = {}
    if rng.random() < 0.8:
        given["point_coords"] = rng.uniform(0, 60, (*lead, n, 2))
        given["point_labels"] = rng.integers(-1, 2, (*lead, n))
    if not given or rng.random() < 0.5:
        given["box"] = np.sort(rng.uniform(0, 60, (*lead, 2, 2)), axis=-2).reshape(*lead, 4)
    if rng.random() < 0.3:
        size = [(32, 32), (60, 90)][rng.integers(2)]
        given["mask_input"] = rng.choice([0.0, 1.0], (*lead, 1, *size))
    return {name: value.tolist() if rng.random() < 0.5 else value for name, value in given.items()}


def prompts(rng: Rng, folder: Path) -> str:
    """Arguments of `predict`: what is accepted is finite and packs into the model's frame."""
    config, size = PRESETS["tiny"], (60, 90)
    names = ("point_coords", "point_labels", "box", "mask_input")
    given = {**dict.fromkeys(names), **_good_prompts(rng)}
    if rng.random() < 0.7:
        name = names[rng.integers(4)]
        depth = {"point_coords": (1, 4), "point_labels": (0, 3), "box": (1, 3), "mask_input": (0, 4)}[name]
        given[name] = _odd_array(rng, int(rng.integers(*depth)))
        if rng.random() < 0.5 and isinstance(given["point_coords"], list) and given["point_coords"]:
            given["point_coords"][0] = _odd_array(rng, 1)
    try:
        read, _ = read_prompts(*(given[name] for name in names), size, config)
    except ValueError as error:
        assert str(error), "an empty message"
        return REFUSED
    packed = pack(read, size, config.image_size)
    assert packed.point_coords.shape[:2] == (1, len(read))
    assert np.isfinite(packed.point_coords).all()
    assert set(np.unique(packed.point_labels)) <= {-1, 0, 1, 2, 3}
    assert packed.masks is None or np.isfinite(packed.masks).all()
    return RIGHT


def prompt_files(rng: Rng, folder: Path) -> str:
    """A JSON of prompts, in bytes and in values."""
    content: Any = {"a.jpg": {"points": [[1, 2], [3, 4, 0]], "box": [1, 2, 30, 40]}, "b.jpg": [{"box": [1, 2, 3, 4]}]}
    if rng.random() < 0.5:
        content["a.jpg"][["points", "box"][rng.integers(2)]] = _plain(_odd_array(rng, int(rng.integers(1, 3))))
        text = json.dumps(content).encode()
    else:
        text = flip(json.dumps(content).encode(), rng)
    (folder / "prompts.json").write_bytes(text)
    try:
        read = photos.read_prompts_file(folder / "prompts.json", [Path("a.jpg"), Path("b.jpg")])
    except ValueError as error:
        assert "prompts.json" in str(error)
        assert len(str(error)) < 1000, "a message without an end"
        return REFUSED
    assert all(np.isfinite(p.points).all() for of_photo in read.values() for p in of_photo)
    return RIGHT


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if isinstance(value, int | float | str | None) else str(type(value))


# Files of weights


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image_encoder.neck.0.weight": rng.normal(size=(4, 3)).astype(np.float32),
        "image_encoder.neck.1.weight": rng.normal(size=5).astype(np.float16),
        "mask_decoder.iou_token.weight": rng.integers(0, 9, (2, 2)),
    }


def torch_files(rng: Rng, folder: Path) -> str:
    """Bytes of a `.pt`, or of a record in it with the checksums made right again."""
    import torch

    good, arrays = folder / "good.pt", _arrays()
    if not good.is_file():
        torch.save({"model": {k: torch.from_numpy(v) for k, v in arrays.items()}, "epoch": 3}, good)
    bad = folder / "bad.pt"
    if rng.random() < 0.4:
        bad.write_bytes(flip(good.read_bytes(), rng))
        altered = False
    else:
        altered = True
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
            names = [info.filename for info in old.infolist()]
            target = "good/data.pkl" if rng.random() < 0.8 else names[rng.integers(len(names))]
            for name in names:
                content = flip(old.read(name), rng, 2) if name == target else old.read(name)
                if name != target or rng.random() < 0.95:
                    new.writestr(name, content)
    try:
        found = read_state_dict(bad)
    except CheckpointError as error:
        assert str(error)
        return REFUSED
    for value in found.values():
        np.isfinite(checkpoint.widen(value[tuple(slice(0, 50) for _ in value.shape)])).all()
    if not altered:  # the checksums see every other change of what is read
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[k], arrays[k]) for k in arrays)
    return RIGHT


def own_files(rng: Rng, folder: Path) -> str:
    """A `.safetensors` of this library: bytes, and values in its metadata; verified, it is right or refused."""
    good, config = folder / "good.safetensors", PRESETS["tiny"]
    if not good.is_file():
        from repvit_sam_jax import Sam
        from tests.helpers.micro import PRESETS as MICRO
        from tests.helpers.models import random_params

        checkpoint.save(good, random_params(Sam(MICRO[0], "train")), checkpoint.Metadata(MICRO[0], "train"))
    content = good.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.5:
        changed = flip(content, rng)
    else:
        header = json.loads(content[8 : 8 + length])
        config = json.loads(header["__metadata__"]["config"])
        _change(config, rng)
        header["__metadata__"]["config"] = json.dumps(config)
        if rng.random() < 0.1:
            header["__metadata__"]["config"] = "[" * 100_000
        text = json.dumps(header).encode()
        changed = struct.pack("<Q", len(text)) + text + content[8 + length :]
    (folder / "bad.safetensors").write_bytes(changed)
    try:
        _, _, params = read_params(folder / "bad.safetensors", verify=True)
    except CheckpointError as error:
        assert str(error)
        return REFUSED
    _, _, expected = read_params(good)
    flat = dict(checkpoint.flatten(expected))
    assert all(np.array_equal(leaf, flat[name]) for name, leaf in checkpoint.flatten(params))
    return RIGHT


def _change(node: Any, rng: Rng) -> None:
    """One value somewhere within becomes another."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = keys[rng.integers(len(keys))]
    if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
        _change(node[key], rng)
    else:
        odd = [0, -1, 1, 2**40, 10**7, 1.5, math.nan, "x", None, [], {}, True, [10**7] * 3, 64]
        node[key] = odd[rng.integers(len(odd))]


# Pictures and annotations


def pictures(rng: Rng, folder: Path) -> str:
    """Bytes of pictures of several formats."""
    formats = ["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "WEBP"]
    kind = formats[rng.integers(len(formats))]
    modes = {"GIF": ["P", "L"], "PPM": ["RGB", "L"], "JPEG": ["RGB", "L", "CMYK"], "WEBP": ["RGB", "RGBA"]}
    mode = rng.choice(modes.get(kind, ["RGB", "L", "RGBA", "P", "1"] if kind != "BMP" else ["RGB", "L", "P"]))
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).convert(mode).save(
        file, kind
    )
    (folder / "picture").write_bytes(flip(file.getvalue(), rng))
    try:
        image = transforms.load_image(folder / "picture", max_pixels=10_000)
    except ValueError as error:
        assert "picture" in str(error)
        return REFUSED
    transforms.check_image(image)
    return RIGHT


def shards(rng: Rng, folder: Path) -> str:
    """Bytes of a tar in SA-1B's layout, and of the annotations in it."""
    image, masks = photo_and_masks(0)
    text = annotations(image.shape[:2], *masks)
    if rng.random() < 0.5:
        text = flip(text, rng)
    write_tar(folder / "shard.tar", {"sa_1.jpg": jpeg(image), "sa_1.json": text})
    if rng.random() < 0.5:
        (folder / "shard.tar").write_bytes(flip((folder / "shard.tar").read_bytes(), rng))
    for index in folder.glob("*.npz"):
        index.unlink()
    try:
        record = open_source(folder / "shard.tar")[0]
        found = read_annotations(record.annotations, image.shape[:2])
    except (ValueError, OSError) as error:
        assert str(error)
        return REFUSED
    assert all(counts.sum() == image.shape[0] * image.shape[1] for counts in found)
    return RIGHT


KINDS: dict[str, Case] = {
    case.__name__: case for case in (prompts, prompt_files, torch_files, own_files, pictures, shards)
}


@dataclasses.dataclass
class Outcome:
    """What cases of a kind ended in."""

    right: int = 0
    refused: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)


def run(kind: str, count: int, seed: int, folder: Path) -> Outcome:
    """So many cases; each has a generator of its own, so that one can be run again."""
    outcome = Outcome()
    for number in range(count):
        rng = np.random.default_rng([seed, number, sum(map(ord, kind))])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ended = KINDS[kind](rng, folder)
            outcome.right += ended == RIGHT
            outcome.refused += ended == REFUSED
        except Exception as error:
            outcome.faults.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:200]}")
    return outcome
