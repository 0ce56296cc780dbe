"""`repvit-sam export`: models in formats of other runtimes, held against the JAX model before they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from repvit_sam_jax.terminal import run_commands

Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")]
Size = Annotated[int | None, tyro.conf.arg(aliases=["--resolution"])]  # its name in version 0.1

EXTRAS = {
    "onnx": "export",
    "coreml": "export",
    "litert": "litert",
    "web": "export",
    "anylabeling": "export",
    "cvat": "export",
}
"""Commands that need more than the extra `convert`, which brings the first package that they miss."""


def onnx(
    weights: Source,
    *,
    out: Path,
    image_size: Size = None,
    full_size: bool = False,
    int8: bool = False,
    allow_past_tolerance: bool = False,
) -> None:
    """Image encoder and mask decoder as ONNX files, checked in ONNX Runtime against JAX.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty, for encoder.onnx and decoder.onnx.
      image_size: Side of the input square in pixels, if not the checkpoint's.
      full_size: A decoder that also gives masks at the photo's size, with the inputs and outputs of SAM's own export.
      int8: Weights as 8-bit integers, a quarter of the size; masks are compared with those of float32.
      allow_past_tolerance: Write files that do not compute what the JAX model does, and say so beside and in them.
    """
    from .onnx import export_onnx

    given: dict[str, Any] = {"full_size": full_size, "int8": int8, "allow_past_tolerance": allow_past_tolerance}
    print(export_onnx(weights, out, image_size=image_size, **given).to_text())
    print(f"wrote {out}/encoder.onnx, decoder.onnx")


def coreml(
    weights: Source,
    *,
    out: Path,
    image_size: Size = None,
    precision: Literal["float16", "float32"] = "float16",
    target: Literal["iOS16", "iOS17", "iOS18"] = "iOS17",
    compress: Literal["int8", "palette6"] | None = None,
    input_type: Annotated[Literal["image", "array"], tyro.conf.arg(name="input")] = "image",
    allow_past_tolerance: bool = False,
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
      allow_past_tolerance: Write packages that do not compute what the JAX model does, and say so beside and in them.
    """
    from .coreml import export_coreml, summary

    given: dict[str, Any] = {"precision": precision, "target": target, "compress": compress, "input_type": input_type}
    given["allow_past_tolerance"] = allow_past_tolerance
    print(export_coreml(weights, out, image_size=image_size, **given).to_text())
    print(f"wrote to {out}\n{summary(out)}")


def litert(weights: Source, *, out: Path, image_size: Size = None, allow_past_tolerance: bool = False) -> None:
    """Image encoder and mask decoder as LiteRT files for Android, checked in LiteRT against JAX.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty, for encoder.tflite and decoder.tflite.
      image_size: Side of the input square in pixels, if not the checkpoint's.
      allow_past_tolerance: Write files that do not compute what the JAX model does, and say so beside them.
    """
    from .litert import export_litert

    print(export_litert(weights, out, image_size=image_size, allow_past_tolerance=allow_past_tolerance).to_text())
    print(f"wrote {out}/encoder.tflite, decoder.tflite")


def stablehlo(
    weights: Source,
    *,
    out: Path,
    platforms: str = "cpu,cuda,tpu",
    function: Literal["segment", "encode", "decode"] = "segment",
    image_size: Size = None,
    allow_past_tolerance: bool = False,
) -> None:
    """A function with its weights as a jax.export artifact, for any number of images; loading it needs only JAX.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: The file to write.
      platforms: What it is to run on, of cpu, cuda, rocm and tpu, joined by commas.
      function: Images and prompts to masks; or a half of that, images to embeddings, or embeddings and prompts to
        masks.
      image_size: Side of the input square in pixels, if not the checkpoint's.
      allow_past_tolerance: Write a file that does not compute what the JAX model does, and say so beside it.
    """
    from .stablehlo import export_stablehlo

    names = [name.strip() for name in platforms.split(",") if name.strip()]
    given: dict[str, Any] = {"function": function, "allow_past_tolerance": allow_past_tolerance}
    report = export_stablehlo(weights, out, platforms=names, image_size=image_size, **given)
    print(report.to_text())
    if "cpu" not in names:
        print("compared on the CPU: the same function, lowered for cpu as well")
    print(f"wrote {out}: {function} for {', '.join(names)}, {out.stat().st_size / 1e6:.1f} MB")


def web(weights: Source, *, out: Path, image_size: Size = None, runtime: Path | None = None) -> None:
    """A page that segments photos in the visitor's browser, for any static host; needs no server of its own.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty; `python -m http.server --directory DIR` shows it.
      image_size: Side of the input square in pixels, if not the checkpoint's.
      runtime: Folder dist of the npm package onnxruntime-web; if not given, it is downloaded.
    """
    from .web import export_web

    print(export_web(weights, out, image_size=image_size, runtime=runtime).to_text())
    size = sum(path.stat().st_size for path in out.rglob("*"))
    print(f"wrote {out}, {size / 1e6:.0f} MB; to see it: python -m http.server --directory {out}")


def anylabeling(
    weights: Source, *, out: Path, image_size: Size = None, int8: bool = False, allow_past_tolerance: bool = False
) -> None:
    """Model files of the annotation tools AnyLabeling and X-AnyLabeling, also for samexporter.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty, for encoder.onnx, decoder.onnx and the config.yaml that the tools load.
      image_size: Side of the input square in pixels, if not the checkpoint's: 1024, 512 or 256.
      int8: Weights as 8-bit integers, a quarter of the size; masks are compared with those of float32.
      allow_past_tolerance: Write files that do not compute what the JAX model does, and say so beside and in them.
    """
    from .anylabeling import CONFIG, export_anylabeling

    given: dict[str, Any] = {"int8": int8, "allow_past_tolerance": allow_past_tolerance}
    print(export_anylabeling(weights, out, image_size=image_size, **given).to_text())
    print(f"wrote {out}; load {out / CONFIG} as a custom model")


def cvat(
    weights: Source, *, out: Path, image_size: Size = None, int8: bool = False, allow_past_tolerance: bool = False
) -> None:
    """Model files of the annotation tool CVAT: its page's decoder, and a serverless function with the encoder.

    Args:
      weights: A .safetensors file of this library, demo, or a PyTorch checkpoint such as repvit_sam.pt.
      out: A folder that is new or empty, for decoder.onnx and the folder nuclio.
      image_size: Side of the input square in pixels, if not the checkpoint's: 1024, 512 or 256.
      int8: Weights as 8-bit integers, a quarter of the size; masks are compared with those of float32.
      allow_past_tolerance: Write files that do not compute what the JAX model does, and say so beside and in them.
    """
    from .cvat import export_cvat

    given: dict[str, Any] = {"int8": int8, "allow_past_tolerance": allow_past_tolerance}
    print(export_cvat(weights, out, image_size=image_size, **given).to_text())
    print(f"wrote {out}: decoder.onnx for CVAT's page, and nuclio for nuctl deploy")


EXPORTS = (onnx, coreml, litert, stablehlo, web, anylabeling, cvat)


def main(args: Sequence[str] | None = None, prog: str = "export") -> None:
    """Entry point of `export`, with its arguments or those of the process."""
    app = tyro.extras.SubcommandApp()
    for command in EXPORTS:
        app.command(command)
    run_commands(app, args, prog, __doc__, EXTRAS)


if __name__ == "__main__":
    main()
