"""A page that segments photos in the visitor's browser: ONNX files, a static site, and ONNX Runtime for the web."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.data.synthetic.scenes import render
from repvit_sam_jax.files import check_new_folder, new_folder, sha256
from repvit_sam_jax.inference import colours, rle
from repvit_sam_jax.inference.onnx import OnnxPredictor
from repvit_sam_jax.parts import write_json
from repvit_sam_jax.terminal import require
from repvit_sam_jax.transforms import PIXEL_MEAN, PIXEL_STD
from repvit_sam_jax.weights.hub import OFFLINE, DownloadError

from ..report import Report
from .onnx import PACKAGES, export_onnx
from .source import read_source

PAGE = Path(__file__).parent / "page"
PACKAGE = "onnxruntime-web"
RUNTIME = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""What the page loads of the package's folder `dist`: the first two on the processor, the others on a graphics one."""
EXAMPLE = (7, 3, (480, 640))
"""Seed, number and size of the synthetic scene that is the page's example."""


def export_web(weights: Path, out: Path, *, image_size: int | None = None, runtime: Path | None = None) -> Report:
    """Write a static site that runs the model in the visitor's browser, all or nothing.

    In the folder are the page, `model/encoder.onnx` and `model/decoder.onnx`, `runtime/` and `model.json`, which says
    what the page has to know of them.

    Args:
      weights: as `export_onnx`.
      out: a folder that is new or empty.
      image_size: as `export_onnx`.
      runtime: folder with the files `RUNTIME`; if not given they are taken from the npm package that `page`'s lock file
        pins, which is downloaded.

    Returns:
      The comparison of the ONNX files with the JAX model.

    Raises:
      ValueError: as `export_onnx`, the runtime's folder lacks a file, or the model is too large for a browser.
      DownloadError: the runtime could not be downloaded, or is another file than the lock file says.
      FileNotFoundError, CheckpointError, ExportError: as `export_onnx`.
    """
    require(*PACKAGES)
    check_new_folder(out, "--out")
    read_source(weights, image_size)  # what is wrong with it shall be said before anything is downloaded
    with new_folder(out) as folder:
        put_runtime(folder / "runtime", runtime)
        report = export_onnx(weights, folder / "model", image_size=image_size)
        if (folder / "model" / "encoder.onnx.data").exists():
            raise ValueError(f"{weights} has more than browsers can hold; export a smaller model, such as repvit_sam")
        shutil.copytree(PAGE / "site", folder, dirs_exist_ok=True)
        Image.fromarray(render(*EXAMPLE).image).save(folder / "example.jpg", quality=90)
        write_json(folder / "model.json", describe(folder))
        return report


def describe(folder: Path) -> dict[str, Any]:
    """What `model.json` says of the files in a folder."""
    predictor = OnnxPredictor(folder / "model")
    config = predictor.config
    return {
        "name": config.name,
        "image_size": config.image_size,
        "mask_threshold": config.mask_threshold,
        "mean": list(PIXEL_MEAN),
        "std": list(PIXEL_STD),
        "generator": vars(config.generator_defaults),
        **{part: _entry(folder, f"model/{part}.onnx") for part in ("encoder", "decoder")},
        "runtime": {"version": pinned()[0], "files": [_entry(folder, f"runtime/{name}") for name in RUNTIME]},
        "colours": colours.palette(colours.MOST).tolist(),
        "self_test": _self_test(predictor),
    }


def _entry(folder: Path, path: str) -> dict[str, Any]:
    return {"path": path, "bytes": (folder / path).stat().st_size, "sha256": sha256(folder / path)}


def _self_test(predictor: OnnxPredictor) -> dict[str, Any]:
    """The best mask of a point in the middle of `test_picture`.

    Its number in the decoder's output, and its runs at low resolution, row by row, outside first.
    """
    config: SamConfig = predictor.config
    side = config.image_size
    predictor.set_image(test_picture(side))
    _, iou, low_res = predictor.predict([[side / 2, side / 2]], [1], return_low_res_only=True)
    best = int(iou.argmax())
    counts = rle.mask_to_counts((low_res[best] > config.mask_threshold).T)
    return {"mask": best + 1, "counts": [int(count) for count in counts]}


def test_picture(side: int) -> UInt8[np.ndarray, "s s 3"]:
    """A disc on a slope of brightness, in whole numbers, as the page draws it."""
    y, x = np.mgrid[:side, :side]
    slope = np.stack([x * 128 // side, x * 128 // side, y * 128 // side], axis=-1)
    inside = (2 * x - side) ** 2 + (2 * y - side) ** 2 < (side / 2) ** 2
    return np.where(inside[..., None], (220, 120, 40), slope).astype(np.uint8)


def put_runtime(target: Path, given: Path | None = None) -> None:
    """Copy ONNX Runtime's files into a new folder, from one that is given or from the npm package.

    Raises:
      ValueError: the given folder lacks one of them.
      DownloadError: the package could not be downloaded, or is another than `pinned`.
    """
    target.mkdir(parents=True)
    if given is not None:
        if absent := [name for name in RUNTIME if not (given / name).is_file()]:
            raise ValueError(
                f"--runtime {given} has no {absent[0]}; give the folder dist of the npm package {PACKAGE} {pinned()[0]}"
            )
        for name in RUNTIME:
            shutil.copy(given / name, target)
        return
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(_download(Path(temporary))) as files:
        for name in RUNTIME:
            member = files.extractfile(f"package/dist/{name}")
            assert member is not None
            with member, (target / name).open("wb") as written:
                shutil.copyfileobj(member, written)


def pinned() -> tuple[str, str]:
    """Version of the npm package, and its integrity: `sha512-` and the digest in Base64."""
    entry = json.loads((PAGE / "package-lock.json").read_text())["packages"][f"node_modules/{PACKAGE}"]
    return entry["version"], entry["integrity"]


def _download(folder: Path) -> Path:
    """The package's archive, fetched by npm from the registry that it is set to."""
    version, integrity = pinned()
    what, help_ = f"{PACKAGE} {version}", "give --runtime DIR, the folder dist of the npm package"
    help_ = f"{help_} {what}"
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise DownloadError(f"{what} may not be fetched, for {OFFLINE} is set; {help_}")
    if (npm := shutil.which("npm")) is None:
        raise DownloadError(f"{what} is fetched by npm, which is not installed; install it, or {help_}")
    given = [npm, "pack", f"{PACKAGE}@{version}", "--pack-destination", str(folder), "--silent"]
    done = subprocess.run(given, capture_output=True, text=True)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DownloadError(f"{what} could not be fetched by npm ({reason}); {help_}")
    with archives[0].open("rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if integrity != f"sha512-{digest}":
        raise DownloadError(f"npm gave another file than was published as {what} (its hash differs); {help_}")
    return archives[0]
