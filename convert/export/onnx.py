"""Encoder and decoder as ONNX files, through PyTorch's exporter, checked in ONNX Runtime against JAX."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from repvit_sam_jax import transforms
from repvit_sam_jax.files import new_folder
from repvit_sam_jax.models.prompt_encoder import TOP_LEFT
from repvit_sam_jax.terminal import require

from ..report import Report, Row, compare
from ..torch_models import Sam
from .gate import PAST_TOLERANCE, gate, worst, write_table
from .int8 import Answer, Embed, shrink
from .modules import (
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    ENCODER_INPUT,
    ENCODER_OUTPUT,
    FULL_SIZE_OUTPUTS,
    Decoder,
    Encoder,
    FullSizeDecoder,
)
from .quiet import quietly
from .source import Source, read_source
from .verify import Decode, PromptCase, Refer, Reference, Tolerances, reference, verify

OPSET, IR_VERSION = 18, 8
"""Operators, and the version of the file format that they came with: what older runtimes read too."""
LARGEST = 1_500_000_000
"""Bytes of weights that a file holds itself; ONNX files end at 2 GiB, so more lies beside it, in `.onnx.data`."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    weights: Path,
    out: Path,
    *,
    image_size: int | None = None,
    full_size: bool = False,
    int8: bool = False,
    allow_past_tolerance: bool = False,
) -> Report:
    """Write `encoder.onnx` and `decoder.onnx`, all or nothing.

    The encoder takes any number of images. For the decoder's inputs and outputs see `modules.Decoder` and, with
    `full_size`, `modules.FullSizeDecoder`. Beside an encoder of more than `LARGEST` bytes, ViT-H's, lies
    `encoder.onnx.data` with its weights. Both files say in their metadata what a checkpoint says.

    Args:
      weights: a `.safetensors` file of this library or a PyTorch checkpoint.
      out: a folder that is new or empty.
      image_size: side of the input square in pixels, if not the checkpoint's.
      full_size: a decoder that also gives masks at the photo's size.
      int8: weights as 8-bit integers, if masks stay what they are; see `int8`.
      allow_past_tolerance: write files that do not compute what the JAX model computes, with the table beside them and
        the worst figure in their metadata.

    Returns:
      The comparison with the JAX model, within tolerance unless that is allowed not to be.

    Raises:
      ValueError: a package is missing, `out` is not empty, or the image size is no multiple of 16.
      FileNotFoundError, CheckpointError: as `read_source`.
      ExportError: the files do not compute what the JAX model computes; nothing is written.
    """
    require(*PACKAGES)
    source = read_source(weights, image_size)
    with new_folder(out) as folder:
        twin = source.twin()
        export_encoder(twin, folder / "encoder.onnx", source.metadata())
        export_decoder(twin, folder / "decoder.onnx", source.metadata(), full_size=full_size)
        report = gate(functools.partial(check, source, folder), source, allow=allow_past_tolerance)
        if int8:
            report = shrink(folder, predictor_answers, report, allow=allow_past_tolerance)
        mark(report, folder)
        return report


def predictor_answers(folder: Path) -> Embed:
    """What `OnnxPredictor` answers."""
    from repvit_sam_jax.inference.onnx import OnnxPredictor

    predictor = OnnxPredictor(folder)

    def embed(photo: np.ndarray) -> Answer:
        predictor.set_image(photo)
        return answer

    def answer(coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if labels[0] == TOP_LEFT:
            return predictor.predict(box=coords.ravel(), multimask_output=False)[0][0]
        masks, iou, _ = predictor.predict(coords, labels)
        return masks[iou.argmax()]

    return embed


def mark(report: Report, folder: Path) -> None:
    """Say in and beside the files of a folder that they are past tolerance; nothing if they are not."""
    if not report.passed:
        add_metadata(folder, past_tolerance=worst(report))
        write_table(report, folder / PAST_TOLERANCE)


def add_metadata(folder: Path, **values: str) -> None:
    """Write more into the metadata of a folder's ONNX files."""
    import onnx

    for path in folder.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        for name, value in values.items():
            model.metadata_props.add(key=name, value=value)
        path.write_bytes(model.SerializeToString())


def export_encoder(twin: Sam, path: Path, metadata: dict[str, str] | None = None) -> None:
    """`images` [B, 3, S, S], as `transforms.preprocess` makes them, to `image_embeddings` [B, C, S/16, S/16]."""
    size = twin.config.image_size
    images = {ENCODER_INPUT: torch.zeros(2, 3, size, size)}
    export_module(Encoder(twin), path, images, (ENCODER_OUTPUT,), [{0: Dim("batch")}], metadata)


def export_decoder(twin: Sam, path: Path, metadata: dict[str, str] | None = None, full_size: bool = False) -> None:
    """P prompts of N points on one image; see `modules`."""
    side, low, dim = twin.config.embedding_size, twin.config.low_res_size, twin.config.mask_decoder.embed_dim
    shapes = ((1, dim, side, side), (3, 2, 2), (3, 2), (1, 1, low, low), (1,))
    given = {name: torch.ones(shape) for name, shape in zip(DECODER_INPUTS, shapes, strict=True)}
    prompts, points = Dim("prompts"), Dim("points")
    dynamic: list[Any] = [{}, {0: prompts, 1: points}, {0: prompts, 1: points}, {}, {}]
    if not full_size:
        export_module(Decoder(twin), path, given, DECODER_OUTPUTS, dynamic, metadata)
        return
    given["orig_im_size"] = torch.tensor([low * 3.0, low * 4.0])
    export_module(FullSizeDecoder(twin), path, given, FULL_SIZE_OUTPUTS, [*dynamic, {}], metadata)


def export_module(
    module: nn.Module,
    path: Path,
    inputs: dict[str, Tensor],
    outputs: Sequence[str],
    dynamic_shapes: Any,
    metadata: dict[str, str] | None,
) -> None:
    """One module as a file, with its weights in it or, if they are more than `LARGEST`, beside it."""
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    with quietly():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dynamic_shapes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.ir_version = IR_VERSION
        program.model.metadata_props.update(metadata or {})
        program.save(path, external_data=size > LARGEST)


def session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(source: Source, folder: Path, refer: Refer = reference) -> Report:
    """What the files of a folder compute, against the JAX model."""
    encoder, decoder = (session(folder / f"{name}.onnx") for name in ("encoder", "decoder"))

    def encode(expected: Reference) -> np.ndarray:
        # One image, then all of them: the batch is dynamic.
        images = expected.images.transpose(0, 3, 1, 2)
        run = lambda given: encoder.run([ENCODER_OUTPUT], {ENCODER_INPUT: given})[0]
        return np.concatenate([run(images[:1]), run(images)[1:]])

    expected = refer(source, batch=2)
    bars = Tolerances.float32(source.config)
    report = verify(expected, "onnx", encode, decode_with(decoder, expected), bars)
    if "masks" not in [given.name for given in decoder.get_outputs()]:
        return report
    return dataclasses.replace(report, rows=(*report.rows, *_full_size_rows(decoder, expected, bars.masks)))


def _full_size_rows(decoder: Any, expected: Reference, tolerance: float) -> Iterator[Row]:
    """Masks of several sizes, larger and smaller than S, against `transforms.postprocess_masks`."""
    side, case = expected.config.image_size, expected.cases[0]
    given = {"image_embeddings": expected.embeddings[:1].transpose(0, 3, 1, 2), **case.feeds(expected.mask_input)}
    for size in ((side * 3 // 4, side), (side * 5 // 4 + 1, side // 2), (side // 3, side // 3)):
        found = decoder.run(["masks"], {**given, "orig_im_size": np.array(size, np.float32)})[0]
        masks = transforms.postprocess_masks(expected.masks[case.name], size, side)
        yield compare("onnx", "masks", found, masks, tolerance, case=f"{size[0]} x {size[1]}")


def decode_with(decoder: Any, expected: Reference) -> Decode:
    """A session as `verify` wants it."""
    extra = {}
    if "orig_im_size" in [given.name for given in decoder.get_inputs()]:
        extra["orig_im_size"] = np.array(expected.photos[0].shape[:2], np.float32)

    def decode(embedding: np.ndarray, case: PromptCase) -> tuple[np.ndarray, np.ndarray]:
        given = {"image_embeddings": embedding, **case.feeds(expected.mask_input), **extra}
        masks, iou = decoder.run(list(DECODER_OUTPUTS), given)
        return masks, iou

    return decode
