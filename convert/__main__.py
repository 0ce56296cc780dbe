"""`repvit-sam convert`: checkpoints between PyTorch and JAX, and their parity."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from repvit_sam_jax.config import Form, get_model_config
from repvit_sam_jax.terminal import counted, run_commands

from .annotations import Form as AnnotationForm
from .export.__main__ import EXPORTS, EXTRAS

app = tyro.extras.SubcommandApp()
Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Target = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
Size = Annotated[int | None, tyro.conf.arg(aliases=["--resolution"])]  # its name in version 0.1


@app.command(name="from-torch")
def from_torch(
    source: Source,
    target: Target,
    *,
    preset: str | None = None,
    form: Form | None = None,
    image_size: int | None = None,
    key: str | None = None,
    ignore: tuple[str, ...] = (),
) -> None:
    """PyTorch checkpoint to safetensors of this library.

    Args:
      source: A .pt or .pth file such as repvit_sam.pt; or a file or a folder of transformers or timm.
      target: The .safetensors file to write.
      preset: Insist on this model; by default the keys tell.
      form: train keeps every branch, deploy fuses them; by default the source's.
      image_size: Input side in pixels that the file declares, if not the preset's.
      key: The entry that the state dict is under, if the file has several, such as ema.
      ignore: Patterns of keys to leave out, such as 'adapter.*' of a fine-tuned model.
    """
    from .from_torch import from_torch as convert

    metadata = convert(source, target, preset=preset, form=form, image_size=image_size, key=key, ignore=ignore)
    config = metadata.config
    if get_model_config(config.name).image_size != config.image_size:
        print(f"trained or declared at {config.image_size} pixels a side, where {config.name} has another number")
    print(f"wrote {target}: {config.name}, {metadata.form} form, from SHA-256 {metadata.source_sha256}")


@app.command(name="to-torch")
def to_torch(source: Source, target: Target, *, form: Form | None = None) -> None:
    """Safetensors of this library to a PyTorch checkpoint.

    Args:
      source: The .safetensors file, or demo.
      target: The .pt file to write: the published names in training form, the fused twin's in deploy form.
      form: deploy fuses a training-form file; by default the source's.
    """
    from .to_torch import to_torch as convert

    written = convert(source, target, form=form)
    print(f"wrote {target}: {written} form")


Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@app.command(name="to-hf")
def to_hf(source: Source, out: Out) -> None:
    """A segmenter to a folder for Hugging Face's hub, with a model card.

    SAM's ViTs get the layout of transformers, which SamModel.from_pretrained loads; others a file of this library.

    Args:
      source: A checkpoint of any form that is read, or a name such as sam_vit_b.
      out: A folder that is new or empty.
    """
    from .publish import to_hf as write

    print(f"wrote {out}, which {write(source, out)} loads")


@app.command(name="to-timm")
def to_timm(source: Source, out: Out) -> None:
    """A classifier with two heads to a folder for timm, with a model card.

    Args:
      source: A checkpoint of any form that is read, or a name such as repvit_m1_0_distill.
      out: A folder that is new or empty.
    """
    from .publish import to_timm as write

    print(f"wrote {out}: timm's {write(source, out)}")


@app.command(name="parity")
def parity(
    source: Source,
    *,
    image: Path | None = None,
    image_size: int | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Compare the JAX model with PyTorch layer by layer; exit code 1 past tolerance.

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


@app.command(name="verify")
def verify(source: Source) -> None:
    """Compare the arrays of a file of this library with the digest that was written with them.

    Args:
      source: A .safetensors file, or demo.
    """
    from repvit_sam_jax.files import sha256
    from repvit_sam_jax.weights import checkpoint
    from repvit_sam_jax.weights.loading import find_weights, read_params

    path = find_weights(source)
    read_params(path, verify=True)
    _, metadata = checkpoint.read(path)
    print(f"{path}: {metadata.config.name}, {metadata.form} form, by {metadata.converter or 'an unnamed program'}")
    print(f"arrays as written, SHA-256 {metadata.arrays_sha256}")
    print(f"converted from a file of SHA-256 {metadata.source_sha256 or 'unknown'}")
    print(f"the file's own SHA-256 {sha256(path)}")


@app.command(name="backbone")
def backbone(source: Source, target: Target, *, into: str = "repvit_sam", seed: int = 0) -> None:
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
    target: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TARGET]")] = None,
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
    from repvit_sam_jax.weights.hub import download as fetch
    from repvit_sam_jax.weights.hub import file_name, published_url

    path = target or Path("weights") / file_name(preset)
    if path.is_file() and sha256 is None:
        print(f"{path} was there and is not fetched again; remove it if it is to be", file=sys.stderr)
    digest = fetch(path, url=url or published_url(preset), expected_sha256=sha256)
    print(f"{path}: SHA-256 {digest}" + ("" if sha256 else " (computed; none was given to compare with)"))


@app.command(name="synthetic")
def synthetic(target: Target, *, preset: str = "repvit_sam", seed: int = 0) -> None:
    """Write a checkpoint of the published format with RANDOM weights, for trying things out without the real one.

    Args:
      target: The .pt file to write.
      preset: The model.
      seed: Where the random numbers begin.
    """
    from .synthetic import write

    write(target, get_model_config(preset), seed)
    print(f"wrote {target}: {preset} with random weights, seed {seed}")


@app.command(name="annotations")
def convert_annotations(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    out: Out,
    *,
    to: AnnotationForm = "coco",
    photos: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Annotations of COCO, labelme, Label Studio, YOLO or SA-1B to a form that training and evaluation read, or back.

    Args:
      source: A .json file or a folder; what it holds tells the form.
      out: The .json file to write for coco, polygons and labelstudio; for others a folder that is new or empty.
      to: coco, COCO's JSON with runs; polygons, the same with polygons; labelme; labelstudio, tasks with predictions;
        yolo; rle, SA-1B's JSON of each photo; png.
      photos: The folder of the photos, if they are not beside the annotations.
      overwrite: Replace the file if it is there.
    """
    from .annotations.command import convert

    done = convert(source, out, to, photos=photos, overwrite=overwrite)
    for line in done.left_out:
        print(f"left out: {line}", file=sys.stderr)
    masks = sum(len(found["annotations"]) for found in done.found.values())
    print(f"wrote {out}: {counted(len(done.found), 'photo')}, {counted(masks, 'mask')}, {', '.join(done.categories)}")


for command in EXPORTS:
    app.command(command)


def main(args: Sequence[str] | None = None, prog: str = "convert") -> None:
    """Entry point of `convert`, with its arguments or those of the process."""
    run_commands(app, args, prog, __doc__, EXTRAS)


if __name__ == "__main__":
    main()
