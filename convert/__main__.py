"""`repvit-sam convert`: checkpoints between PyTorch and JAX, and their parity."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from repvit_sam_jax.config import Form, get_model_config
from repvit_sam_jax.terminal import errors_in_one_line

EXTRAS = {"onnx": "export", "coreml": "export", "litert": "litert"}
"""Commands that need more than the extra `convert`, which brings the first package that they miss."""

app = tyro.extras.SubcommandApp()
Source = Annotated[Path, tyro.conf.Positional]
Size = Annotated[int | None, tyro.conf.arg(aliases=["--resolution"])]  # its name in version 0.1


@app.command(name="from-torch")
def from_torch(
    source: Source,
    target: Source,
    *,
    preset: str | None = None,
    form: Form | None = None,
    image_size: int | None = None,
) -> None:
    """PyTorch checkpoint to safetensors of this library.

    Args:
      source: The .pt or .pth file, for example repvit_sam.pt.
      target: The .safetensors file to write.
      preset: Insist on this model; by default the keys tell.
      form: train keeps every branch, deploy fuses them; by default the source's.
      image_size: Input side in pixels that the file declares, if not the preset's.
    """
    from .from_torch import from_torch as convert

    metadata = convert(source, target, preset=preset, form=form, image_size=image_size)
    print(f"wrote {target}: {metadata.config.name}, {metadata.form} form, from SHA-256 {metadata.source_sha256}")


@app.command(name="to-torch")
def to_torch(source: Source, target: Source, *, form: Form | None = None) -> None:
    """Safetensors of this library to a PyTorch checkpoint.

    Args:
      source: The .safetensors file, or demo.
      target: The .pt file to write: the published names in training form, the fused twin's in deploy form.
      form: deploy fuses a training-form file; by default the source's.
    """
    from .to_torch import to_torch as convert

    written = convert(source, target, form=form)
    print(f"wrote {target}: {written} form")


@app.command(name="parity")
def parity(
    source: Source,
    *,
    image: Path | None = None,
    image_size: int | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Compare the JAX model with PyTorch stage by stage; exit code 1 past tolerance.

    Args:
      source: A PyTorch checkpoint, a .safetensors file of this library, or demo.
      image: A photo; a synthetic image by default.
      image_size: Input side in pixels, if not the preset's.
      as_json: Print JSON in place of the table.
    """
    from repvit_sam_jax.transforms import load_image

    from .parity import parity as compare

    report = compare(source, None if image is None else load_image(image), image_size)
    print(json.dumps(report.to_dict(), indent=1) if as_json else report.to_text())
    if not report.passed:
        raise SystemExit(1)


@app.command(name="backbone")
def backbone(source: Source, target: Source, *, into: str = "repvit_sam", seed: int = 0) -> None:
    """Initialise a segmenter's image encoder from an ImageNet classifier, for distillation.

    Args:
      source: An official classifier, for example repvit_m2_3_distill_450e.pth.
      target: The .safetensors file to write, in training form.
      into: The segmenter.
      seed: For neck, prompt encoder and mask decoder, which are new and random.
    """
    from .backbone import backbone as transfer

    print(transfer(source, target, into=into, seed=seed).to_text())
    print(f"wrote {target}")


@app.command(name="download")
def download(
    target: tyro.conf.Positional[Path | None] = None,
    *,
    preset: str = "repvit_sam",
    url: str | None = None,
    sha256: str | None = None,
) -> None:
    """Fetch a published checkpoint.

    Args:
      target: The file to write; by default the published name, in weights/.
      preset: The model, also mobile_sam, vit_h, repvit_m2_3_distill and others.
      url: Another address.
      sha256: Insist on this digest. Most publishers state none.
    """
    from .download import download as fetch
    from .download import file_name, published_url

    path = target or Path("weights") / file_name(preset)
    if path.is_file() and sha256 is None:
        print(f"{path} was there and is not fetched again; remove it if it is to be", file=sys.stderr)
    digest = fetch(path, url=url or published_url(preset), expected_sha256=sha256)
    print(f"{path}: SHA-256 {digest}" + ("" if sha256 else " (computed; none was given to compare with)"))


@app.command(name="synthetic")
def synthetic(target: Source, *, preset: str = "repvit_sam", seed: int = 0) -> None:
    """Write a checkpoint of the published format with RANDOM weights, for trying things out without the real one.

    Args:
      target: The .pt file to write.
      preset: The model.
      seed: Where the random numbers begin.
    """
    from .synthetic import write

    write(target, get_model_config(preset), seed)
    print(f"wrote {target}: {preset} with random weights, seed {seed}")


@app.command(name="onnx")
def onnx(weights: Source, *, out: Path, image_size: Size = None, full_size: bool = False) -> None:
    """Image encoder and mask decoder as ONNX files, checked in ONNX Runtime against JAX.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty, for encoder.onnx and decoder.onnx.
      image_size: Side of the input square in pixels, if not the checkpoint's.
      full_size: A decoder that also gives masks at the photo's size.
    """
    from .export.onnx import export_onnx

    print(export_onnx(weights, out, image_size=image_size, full_size=full_size).to_text())
    print(f"wrote {out}/encoder.onnx, decoder.onnx")


@app.command(name="coreml")
def coreml(
    weights: Source,
    *,
    out: Path,
    image_size: Size = None,
    precision: Literal["float16", "float32"] = "float16",
    target: Literal["iOS16", "iOS17", "iOS18"] = "iOS17",
    compress: Literal["int8", "palette6"] | None = None,
    input_type: Annotated[Literal["image", "array"], tyro.conf.arg(name="input")] = "image",
) -> None:
    """Image encoder and mask decoder as Core ML packages, read back and checked against JAX; needs no Mac.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty, for encoder.mlpackage and decoder.mlpackage.
      image_size: Side of the input square in pixels, if not the checkpoint's.
      precision: The arithmetic's.
      target: The oldest system that is to run them.
      compress: Weights as 8-bit integers, or as 6-bit indices into a palette a tensor.
      input_type: The encoder takes an 8-bit image, or an array of numbers.
    """
    from .export.coreml import export_coreml, summary

    given: dict[str, Any] = {"precision": precision, "target": target, "compress": compress, "input_type": input_type}
    print(export_coreml(weights, out, image_size=image_size, **given).to_text())
    print(f"wrote to {out}\n{summary(out)}")


@app.command(name="litert")
def litert(weights: Source, *, out: Path, image_size: Size = None) -> None:
    """Image encoder and mask decoder as LiteRT files for Android, checked in LiteRT against JAX.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty, for encoder.tflite and decoder.tflite.
      image_size: Side of the input square in pixels, if not the checkpoint's.
    """
    from .export.litert import export_litert

    print(export_litert(weights, out, image_size=image_size).to_text())
    print(f"wrote {out}/encoder.tflite, decoder.tflite")


@app.command(name="stablehlo")
def stablehlo(
    weights: Source,
    *,
    out: Path,
    platforms: str = "cpu,cuda,tpu",
    function: Literal["segment", "encode", "decode"] = "segment",
    image_size: Size = None,
) -> None:
    """A function with its weights as a jax.export artifact, for any number of images; loading it needs only JAX.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: The file to write.
      platforms: What it is to run on, of cpu, cuda, rocm and tpu, joined by commas.
      function: Images and prompts to masks; or a half of that, images to embeddings, or embeddings and prompts to
        masks.
      image_size: Side of the input square in pixels, if not the checkpoint's.
    """
    from .export.stablehlo import export_stablehlo

    names = [name.strip() for name in platforms.split(",") if name.strip()]
    report = export_stablehlo(weights, out, platforms=names, function=function, image_size=image_size)
    print(report.to_text())
    if "cpu" not in names:
        print("compared on the CPU: the same function, lowered for cpu as well")
    print(f"wrote {out}: {function} for {', '.join(names)}, {out.stat().st_size / 1e6:.1f} MB")


def main(args: Sequence[str] | None = None, prog: str = "convert") -> None:
    """Entry point of `convert`, with its arguments or those of the process."""
    given = sys.argv[1:] if args is None else list(args)
    with errors_in_one_line(EXTRAS.get(given[0]) if given else None):
        app.cli(args=given, prog=prog, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    main()
