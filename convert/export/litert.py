"""Encoder and decoder as LiteRT files for Android, checked in LiteRT's own interpreter against JAX."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from repvit_sam_jax.files import new_folder
from repvit_sam_jax.terminal import require

from ..report import Report
from .gate import PAST_TOLERANCE, gate, write_table
from .modules import DECODER_INPUTS, Decoder, Encoder
from .quiet import import_quietly, quietly
from .source import Source, read_source
from .verify import ExportError, PromptCase, Refer, Reference, Tolerances, reference, verify

NUM_POINTS = 2
"""Points that the decoder takes, whose shapes are fixed: a point with the not-a-point, or the corners of a box."""


def export_litert(
    weights: Path, out: Path, *, image_size: int | None = None, allow_past_tolerance: bool = False
) -> Report:
    """Write `encoder.tflite` and `decoder.tflite`, all or nothing.

    The encoder takes `images` [1, 3, S, S], as `transforms.preprocess` makes them; the decoder is `modules.Decoder` for
    one prompt of `NUM_POINTS` points. Shapes are fixed.

    Args:
      weights: a `.safetensors` file of this library or a PyTorch checkpoint.
      out: a folder that is new or empty.
      image_size: side of the input square in pixels, if not the checkpoint's.
      allow_past_tolerance: write files that do not compute what the JAX model computes, with the table beside them.

    Returns:
      The comparison with the JAX model, within tolerance unless that is allowed not to be.

    Raises:
      ValueError: the converter is missing, `out` is not empty, or the image size is no multiple of 16.
      FileNotFoundError, CheckpointError: as `read_source`.
      ExportError: the files do not compute what the JAX model computes; nothing is written.
    """
    require("litert_torch", "ai_edge_litert", extra="litert")
    source = read_source(weights, image_size)
    config = source.config
    side, low, dim = config.embedding_size, config.low_res_size, config.mask_decoder.embed_dim
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    prompt = (torch.zeros(1, NUM_POINTS, 2), torch.ones(1, NUM_POINTS))
    decoded = (torch.zeros(1, dim, side, side), *prompt, torch.zeros(1, 1, low, low), torch.ones(1))
    with new_folder(out) as folder:
        twin = source.twin()
        _convert(Encoder(twin), (images,), folder / "encoder.tflite")
        _convert(Decoder(twin), decoded, folder / "decoder.tflite")
        report = gate(functools.partial(check, source, folder), source, allow=allow_past_tolerance)
        write_table(report, folder / PAST_TOLERANCE)
        return report


def _convert(module: nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> None:
    converter = import_quietly("litert_torch")
    with quietly():
        try:
            converter.convert(module.eval(), example).export(str(path))
        except Exception as error:  # its errors share no class of their own
            raise ExportError(f"litert-torch can't convert this model: {str(error).strip().splitlines()[0]}") from error


class Runner:
    """A LiteRT file in its interpreter: from the module's arguments to its results, in their order."""

    def __init__(self, path: Path):
        with quietly():
            self._interpreter = import_quietly("ai_edge_litert.interpreter").Interpreter(str(path))
            (signature,) = self._interpreter.get_signature_list()
            self._run: Any = self._interpreter.get_signature_runner(signature)

    def __call__(self, *given: np.ndarray) -> list[np.ndarray]:
        """Arguments are called args_0, args_1, ... in the file, results output_0, ..."""
        found = self._run(**{f"args_{i}": np.asarray(value, np.float32) for i, value in enumerate(given)})
        return [found[f"output_{i}"] for i in range(len(found))]


def check(source: Source, folder: Path, refer: Refer = reference) -> Report:
    """What the files of a folder compute, against the JAX model, for the prompts that the decoder takes."""
    encoder, decoder = (Runner(folder / f"{name}.tflite") for name in ("encoder", "decoder"))
    expected = refer(source, single=True)
    fitting = [case for case in expected.cases if len(case.feeds(expected.mask_input)["point_labels"][0]) == NUM_POINTS]
    expected = dataclasses.replace(expected, cases=fitting)

    def encode(expected: Reference) -> np.ndarray:
        return encoder(expected.images.transpose(0, 3, 1, 2))[0]

    def decode(embedding: np.ndarray, case: PromptCase) -> tuple[np.ndarray, np.ndarray]:
        given = {"image_embeddings": embedding, **case.feeds(expected.mask_input)}
        masks, iou = decoder(*(given[name] for name in DECODER_INPUTS))
        return masks, iou

    return verify(expected, "litert", encode, decode, Tolerances.float32(source.config))
