"""The reader of PyTorch's files against PyTorch's own, and what it refuses."""

import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from repvit_sam_jax import CheckpointError
from repvit_sam_jax.weights.formats.reading import read_official
from repvit_sam_jax.weights.formats.state_dict import read_state_dict

pytestmark = pytest.mark.torch


def rewrite(source, target, changes, **options):
    """A copy of a zip file in which some records are replaced; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            name = info.filename.partition("/")[2]
            content = changes.get(name, old.read(info))
            if content is not None:
                new.writestr(info.filename, content, **(options if name == "data.pkl" else {}))
    return target


def saved(tmp_path, content, name="source.pt", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
TYPES += [torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn]


@pytest.mark.parametrize("big_endian", [False, True])
def test_equals_torch(tmp_path, monkeypatch, big_endian):
    """All types, views that share a storage, strides, offsets, no axes and no elements."""
    base = torch.arange(48.0).reshape(6, 8) - 20
    state = {str(dtype): (base / 3).to(dtype) for dtype in TYPES}
    state |= {
        "transposed": base.t(),
        "part": base[2:5, 1::3],
        "expanded": base[0, :1].expand(7, 3),
        "scalar": base[1, 1],
    }
    state |= {"empty": torch.zeros(0, 4), "parameter": torch.nn.Parameter(base), "ordered": base.clone()}
    path = saved(tmp_path, state)
    if big_endian:
        with zipfile.ZipFile(path) as archive:
            sizes = {"0": 4, "1": 8, "2": 2, "3": 2, "4": 8, "5": 4, "6": 2, "7": 1, "8": 1, "9": 1, "10": 4, "11": 8}
            sizes |= {"12": 2, "13": 1}
            swapped = {
                f"data/{key}": np.frombuffer(archive.read(f"source/data/{key}"), f"u{size}").byteswap().tobytes()
                for key, size in sizes.items()
            }
            swapped |= {
                name.partition("/")[2]: np.frombuffer(archive.read(name), "u4").byteswap().tobytes()
                for name in archive.namelist()
                if re.search(r"/data/\d+$", name) and name.rpartition("/")[2] not in sizes
            }
        path = rewrite(path, tmp_path / "big.pt", {**swapped, "byteorder": b"big"})
    found = read_state_dict(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        wide = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()
        assert found[name].shape == wide.shape
        np.testing.assert_array_equal(found[name].astype(wide.dtype), wide, err_msg=name)


def test_nothing_is_copied(tmp_path):
    """A tensor of 2 GB as PyTorch would expand it, and its file of a kilobyte."""
    path = saved(tmp_path, {"wide": torch.ones(1, dtype=torch.float16).expand(2**15, 2**15)})
    found = read_state_dict(path)["wide"]
    assert found.shape == (2**15, 2**15)
    assert found.strides == (0, 0)
    assert not found.flags.writeable


# Damage
@pytest.fixture
def good(tmp_path):
    return saved(tmp_path, {"first": torch.arange(6.0).reshape(2, 3), "second": torch.ones(4)}, "good.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data/0": b""}, r"tensor first: its record good/data/0 has 0 bytes, expected 24"),
        ({"data/1": bytes(17)}, r"tensor second: its record good/data/1 has 17 bytes, expected 16"),
        ({"data/1": None}, r"tensor second: its record good/data/1 is missing"),
        ({"data.pkl": None}, r"not a PyTorch checkpoint.*0 records called data\.pkl"),
        ({"data.pkl": b""}, r"not a PyTorch checkpoint"),
        ({"data.pkl": b"\x80\x02."}, r"not a PyTorch checkpoint"),
        ({"data.pkl": pickle.dumps([1], 2)[:-1]}, r"not a PyTorch checkpoint"),
        ({"data.pkl": pickle.dumps({"a": {1, 2}}, 4)}, r"was refused.*a \(set\)"),
        ({"data.pkl": pickle.dumps({"a": frozenset([1])}, 4)}, r"was refused.*a \(frozenset\)"),
        ({"data.pkl": pickle.dumps({"a": bytearray(3)}, 5)}, r"holds more than tensors: a \(bytearray\)"),
        ({"data.pkl": b"\x80\x02\x82\x01."}, r"not a PyTorch checkpoint"),  # EXT1, an object by its number
    ],
)
def test_damaged_records(good, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(rewrite(good, tmp_path / "bad.pt", changes))


def test_every_flipped_byte_of_a_record_is_noticed(good, tmp_path):
    content = good.read_bytes()
    values = np.arange(6, dtype=np.float32).tobytes()
    start = content.index(values)
    for i in range(len(values)):
        flipped = bytearray(content)
        flipped[start + i] ^= 1 << (i % 8)
        (tmp_path / "flipped.pt").write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"tensor first: the record good/data/0 is damaged: its CRC-32"):
            read_state_dict(tmp_path / "flipped.pt")


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, {"a": torch.arange(3.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_state_dict(path)["a"], [0, 1, 2])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x02K\x03\x86", b"K\x09K\x03\x86", "it reaches to number 26 of a record of 6"),
        (b"K\x00K\x02K\x03\x86", b"K\x09K\x02K\x03\x86", "it reaches to number 14 of a record of 6"),
        (b"K\x03K\x01\x86", b"K\x7fK\x01\x86", "it reaches to number 129 of a record of 6"),
        (b"K\x03K\x01\x86", b"N)\x86\x30)", "damaged|do not fit"),
        (b"torch\nFloatStorage", b"torch\nOddStorage", "a storage of an unknown type, torch.OddStorage"),
        (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00starage", "refers to something that is no storage"),
    ],
)
def test_tensors_that_are_not_in_their_record(good, tmp_path, old, new, message):
    with zipfile.ZipFile(good) as archive:
        pickled = archive.read("good/data.pkl")
    assert old in pickled
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(rewrite(good, tmp_path / "bad.pt", {"data.pkl": pickled.replace(old, new, 1)}))


def test_compressed_pickle(good, tmp_path):
    """A few kilobytes may be gigabytes."""
    bomb = b"\x80\x02" + b"(" * 2**20 + b"."
    path = rewrite(good, tmp_path / "bomb.pt", {"data.pkl": bomb}, compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"the record good/data\.pkl is compressed"):
        read_state_dict(path)


def test_large_pickle(good, tmp_path, monkeypatch):
    monkeypatch.setattr("repvit_sam_jax.weights.formats.torch_file.LARGEST_PICKLE", 100)
    with pytest.raises(CheckpointError, match=r"its pickle has .* bytes, more than 100"):
        read_state_dict(good)


# What is no state dict of plain tensors
class Trainer:
    def __init__(self):
        self.weights = torch.ones(3)


def test_program_and_modules(good, tmp_path):
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr("good/code/__torch__/net.py", "class Net: pass")
    with pytest.raises(CheckpointError, match=r"a TorchScript program; save its weights alone: torch\.save"):
        read_state_dict(good)
    with pytest.raises(CheckpointError, match=r"holds a torch\.nn\.modules\.linear\.Linear, not a state dict; save"):
        read_state_dict(saved(tmp_path, torch.nn.Linear(2, 2)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.empty(3, device="meta"), "on the device meta"),
        (lambda: torch._neg_view(torch.ones(3)), "a lazily negated or conjugated view"),
        (lambda: torch.ones(3, dtype=torch.complex64).conj(), "a lazily negated or conjugated view"),
    ],
)
def test_no_plain_arrays(tmp_path, make, problem):
    with pytest.raises(CheckpointError, match=rf"tensors that are not plain arrays: odd \({problem}"):
        read_state_dict(saved(tmp_path, {"plain": torch.ones(2), "odd": make()}))


def test_objects_beside_a_state_dict_do_no_harm(tmp_path):
    """Lightning and others keep arguments, callbacks and optimizers in the file."""
    content = {"state_dict": {"a": torch.ones(2)}, "trainer": Trainer(), "optimizer": {"state": {0: {"step": 3}}}}
    assert list(read_state_dict(saved(tmp_path, content))) == ["a"]


STATE = {"image_encoder.neck.0.weight": torch.ones(2), "mask_decoder.iou_token.weight": torch.zeros(3)}


def prefixed(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "ema": {}},
        {"state_dict": prefixed("model.")},
        prefixed("_orig_mod."),
        {"ema": STATE},
        {"model": {"arch": "vit", "depth": 12}, "state_dict": STATE},
        {"ema": {"module": STATE, "decay": 0.9}},
        {"n_averaged": torch.tensor(3), **prefixed("module.")},
        {"state_dict": prefixed("model._orig_mod.sam.")},
        {"image_encoder._orig_mod.neck.0.weight": torch.ones(2), "mask_decoder.iou_token.weight": torch.zeros(3)},
        {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "net": STATE, "epoch": 3},
    ],
)
def test_wrappers_and_prefixes(tmp_path, content):
    found = read_official(saved(tmp_path, content))
    assert sorted(found) == sorted(STATE)


def test_several_state_dicts(tmp_path):
    path = saved(tmp_path, {"ema": STATE, "student": {"net": prefixed("module.")}, "epoch": 3})
    with pytest.raises(CheckpointError, match=r"holds several state dicts: ema, student\.net; choose one with --key"):
        read_state_dict(path)
    for key in ("ema", "student.net"):
        assert sorted(read_official(path, key)) == sorted(STATE)
    with pytest.raises(CheckpointError, match=r"has no state dict 'best'; it holds ema, student\.net"):
        read_state_dict(path, "best")


def test_a_prefix_that_all_keys_share_is_kept_if_it_is_known(tmp_path):
    """An encoder alone, as some publish it."""
    for prefix in ("", "vision_encoder.encoder."):
        state = prefixed(prefix, {key: value for key, value in STATE.items() if key.startswith("image_encoder")})
        assert list(read_official(saved(tmp_path, state))) == list(state)


def test_a_dict_that_holds_itself(good, tmp_path):
    content: dict = {"a": {}}
    content["a"]["b"] = content
    with pytest.raises(CheckpointError, match="holds more than tensors: a"):
        read_state_dict(rewrite(good, tmp_path / "bad.pt", {"data.pkl": pickle.dumps(content, 2)}))
