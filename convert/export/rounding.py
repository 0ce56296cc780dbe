"""What rounding alone does to a model's weights, where an export of them is past tolerance.

The bars suit well-conditioned weights. Weights that amplify rounding can't be nearer to JAX than their own arithmetic
is to itself: what that is, the PyTorch twin shows, in the precision of the export against float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..report import MaskRow, Report, Row
from .modules import DECODER_INPUTS, Decoder, Encoder
from .source import Source
from .verify import Decode, Precision, PromptCase, Reference, Tolerances, reference, verify

FACTOR = 2.0
"""Two computations that both round may differ by the sum of what each of them is off."""

LARGEST_ERROR, LARGEST_FLIPS = 0.5, 0.1
"""Bars go no higher: what has nothing to do with the model is off by 1.4, and half of its mask's pixels are flipped."""


AGREEMENT = 1e-2
"""How near the JAX model and the exported modules in float64 are, at least, where rounding may be to blame."""


def explains(source: Source) -> bool:
    """Whether the JAX model computes what the exported modules do in float64, but for what rounding can do.

    Otherwise one of the two is wrong, and float64 would only hide it: the export has the same modules.
    """
    expected = reference(source)
    bars = Tolerances(AGREEMENT, AGREEMENT, AGREEMENT, AGREEMENT)
    return verify(expected, "float64", *_run(source, torch.float64, expected), bars).passed


def exact_reference(source: Source, batch: int = 1, **options: bool) -> Reference:
    """As `verify.reference`, of the PyTorch twin in float64, and rounded to float32 in the end."""
    expected = reference(source, batch, **options)
    exact = dataclasses.replace(expected, masks={}, iou={})
    encode, decode = _run(source, torch.float64, exact)
    embeddings = encode(exact)
    for case in exact.cases:  # those with a mask come after the one that gives it
        masks, iou = decode(embeddings[:1], case)
        exact.masks[case.name], exact.iou[case.name] = masks.astype(np.float32), iou.astype(np.float32)
    return dataclasses.replace(exact, embeddings=embeddings.transpose(0, 2, 3, 1).astype(np.float32))


def with_rounding(report: Report, source: Source, precision: Precision) -> Report:
    """The report with what rounding alone does beside each figure, and bars that are not below it.

    Where rounding alone does too much (`LARGEST_ERROR`, `LARGEST_FLIPS`), the bar stays as it is: such weights are of
    no use in that precision.

    Args:
      report: a comparison with `exact_reference`.
      source: the weights.
      precision: the export's. For float16, weights and what layers give are rounded; sums stay float32, as in the
        hardware that computes in float16.
    """
    alone = measure(source, precision)
    rows = {(row.name, row.case): row.relative for row in alone.rows}
    flips = {row.case: row.flipped for row in alone.masks}

    def changes(row: Row | MaskRow, value: float, largest: float) -> dict[str, Any]:
        bar = max(row.tolerance, FACTOR * value) if FACTOR * value <= largest else row.tolerance
        return {"form": f"{row.form}, float64", "rounding": value, "tolerance": bar}

    def of_row(row: Row) -> Row:
        # An embedding may be compared in several ways, and a case of the export's own has none here: the worst serves.
        name = row.name.partition(",")[0]
        others = [value for (other, _), value in rows.items() if other == name]
        value = rows.get((name, row.case), max(others, default=0.0))
        return dataclasses.replace(row, **changes(row, value, LARGEST_ERROR))

    def of_mask(row: MaskRow) -> MaskRow:
        value = flips.get(row.case, max(flips.values(), default=0.0))
        return dataclasses.replace(row, **changes(row, value, LARGEST_FLIPS))

    return dataclasses.replace(report, rows=tuple(map(of_row, report.rows)), masks=tuple(map(of_mask, report.masks)))


def measure(source: Source, precision: Precision) -> Report:
    """The twin in a precision against the twin in float64, in the rows of `verify`."""
    exact = exact_reference(source)
    encode, decode = _run(source, torch.float32, exact, half=precision == "float16")
    return verify(exact, "rounding", encode, decode, Tolerances.float32(source.config))


def _run(
    source: Source, dtype: torch.dtype, expected: Reference, half: bool = False
) -> tuple[Callable[[Reference], np.ndarray], Decode]:
    twin, side = source.twin(), source.config.low_res_size
    encoder, decoder = Encoder(twin).to(dtype).eval(), Decoder(twin).to(dtype).eval()
    if half:
        _round_to_half(encoder)
        _round_to_half(decoder)
    tensor = lambda value: torch.tensor(np.ascontiguousarray(value), dtype=dtype)

    def encode(given: Reference) -> np.ndarray:
        with torch.no_grad():
            return encoder(tensor(given.images.transpose(0, 3, 1, 2))).numpy()

    def decode(embedding: np.ndarray, case: PromptCase) -> tuple[np.ndarray, np.ndarray]:
        mask = expected.mask_input if case.masked else np.zeros((side, side), np.float32)
        given = {"image_embeddings": embedding, **case.feeds(mask)}
        with torch.no_grad():
            masks, iou = decoder(*(tensor(given[name]) for name in DECODER_INPUTS))
        return masks.numpy(), iou.numpy()

    return encode, decode


def _round_to_half(module: nn.Module) -> None:
    """Round weights, and what each layer gives; but not positions, which exports keep in float32."""
    positions = [m for m in module.modules() if type(m).__name__ == "PositionEncoding"]
    for layer in module.modules():
        if list(layer.children()) or layer in positions:
            continue
        for weight in layer.parameters(recurse=False):
            weight.data = weight.data.half().to(weight.dtype)
        layer.register_forward_hook(lambda _layer, _given, found: _rounded(found))


def _rounded(found: Tensor) -> Tensor:
    return found.half().to(found.dtype) if torch.is_tensor(found) and found.is_floating_point() else found
