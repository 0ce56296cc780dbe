"""An encoder and a decoder for an annotation tool as ONNX files, asked as tools ask, and held against the JAX model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import nn
from torch.export import Dim

from repvit_sam_jax import transforms
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.evals.metrics import iou
from repvit_sam_jax.inference.prompts import append_not_a_point

from ..report import MaskRow, Report
from ..torch_models import Sam as TorchSam
from .gate import gate
from .int8 import Answer, Embed, shrink
from .modules import DECODER_INPUTS, ENCODER_OUTPUT, FULL_SIZE_OUTPUTS
from .onnx import export_module, mark, session
from .source import Source
from .tools import FRAME, MASK, PHOTO
from .verify import PromptCase, Refer, Reference, Tolerances, reference, verify

SHARES = (1.0, 0.3, 2.1)
"""Sizes at which masks are compared, in shares of a photo's whose longer side is `FRAME`."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """What is particular to a tool's files."""

    name: str
    encoder: Callable[[TorchSam], nn.Module]
    decoder: Callable[[TorchSam], nn.Module]
    embedding: Callable[[SamConfig], tuple[int, ...]]
    """Shape of `image_embeddings`."""
    pixels: Callable[[SamConfig], int]
    """Longer side of the frame in which the decoder takes points on a photo whose longer side is S."""
    outputs: tuple[str, ...] = FULL_SIZE_OUTPUTS


def export_pair(source: Source, folder: Path, tool: Tool, *, int8: bool, allow: bool) -> Report:
    """Write `encoder.onnx` and `decoder.onnx` into a folder and compare them.

    Raises:
      ExportError: they do not compute what the JAX model does, or their 8-bit weights change its masks.
    """
    twin = source.twin()
    metadata = {**source.metadata(), "tool": tool.name}
    picture = {PHOTO: torch.ones(source.config.image_size * 3 // 4, source.config.image_size, 3)}
    sides = {0: Dim("height", min=2), 1: Dim("width", min=2)}
    export_module(tool.encoder(twin), folder / "encoder.onnx", picture, (ENCODER_OUTPUT,), [sides], metadata)
    points = {1: Dim("points", min=2)}
    shapes = [tool.embedding(source.config), (1, 3, 2), (1, 3), MASK, (1,)]
    given = {name: torch.ones(shape) for name, shape in zip(DECODER_INPUTS, shapes, strict=True)}
    given["orig_im_size"] = torch.tensor([192.0, 256.0])
    dynamic = [{}, points, points, {}, {}, {}]
    export_module(tool.decoder(twin), folder / "decoder.onnx", given, tool.outputs, dynamic, metadata)
    report = gate(functools.partial(check, source, folder, tool), source, allow=allow)
    if int8:
        answers = functools.partial(pair_answers, tool=tool, config=source.config)
        report = shrink(folder, answers, report, allow=allow)
    mark(report, folder)
    return report


def check(source: Source, folder: Path, tool: Tool, refer: Refer = reference) -> Report:
    """What the files of a folder compute, against the JAX model."""
    encoder, decoder = (session(folder / f"{part}.onnx") for part in ("encoder", "decoder"))
    config, everything = source.config, refer(source, single=True)
    expected, photo = _one_mask(everything), everything.photos[0]
    (packed,) = encoder.run(None, {PHOTO: photo.astype(np.float32)})
    side, scale = config.embedding_size, tool.pixels(config) / config.image_size
    count = config.mask_decoder.embed_dim * side * side

    def feeds(embedding: np.ndarray, case: PromptCase, size: tuple[int, ...]) -> dict[str, np.ndarray]:
        values = np.concatenate([embedding.reshape(-1), packed.reshape(-1)[count:]]).reshape(packed.shape)
        mask = everything.mask_input if case.masked else None
        return decoder_feeds(values, case.coords[0] * scale, case.labels[0], size, mask)

    def encode(_: Reference) -> np.ndarray:
        return packed.reshape(-1)[:count].reshape(1, -1, side, side)

    def decode(embedding: np.ndarray, case: PromptCase) -> tuple[np.ndarray, np.ndarray]:
        given = feeds(embedding, case, photo.shape[:2])
        masks, predicted = decoder.run(["low_res_masks", "iou_predictions"], given)
        step = masks.shape[-1] // config.low_res_size
        return masks[:, :, ::step, ::step], predicted

    def at_size(case: PromptCase, share: float) -> MaskRow:
        size = tuple(round(share * FRAME * length / config.image_size) for length in photo.shape[:2])
        given = feeds(expected.embeddings[:1].transpose(0, 3, 1, 2), case, size)
        found = paste(dict(zip(tool.outputs, decoder.run(list(tool.outputs), given), strict=True)), size, config)
        wanted = transforms.postprocess_masks(expected.masks[case.name], size, config.image_size)[0, 0]
        wanted = wanted > config.mask_threshold
        name = f"{case.name}, {size[0]} x {size[1]}"
        return MaskRow(tool.name, name, float(iou(found, wanted)), float((found != wanted).mean()), flipped)

    bars = Tolerances.float32(config)
    flipped = bars.flipped
    report = verify(expected, tool.name, encode, decode, bars)
    cases = [case for case in expected.cases if case.name in ("point", "box")]
    sizes = tuple(at_size(case, share) for case in cases for share in SHARES)
    return dataclasses.replace(report, masks=(*report.masks, *sizes))


def _one_mask(expected: Reference) -> Reference:
    """With the mask alone that one who asks for one is given."""
    masks, ious = {}, {}
    for case in expected.cases:
        is_ambiguous = case.labels.shape[1] == 1
        chosen = 1 + int(expected.iou[case.name][0, 1:].argmax()) if is_ambiguous else 0
        masks[case.name] = expected.masks[case.name][:, [chosen]]
        ious[case.name] = expected.iou[case.name][:, [chosen]]
    return dataclasses.replace(expected, masks=masks, iou=ious)


def decoder_feeds(
    embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, size: tuple[int, ...], mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What tools give a decoder: a prompt of points [N, 2], and the not-a-point whether there is a box or not."""
    coords, labels = append_not_a_point(coords[None].astype(np.float32), labels[None].astype(np.float32))
    step = 1 if mask is None else MASK[2] // len(mask)
    given = np.zeros(MASK, np.float32) if mask is None else np.kron(mask, np.ones((step, step), np.float32))
    values = (embedding, coords, labels, given.reshape(MASK), np.array([mask is not None], np.float32))
    return {**dict(zip(DECODER_INPUTS, values, strict=True)), "orig_im_size": np.array(size, np.float32)}


def paste(outputs: dict[str, np.ndarray], size: tuple[int, ...], config: SamConfig) -> Bool[np.ndarray, "h w"]:
    """The mask of a decoder's outputs, at the photo's size whether it is cropped or not."""
    if "xtl" not in outputs:
        return outputs["masks"][0, 0] > config.mask_threshold
    left, top, right, bottom = (int(outputs[name][0]) for name in ("xtl", "ytl", "xbr", "ybr"))
    mask = np.zeros(size, bool)
    mask[top : bottom + 1, left : right + 1] = outputs["masks"][0, 0] > 0
    return mask


def pair_answers(folder: Path, tool: Tool, config: SamConfig) -> Embed:
    """What the files of a folder answer on photos that are scaled to the model's size before."""
    encoder, decoder = (session(folder / f"{part}.onnx") for part in ("encoder", "decoder"))

    def embed(photo: UInt8[np.ndarray, "h w 3"]) -> Answer:
        scaled = transforms.resize_longest_side(photo, config.image_size)
        (embedding,) = encoder.run(None, {PHOTO: scaled.astype(np.float32)})
        size, scale = photo.shape[:2], tool.pixels(config) / max(photo.shape)

        def answer(coords: np.ndarray, labels: np.ndarray) -> Bool[np.ndarray, "h w"]:
            found = decoder.run(list(tool.outputs), decoder_feeds(embedding, coords * scale, labels, size))
            return paste(dict(zip(tool.outputs, found, strict=True)), size, config)

        return answer

    return embed
