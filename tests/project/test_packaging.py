"""The wheel, used outside the checkout: library, converter and weights are there, and nothing of a generic name."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from repvit_sam_jax import PRESETS
from repvit_sam_jax.weights import checkpoint
from tests.helpers.photos import jpeg, photo_and_masks
from tests.helpers.processes import ROOT

FOLDERS = ("repvit_sam_jax", "convert", "train")
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore")
PAGE = "convert/export/page"
DEMO = "repvit_sam_jax/weights/demo.safetensors"


@pytest.fixture(scope="module")
def checkout(tiny_train, tmp_path_factory):
    """A copy of what matters, with weights of the tiny preset as the demonstration model's."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    tools = folder / "convert" / "export" / "page" / "node_modules"
    tools.mkdir()
    (tools / "tool.js").touch()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    checkpoint.save(folder / DEMO, tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"), "bfloat16")
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(checkout),
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
    ]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"repvit_sam_jax"}
    assert "repvit_sam_jax/py.typed" in names
    assert DEMO in names
    assert "repvit_sam_jax/convert/torch_models/sam.py" in names
    assert "repvit_sam_jax/convert/export/coreml.py" in names
    assert "repvit_sam_jax/inference/onnx.py" in names
    site = {path.name for path in (ROOT / PAGE / "site").iterdir()}
    packed = {name.partition(f"{PAGE}/")[2] for name in names if PAGE in name}
    assert packed == {"package-lock.json", *(f"site/{name}" for name in site)}
    assert {"repvit_sam_jax/app/page.css", "repvit_sam_jax/app/stage.js"} <= set(names)
    assert "repvit_sam_jax/train/loop.py" in names
    info = next(top for top in tops if top.endswith(".dist-info"))
    assert f"{info}/licenses/LICENSE" in names
    assert f"{info}/licenses/NOTICE" in names


def test_contents_of_the_source_distribution(checkout, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {DEMO, "convert/to_torch.py", "train/loop.py", "LICENSE", "NOTICE"} <= names


def run_outside(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, timeout=300)


OUTSIDE = """
import repvit_sam_jax as r
from repvit_sam_jax.cli import main
print(r.__file__)

main(["convert", "synthetic", "tiny.pt", "--preset", "tiny"])
main(["convert", "from-torch", "tiny.pt", "tiny.safetensors"])
main(["train", "recipes"])
for name in ("tiny.safetensors", "demo"):
    print(r.load(name)[0].config.name)
import repvit_sam_jax.convert.export.stablehlo
import repvit_sam_jax.convert.parity
print(r.load("tiny.pt")[0].config.name)
"""


@pytest.mark.torch
def test_used_outside_the_checkout(wheel, tmp_path):
    """The command's convert and train, and `load`, work from the unpacked wheel, here in one process."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = run_outside(tmp_path, "-c", OUTSIDE)
    where, made, converted, *recipes_and_loaded = done.stdout.splitlines()
    assert where.startswith(str(tmp_path)), done.stderr
    assert made.startswith("wrote tiny.pt")
    assert converted.startswith("wrote tiny.safetensors: tiny, train form")
    assert "smoke: tiny, prompts in the loop" in recipes_and_loaded, done.stderr
    assert recipes_and_loaded[-3:] == ["tiny", "tiny", "tiny"], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.torch
@pytest.mark.slow(group="use")
def test_commands_outside_the_checkout(wheel, tmp_path):
    """Each in a process of its own, with an export."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    where = run_outside(tmp_path, "-c", "import repvit_sam_jax; print(repvit_sam_jax.__file__)")
    assert where.stdout.strip().startswith(str(tmp_path)), where.stderr
    made = run_outside(tmp_path, "-m", "repvit_sam_jax.convert", "synthetic", "tiny.pt", "--preset", "tiny")
    assert made.returncode == 0, made.stderr
    done = run_outside(tmp_path, "-m", "repvit_sam_jax.convert", "from-torch", "tiny.pt", "tiny.safetensors")
    assert done.returncode == 0, done.stderr
    load = "import repvit_sam_jax as r; model, params = r.load('tiny.safetensors'); print(model.config.name)"
    assert run_outside(tmp_path, "-c", load).stdout.strip() == "tiny"
    assert run_outside(tmp_path, "-c", load.replace("tiny.safetensors", "demo")).stdout.strip() == "tiny"
    exported = run_outside(
        tmp_path, "-m", "repvit_sam_jax.convert", "stablehlo", "tiny.pt", "--out", "tiny.hlo", "--platforms", "cpu"
    )
    assert "comparisons within tolerance" in exported.stdout, exported.stderr
    (tmp_path / "photo.jpg").write_bytes(jpeg(photo_and_masks(0)[0]))
    segmented = run_outside(tmp_path, "-m", "repvit_sam_jax.cli", "segment", "photo.jpg", "--point", "20,30")
    assert segmented.returncode == 0, segmented.stderr
    assert (tmp_path / "mask.png").is_file()
    drawn = ("scenes", "some", "--count", "8", "--size", "64")
    scenes = run_outside(tmp_path, "-m", "repvit_sam_jax.cli", "train", *drawn)
    assert scenes.returncode == 0, scenes.stderr
    given = ("distill", "smoke", "run", "--data", "some", "--set", "steps=2", "image_size=64", "batch_size=2")
    trained = run_outside(tmp_path, "-m", "repvit_sam_jax.cli", "train", *given)
    assert trained.returncode == 0, trained.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_importing_the_package_alone_does_not_import_jax():
    code = "import repvit_sam_jax, sys; print('jax' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False False"


def test_importing_the_public_names_does_not_import_scipy():
    """A fifth of a second, for something that only `min_mask_region_area` needs."""
    names = "Sam, SamAutomaticMaskGenerator, SamPredictor, load, transforms"
    code = f"import jax, sys; from flax import nnx; known = set(sys.modules); from repvit_sam_jax import {names}"
    code += "; print(sorted(name for name in set(sys.modules) - known if name.split('.')[0] == 'scipy'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_names_of_version_0_1():
    """Modules that have moved are the same ones, with a word about where they are."""
    from repvit_sam_jax import _moved

    for old, new in sorted(_moved.MOVED.items()):  # a package before its modules
        name = f"repvit_sam_jax.{old}"
        sys.modules.pop(name, None)
        with pytest.warns(DeprecationWarning, match=rf"{re.escape(name)} is repvit_sam_jax\.{re.escape(new)} now"):
            module = importlib.import_module(name)
        assert module is importlib.import_module(f"repvit_sam_jax.{new}")
        assert module.__spec__.name == f"repvit_sam_jax.{new}"


def test_everything_promised_is_there():
    import repvit_sam_jax

    for name in repvit_sam_jax.__all__:
        assert getattr(repvit_sam_jax, name) is not None
    assert set(repvit_sam_jax.__all__) <= set(dir(repvit_sam_jax))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = repvit_sam_jax.nonsense
