"""Masks of everything on a photo: `SamAutomaticMaskGenerator` against the plain procedure in PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from convert.synthetic import synthetic_image
from repvit_sam_jax import Prompts, Sam, SamAutomaticMaskGenerator, SamPredictor
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.inference.mask_generator import _prompts
from repvit_sam_jax.models.model import Params

from .harness import Candidate, timed

SHARES = {"pred_iou_thresh": 0.35, "stability_score_thresh": 0.5}
"""How many of the masks that reach a filter pass it."""


MASK_THRESHOLD = 5.0


def everything(config: SamConfig, params: Params, points: int, rounds: int) -> dict[str, Any]:
    """Time both procedures on a grid of `points` a side.

    The image is synthetic, 3/4 S x S. Thresholds are quantiles, such that `SHARES` of the masks pass. The records are
    compared before anything is timed.

    Returns:
      a section of the report, and the number of `records` of both, and `passed`, how many masks are left after each
      step of the plain procedure.

    Raises:
      WrongAnswerError: JAX finds less than 99% of the plain records, with masks of IoU 0.99.
    """
    from .plain_generator import embed_with, plain_generate
    from .rivals import fused_twin

    # Random masks lie all over the photo; at a higher threshold they are small enough for boxes to differ.
    config = dataclasses.replace(config, mask_threshold=MASK_THRESHOLD)
    model = Sam(config)
    image = synthetic_image(config.image_size * 3 // 4, config.image_size)
    params = lively(model, params, image)
    settings: dict[str, Any] = {"points_per_side": points, "box_nms_thresh": 0.98}
    settings |= _thresholds(model, params, image, settings)
    generator = SamAutomaticMaskGenerator(model, params, **settings)
    twin = embed_with(fused_twin(model, params))
    records: dict[str, int] = {}
    passed: dict[str, int] = {}

    def ours() -> list[dict[str, Any]]:
        found = generator.generate(image)
        records["jax_fp32"] = len(found)
        return found

    def plain() -> list[dict[str, Any]]:
        kwargs = {"mask_threshold": MASK_THRESHOLD, **settings}
        found, counts = plain_generate(twin, image, config.image_size, **kwargs)
        records["torch_fp32"] = len(found)
        passed.update(counts)
        return found

    lost = lambda found, expected: 1 - agreement(found, expected)
    candidates = [Candidate("jax_fp32", ours, "torch_fp32", 0.01, lost), Candidate("torch_fp32", plain)]
    return {
        **timed(candidates, rounds),
        "records": records,
        "passed": passed,
        "notes": [
            f"masks left after each step: {', '.join(f'{name} {count}' for name, count in passed.items())}",
            f"thresholds: {', '.join(f'{name} {value:.3g}' for name, value in settings.items())}",
        ],
    }


def agreement(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], iou: float = 0.99) -> float:
    """The share of the expected records whose point has a mask with at least this IoU among those found."""
    hits = 0
    for record in expected:
        same = [other for other in found if other["point_coords"] == record["point_coords"]]
        hits += any(_mask_iou(other["segmentation"], record["segmentation"]) >= iou for other in same)
    return hits / max(1, len(expected))


def _mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    return int(np.count_nonzero(a & b)) / max(1, int(np.count_nonzero(a | b)))


def _thresholds(model: Sam, params: Params, image: np.ndarray, settings: dict[str, Any]) -> dict[str, float]:
    """The quantiles, from every mask of a grid of 8 x 8 points."""
    keep_all: dict[str, Any] = {"stability_score_thresh": 0.0, "output_mode": "uncompressed_rle"}
    few = settings | {"points_per_side": 8, "box_nms_thresh": 1.0}
    every = SamAutomaticMaskGenerator(model, params, **few, **keep_all, pred_iou_thresh=0.0).generate(image)
    iou = float(np.quantile([record["predicted_iou"] for record in every], 1 - SHARES["pred_iou_thresh"]))
    left = [record["stability_score"] for record in every if record["predicted_iou"] > iou and record["area"]]
    stability = float(np.quantile(left, 1 - SHARES["stability_score_thresh"]))
    return {"pred_iou_thresh": iou, "stability_score_thresh": stability}


def lively(model: Sam, params: Params, image: np.ndarray, sharpness: float = 3.0) -> Params:
    """Random weights made to behave like trained ones: masks and IoUs vary with the prompt, and masks cross zero.

    Random attention is nearly uniform, so the transformer's kernels are made `sharpness` times larger. Random mask
    logits have a mean larger than their deviation; the direction of the mean pixel is taken out of the hypernetworks'
    outputs, which are then scaled to a deviation of 4 logits. Predicted IoUs get a mean of 0.7, a deviation of 0.1.
    """

    def sharpen(path: Any, leaf: Any) -> Any:
        keys = [entry.key for entry in path]
        sharp = keys[:2] == ["mask_decoder", "transformer"] and keys[-1] == "kernel"
        return leaf * np.float32(sharpness) if sharp else leaf

    params = jax.tree_util.tree_map_with_path(sharpen, params)
    decoder, predictor = params["mask_decoder"], SamPredictor(model, params)
    predictor.set_image(image)
    coords = np.random.default_rng(0).uniform(0, min(predictor.input_size), (64, 2)).astype(np.float32)
    embedding = predictor.get_image_embedding()
    _, iou = jax.jit(model.decode)(params, embedding, _prompts(coords, 64))
    pixels, weights = (
        np.asarray(x, np.float64) for x in _mask_factors(model, params, embedding, _prompts(coords[::8], 8))
    )
    mean = pixels.mean((0, 1))
    centred = np.eye(len(mean)) - np.outer(mean, mean) / (mean @ mean)
    for i, deviation in enumerate(np.std(pixels @ (weights @ centred).mT, axis=(0, 1)), start=1):
        last = _last_layer(decoder["hypernetworks"][str(i)])
        for name, value in last.items():
            last[name] = np.float32(np.asarray(value, np.float64) @ centred * 4 / deviation)
    last, spread = _last_layer(decoder["iou_head"]), 0.1 / np.std(iou[0], axis=0)
    kernel, bias = np.array(last["kernel"]), np.array(last["bias"])
    kernel[:, 1:] *= spread
    bias[1:] = (bias[1:] - np.mean(iou[0], axis=0)) * spread + 0.7
    last |= {"kernel": kernel, "bias": bias}
    return params


@functools.partial(jax.jit, static_argnums=0)
def _mask_factors(model: Sam, params: Params, embedding: Array, prompts: Prompts) -> tuple[Array, Array]:
    """What masks are products of, for each prompt: pixels [P, N, C/8] and weights [P, 3, C/8]."""
    decoder = model._merge(params).mask_decoder
    _, intermediates = model.decode_with_intermediates(params, embedding, prompts)
    *_, image = (value[0] for name, value in intermediates.items() if name.endswith(".image"))
    tokens = intermediates["transformer.final"][0]
    width = image.shape[-1] // 8
    each = jnp.broadcast_to(jnp.eye(width), (1, len(image), width, width))  # as if each channel were a mask
    pixels = decoder.output_upscaling(image[None], each)[0].reshape(len(image), width, -1).mT
    return pixels, jnp.stack([decoder.hypernetworks[str(i)](tokens[:, 1 + i]) for i in range(1, 4)], axis=1)


def _last_layer(mlp: Params) -> Params:
    return mlp["layers"][max(mlp["layers"])]
