import dataclasses
import json
import os
import pickle
import re
import shlex

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from safetensors.numpy import save_file  # noqa: E402

from convert import __main__ as command  # noqa: E402
from convert import synthetic  # noqa: E402
from convert.from_torch import from_torch, read_state_dict  # noqa: E402
from convert.to_torch import to_torch  # noqa: E402
from repvit_sam_jax import PRESETS, CheckpointError, checkpoint, load  # noqa: E402

TINY = PRESETS["tiny"]
NORM = "mask_decoder.transformer.norm_final_attn.weight"
LINEAR = "mask_decoder.iou_prediction_head.layers.0.weight"
TOKENS = "mask_decoder.mask_tokens.weight"


@pytest.fixture(scope="module")
def arrays():
    return synthetic.synthetic_state_dict(synthetic.manifest(TINY))


@pytest.fixture
def state(arrays):
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """The same weights in both forms and both formats."""
    folder = tmp_path_factory.mktemp("files")
    torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, folder / "train.pt")
    from_torch(folder / "train.pt", folder / "train.safetensors")
    from_torch(folder / "train.pt", folder / "deploy.safetensors", form="deploy")
    to_torch(folder / "deploy.safetensors", folder / "deploy.pt")
    return folder


@pytest.fixture
def convert(tmp_path):
    """Writes an object with torch.save and converts the file; returns the arrays and the metadata."""

    def run(content, **options):
        torch.save(content, tmp_path / "source.pt")
        from_torch(tmp_path / "source.pt", tmp_path / "target.safetensors", **options)
        return checkpoint.read(tmp_path / "target.safetensors")

    return run


@pytest.fixture
def rewrite(files, tmp_path):
    """Writes a variant of a good safetensors file."""

    def run(edit=dict, *, source="deploy", **metadata):
        found, about = checkpoint.read(files / f"{source}.safetensors")
        strings = {key: value for key, value in {**about.to_strings(), **metadata}.items() if value is not None}
        save_file(edit(found), tmp_path / "variant.safetensors", strings)
        return tmp_path / "variant.safetensors"

    return run


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


# Files that are no PyTorch checkpoint


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.999])
def test_truncated(files, tmp_path, fraction):
    whole = (files / "train.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(CheckpointError, match=r"cut\.pt is not a PyTorch checkpoint, or it is truncated"):
        read_state_dict(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"hello world\n",
        b"a text file\n",
        b"just some words, and some more of them\n",
        b"quite another text\nwith two lines\n",
        b"G",
        b"<!DOCTYPE html><html><body>404</body></html>\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b'{"message": "Not Found"}',
    ],
)
def test_text_file(tmp_path, content):
    (tmp_path / "text.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"text\.pt.* no(t a)? PyTorch checkpoint"):
        read_state_dict(tmp_path / "text.pt")


def test_empty_file(tmp_path):
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CheckpointError, match=r"empty\.pt is not a PyTorch checkpoint"):
        read_state_dict(tmp_path / "empty.pt")


@pytest.mark.parametrize("path", ["missing.pt", "."])
def test_no_file(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no checkpoint at {tmp_path / path}")):
        read_state_dict(tmp_path / path)


def test_old_format_is_read(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_state_dict(tmp_path / "old.pt")["a"], np.arange(3, dtype=np.float32))


def test_old_format_with_damaged_storage_keys(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pt").read_bytes()
    key = re.search(rb"\d{8,}", content)[0]
    (tmp_path / "old.pt").write_bytes(content.replace(key, b"x" * len(key), 1))
    with pytest.raises(CheckpointError, match=r"old\.pt"):
        read_state_dict(tmp_path / "old.pt")


class Foreign:
    pass


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_object(tmp_path, zipped):
    content = {"weight": torch.zeros(2), "trainer": Foreign()}
    torch.save(content, tmp_path / "foreign.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"(?s)foreign\.pt was refused.*save the state_dict alone"):
        read_state_dict(tmp_path / "foreign.pt")


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_nothing_is_executed(tmp_path, form):
    content = {"weight": torch.zeros(2), "payload": Command(tmp_path / "executed")}
    if form == "pickle":
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content["payload"], protocol=2))
    else:
        torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.pt was refused"):
        read_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([torch.zeros(2)], "list"),
        (3, "int"),
        (None, "NoneType"),
        (torch.zeros(2), "Tensor"),
        ({1: torch.zeros(2)}, "dict"),
    ],
)
def test_content_is_no_state_dict(convert, content, kind):
    with pytest.raises(CheckpointError, match=rf"source\.pt holds an? {kind}, not a state dict"):
        convert(content)


def test_values_are_no_tensors(convert):
    with pytest.raises(CheckpointError, match=r"more than tensors: epoch \(int\), name \(str\), rates \(list\)$"):
        convert({"weight": torch.zeros(2), "epoch": 3, "name": "x", "rates": [0.1]})


@pytest.mark.parametrize("content", [{}, {"model": {}}])
def test_empty_state_dict(convert, content):
    with pytest.raises(CheckpointError, match="none at all"):
        convert(content)


# Unusual files that are fine


def prefixed(state):
    return {f"module.{key}": value for key, value in state.items()}


WRAPPERS = {
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "optimizer": {"lr": 0.1}},
    "module": prefixed,
    "module in model": lambda state: {"model": prefixed(state)},
    "module in state_dict in model": lambda state: {"model": {"state_dict": prefixed(state)}, "epoch": 3},
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped(files, convert, state, name):
    found, metadata = convert(WRAPPERS[name](state))
    expected, _ = checkpoint.read(files / "train.safetensors")
    assert_same(found, expected)
    assert (metadata.config, metadata.form) == (TINY, "train")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast_exactly(tmp_path, convert, state, dtype):
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    torch.save(half, tmp_path / "half.pt")
    expected = {key: value.to(torch.float64).numpy() for key, value in half.items()}
    found = read_state_dict(tmp_path / "half.pt")
    assert all(found[key].dtype == (np.float32 if half[key].is_floating_point() else np.int64) for key in half)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key].astype(np.float64), value, err_msg=key)
    converted, _ = convert(half)
    from_float32, _ = convert({key: torch.from_numpy(value) for key, value in found.items()})
    assert_same(converted, from_float32)


def test_float64_is_rounded(tmp_path, state):
    torch.save({NORM: state[NORM].double() + 1e-12}, tmp_path / "double.pt")
    found = read_state_dict(tmp_path / "double.pt")[NORM]
    np.testing.assert_array_equal(found, state[NORM].numpy(), strict=True)


def test_parameters_are_tensors(files, convert, state):
    found, _ = convert({**state, NORM: torch.nn.Parameter(state[NORM])})
    expected, _ = checkpoint.read(files / "train.safetensors")
    assert_same(found, expected)


# Tensors that do not fit


def test_every_problem_is_in_one_message(convert, state):
    del state[NORM]
    state["mask_decoder.extra.weight"] = torch.zeros(5)
    state[LINEAR] = state[LINEAR][:-1]
    state[TOKENS] = state[TOKENS] * np.nan
    with pytest.raises(CheckpointError) as caught:
        convert(state)
    message = str(caught.value)
    shape = tuple(state[LINEAR].shape)
    assert "state dict of tiny (train form): 4 problem(s)" in message
    assert f"missing: {NORM} (32,)" in message
    assert "unexpected: mask_decoder.extra.weight (5,)" in message
    assert f"wrong shape: {LINEAR} is {shape}, expected {(shape[0] + 1, shape[1])}" in message
    assert f"NaN or infinite: {TOKENS}" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_is_not_finite(convert, state, value):
    state[LINEAR] = state[LINEAR].clone()
    state[LINEAR][0, 1] = value
    with pytest.raises(CheckpointError, match=rf"1 problem\(s\)\s+NaN or infinite: {LINEAR}$"):
        convert(state)


def test_float64_beyond_float32(convert, state):
    with pytest.raises(CheckpointError, match=rf"NaN or infinite: {NORM}$"):
        convert({**state, NORM: state[NORM].double() * 1e300})


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_a_weight_is_no_real_number(convert, state, dtype):
    with pytest.raises(CheckpointError, match=NORM):
        convert({**state, NORM: state[NORM].to(dtype)})


def test_a_weight_is_sparse(convert, state):
    with pytest.raises(CheckpointError, match=LINEAR):
        convert({**state, LINEAR: state[LINEAR].to_sparse()})


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("image_encoder.stages.0.weight", "another SAM-like model"),
        ("encoder.weight", r"unknown here \(its first keys: encoder\.weight"),
    ],
)
def test_other_family(convert, state, key, family):
    # What the families share with RepViT-SAM must not mislead.
    parts = ("mask_decoder.", "image_encoder.neck.") if key.startswith("image_encoder.") else "mask_decoder."
    shared = {k: v for k, v in state.items() if k.startswith(parts)}
    with pytest.raises(
        CheckpointError, match=rf"source\.pt: these are the weights of .*{family}.*, which this converter does not know"
    ):
        convert({key: torch.zeros(3, 3), **shared})


def test_preset_contradicts_the_file(convert, state):
    with pytest.raises(CheckpointError, match="these are weights of tiny, not of repvit_sam_m0_9"):
        convert(state, preset="repvit_sam_m0_9")


def test_unknown_preset(convert, state):
    with pytest.raises(CheckpointError, match=r"unknown preset 'nano'; known presets: repvit_sam, .*tiny"):
        convert(state, preset="nano")


def test_image_size_is_no_multiple_of_16(convert, state):
    with pytest.raises(ValueError, match="image_size must be a positive multiple of 16, got 100"):
        convert(state, image_size=100)


def test_unknown_form(files, tmp_path):
    with pytest.raises(ValueError, match=r"form .*'fused'"):
        from_torch(files / "train.pt", tmp_path / "target.safetensors", form="fused")
    with pytest.raises(ValueError, match=r"form .*'fused'"):
        to_torch(files / "train.safetensors", tmp_path / "target.pt", form="fused")
    assert not list(tmp_path.iterdir())


def test_fused_checkpoint_can_not_become_the_training_form(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"deploy\.pt: the checkpoint is fused"):
        from_torch(files / "deploy.pt", tmp_path / "target.safetensors", form="train")
    assert not list(tmp_path.iterdir())


# What a failure leaves behind


def failing_source(name, files, state, tmp_path):
    source = tmp_path / "source.pt"
    if name == "truncated":
        source.write_bytes((files / "train.pt").read_bytes()[:5000])
    elif name == "nan":
        torch.save({**state, NORM: state[NORM] * np.nan}, source)
    elif name == "missing key":
        torch.save({key: value for key, value in state.items() if key != NORM}, source)
    else:
        source.write_bytes((files / "train.pt").read_bytes())
    return source


@pytest.mark.parametrize("older", [None, b"older"])
@pytest.mark.parametrize("name", ["truncated", "nan", "missing key", "preset", "disk full"])
def test_failed_conversion_leaves_nothing(files, state, tmp_path, monkeypatch, name, older):
    source = failing_source(name, files, state, tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "target.safetensors"
    if older:
        target.write_bytes(older)
    if name == "disk full":

        def write_a_part(arrays, path, metadata):
            path.write_bytes(b"part")
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", write_a_part)
    with pytest.raises((CheckpointError, OSError)):
        from_torch(source, target, preset="nano" if name == "preset" else None)
    assert [path.name for path in target.parent.iterdir()] == (["target.safetensors"] if older else [])
    assert not older or target.read_bytes() == older


def test_target_is_a_folder(files, tmp_path):
    (tmp_path / "target.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"target\.safetensors"):
        from_torch(files / "train.pt", tmp_path / "target.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["target.safetensors"]


@pytest.mark.parametrize("older", [None, b"older"])
def test_failed_conversion_to_torch_leaves_nothing(files, tmp_path, monkeypatch, older):
    if older:
        (tmp_path / "target.pt").write_bytes(older)

    def write_a_part(state, path):
        path.write_bytes(b"part")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", write_a_part)
    with pytest.raises(OSError, match="No space left"):
        to_torch(files / "train.safetensors", tmp_path / "target.pt")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([older] if older else [])


# load and to-torch


@pytest.mark.parametrize("name", ["sam.pt", "sam.pth", "my weights.pt"])
def test_load_of_a_pytorch_file_names_the_command(files, tmp_path, monkeypatch, capsys, name):
    source = tmp_path / name
    source.write_bytes((files / "train.pt").read_bytes())
    with pytest.raises(CheckpointError, match="is a PyTorch checkpoint; convert it once") as caught:
        load(source)
    program, *arguments = shlex.split(str(caught.value).split("\n")[1])
    target = str(source.with_suffix(".safetensors"))
    assert [program, *arguments] == ["python", "-m", "convert", "from-torch", str(source), target]
    monkeypatch.setattr("sys.argv", arguments[1:])
    command.main()
    load(target)


def test_load_of_a_pytorch_file_under_another_name(files, tmp_path):
    (tmp_path / "sam.safetensors").write_bytes((files / "train.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"sam\.safetensors is not a safetensors file"):
        load(tmp_path / "sam.safetensors")


@pytest.mark.parametrize("path", ["missing.safetensors", "."])
def test_load_without_a_file(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no checkpoint at {tmp_path / path}")):
        load(tmp_path / path)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_load_of_a_truncated_file(files, tmp_path, keep):
    (tmp_path / "cut.safetensors").write_bytes((files / "deploy.safetensors").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a safetensors file, or it is truncated"):
        load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_load_of_a_foreign_file(tmp_path, metadata):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors can't be loaded.*not written by this library"):
        load(tmp_path / "foreign.safetensors")


def config(**changes):
    values = json.loads(json.dumps(dataclasses.asdict(TINY)))
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        config(image_size=100),
        config(image_size="128"),
        config(more=1),
        config(image_encoder=None),
        config(image_encoder__channels=None),
        config(image_encoder__channels=[8, 16]),
        config(image_encoder__channels=[0, 16, 24, 32]),
        config(image_encoder__channels=["8", "16", "24", "32"]),
        config(mask_decoder__num_heads=0),
        config(mask_decoder__num_heads=3),
    ],
)
def test_load_with_a_damaged_config(rewrite, text):
    with pytest.raises(CheckpointError, match=r"variant\.safetensors"):
        load(rewrite(config=text))


@pytest.mark.parametrize(("field", "value"), [("form", "fused"), ("form", None), ("config", None), ("converter", None)])
def test_load_with_damaged_metadata(rewrite, field, value):
    with pytest.raises(
        CheckpointError, match=rf"variant\.safetensors can't be loaded: its metadata are damaged.*{field}"
    ):
        load(rewrite(**{field: value}))


def test_load_lists_all_that_is_wrong(rewrite):
    def edit(arrays):
        first, second, third, *_ = arrays
        del arrays[first]
        arrays[second] = np.zeros((1, 2, 3), np.float32)
        arrays[third] = arrays[third] * np.float32("nan")
        edit.names = first, second, third
        return {**arrays, "extra": np.zeros(2, np.float32)}

    path = rewrite(edit)
    with pytest.raises(CheckpointError, match=r"variant\.safetensors \(tiny, deploy form\): 4 problem\(s\)") as caught:
        load(path)
    first, second, third = edit.names
    for line in (
        f"missing: {first} ",
        "unexpected: extra (2,)",
        f"wrong shape: {second} is (1, 2, 3), ",
        f"infinite: {third}",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_load_of_arrays_of_another_type(rewrite, dtype):
    name = "image_encoder/neck/conv1/kernel"
    path = rewrite(lambda arrays: {**arrays, name: arrays[name].astype(dtype)})
    with pytest.raises(CheckpointError, match=f"{name}.*{np.dtype(dtype).name}"):
        load(path)


def test_training_form_of_a_deploy_file(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"deploy\.safetensors is in deploy form"):
        load(files / "deploy.safetensors", form="train")
    with pytest.raises(CheckpointError, match=r"deploy\.safetensors is in deploy form"):
        to_torch(files / "deploy.safetensors", tmp_path / "target.pt", form="train")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["train", "deploy"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "fused"}, "form must be one of train, deploy, got 'fused'"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
        ({"image_size": 100}, "image_size must be a positive multiple of 16, got 100"),
    ],
)
def test_load_with_bad_arguments(files, source, options, message):
    with pytest.raises(ValueError, match=message):
        load(files / f"{source}.safetensors", **options)


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_to_torch_lists_all_that_is_wrong(rewrite, tmp_path, form):
    def edit(arrays):
        edit.names = [name for name in arrays if name.startswith("batch_stats/")][:2]
        return {name: value for name, value in arrays.items() if name not in edit.names}

    path = rewrite(edit, source="train")
    with pytest.raises(CheckpointError, match=r"\(tiny, train form\): 2 problem\(s\)") as caught:
        to_torch(path, tmp_path / "target.pt", form=form)
    assert all(f"missing: {name}" in str(caught.value) for name in edit.names)
    assert not (tmp_path / "target.pt").exists()


def test_to_torch_of_a_foreign_file(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors can't be loaded"):
        to_torch(tmp_path / "foreign.safetensors", tmp_path / "target.pt")


# python -m convert


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["from-torch", "missing.pt", "out.safetensors"], "error: no checkpoint at missing.pt\n"),
        (["from-torch", "text.pt", "out.safetensors"], "error: text.pt was refused"),
        (
            ["from-torch", "deploy.pt", "out.safetensors", "--form", "train"],
            "error: deploy.pt: the checkpoint is fused",
        ),
        (["from-torch", "deploy.pt", "out.safetensors", "--preset", "nano"], "error: deploy.pt: unknown preset 'nano'"),
        (["from-torch", "deploy.pt", "out.safetensors", "--image-size", "100"], "error: image_size must be"),
        (["from-torch", "deploy.pt", "text.pt/out.safetensors"], "error: "),
        (["to-torch", "missing.safetensors", "out.pt"], "error: no checkpoint at missing.safetensors\n"),
        (["to-torch", "text.pt", "out.pt"], "error: text.pt is not a safetensors file"),
        (
            ["to-torch", "deploy.safetensors", "out.pt", "--form", "train"],
            "error: deploy.safetensors is in deploy form",
        ),
        (["parity", "missing.pt"], "error: no checkpoint at missing.pt\n"),
        (["parity", "deploy.pt", "--image", "missing.jpg"], "error: no image at missing.jpg\n"),
        (["synthetic", "out.pt", "--preset", "nano"], "error: unknown preset 'nano'"),
    ],
)
def test_command_fails(files, tmp_path, monkeypatch, capsys, arguments, message):
    for name in ("deploy.pt", "deploy.safetensors"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    (tmp_path / "text.pt").write_text("import torch\n" * 20)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["convert", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
