"""The tables of a parity run: what was compared, how far apart it was, and the verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from repvit_sam_jax.config import EncoderConfig, RepViTConfig

DEEP_TOLERANCE = 5e-5
"""Relative RMS of RepViT-M2.3's intermediates: its float32 is 0.7-1.9e-5 from its float64, a wrong epsilon 4e-5."""
ENCODER_TOLERANCE = 1e-5
"""Relative RMS of the intermediates of all other encoders and classifiers."""
DECODER_TOLERANCE = 1e-5
"""Relative RMS, from an identical embedding."""
FLIP_TOLERANCE = 1e-5
"""Share of the mask's pixels at the photo's size that may change sides."""


def encoder_tolerance(config: EncoderConfig) -> float:
    """The bar of an encoder's intermediates and embedding."""
    deep = isinstance(config, RepViTConfig) and sum(config.depths) > 50
    return DEEP_TOLERANCE if deep else ENCODER_TOLERANCE


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared intermediate. `passed` is False also for NaN."""

    form: str
    name: str
    max_absolute: float
    relative: float
    """Root mean square of the difference over the reference's standard deviation (over 1 for predicted IoUs)."""
    cosine: float
    tolerance: float
    case: str = ""
    """The prompt, for those of the decoder."""
    rounding: float | None = None
    """What rounding alone does to these weights; measured only where an export was past tolerance."""

    @property
    def passed(self) -> bool:
        """Whether the difference is within tolerance."""
        return bool(self.relative <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class MaskRow:
    """Masks at the photo's size, end to end."""

    form: str
    case: str
    iou: float
    """The lowest intersection over union of a JAX mask with its PyTorch counterpart."""
    flipped: float
    """Share of pixels that differ."""
    tolerance: float
    rounding: float | None = None

    @property
    def passed(self) -> bool:
        """Whether few enough pixels differ."""
        return bool(self.flipped <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Masks of 8-bit weights against those of the float32 weights that they were made of, on scenes."""

    prompt: str
    count: int
    mean: float
    """Mean intersection over union."""
    lowest: float
    bar: float
    """What the mean must reach."""

    @property
    def passed(self) -> bool:
        """Whether it does; False also for NaN."""
        return bool(self.mean >= self.bar)


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that `parity` compared."""

    preset: str
    rows: tuple[Row, ...]
    masks: tuple[MaskRow, ...]
    noise: float | None = None
    """Relative RMS between the embeddings of PyTorch in float32 and in float64; measured only if something failed."""
    agreement: tuple[Agreement, ...] = ()
    """Of exports with 8-bit weights."""

    @property
    def passed(self) -> bool:
        """Whether all comparisons are within tolerance."""
        return all(self._verdicts())

    def _verdicts(self) -> list[bool]:
        compared: list[Row | MaskRow | Agreement] = [*self.rows, *self.masks, *self.agreement]
        return [row.passed for row in compared]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def plain(row: Row | MaskRow) -> dict[str, Any]:
            return {**dataclasses.asdict(row), "passed": row.passed}

        return {
            "preset": self.preset,
            "passed": self.passed,
            "pytorch_float32_against_float64": self.noise,
            "intermediates": [plain(row) for row in self.rows],
            "masks": [plain(row) for row in self.masks],
        }

    def to_text(self) -> str:
        """The tables, as Markdown; one of the decoder is shown for the prompt where it differs most."""
        compared: list[Row | MaskRow] = [*self.rows, *self.masks]
        rounded = any(row.rounding is not None for row in compared)
        extra = lambda text: f" {text} |" if rounded else ""

        def shown_rounding(row: Row | MaskRow) -> str:
            return extra("" if row.rounding is None else f"{row.rounding:.2e}")

        lines = [
            f"| form | intermediate | max abs | relative | cosine |{extra('rounding alone')} tolerance | |",
            f"|---|---|---:|---:|---:|{'---:|' * rounded}---:|---|",
        ]
        worst: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            shown = worst.setdefault((row.form, row.name), row)
            if not row.relative <= shown.relative:
                worst[row.form, row.name] = row
        for row in worst.values():
            name = f"{row.name} ({row.case})" if row.case else row.name
            numbers = f"{row.max_absolute:.2e} | {row.relative:.2e} | {row.cosine:.9f} |{shown_rounding(row)}"
            lines.append(f"| {row.form} | {name} | {numbers} {row.tolerance:.0e} | {_verdict(row.passed)} |")
        if self.masks:
            title = f"| form | prompt | mask IoU | flipped pixels |{extra('rounding alone')} tolerance | |"
            lines += ["", title, f"|---|---|---:|---:|{'---:|' * rounded}---:|---|"]
        for mask in self.masks:
            numbers = f"{mask.iou:.7f} | {mask.flipped:.2e} |{shown_rounding(mask)} {mask.tolerance:.0e}"
            lines.append(f"| {mask.form} | {mask.case} | {numbers} | {_verdict(mask.passed)} |")
        if self.agreement:
            lines += ["", "| int8 weights, prompt | prompts | mean mask IoU | lowest | bar | |"]
            lines.append("|---|---:|---:|---:|---:|---|")
        for each in self.agreement:
            numbers = f"{each.count} | {each.mean:.4f} | {each.lowest:.4f} | {each.bar}"
            lines.append(f"| {each.prompt} | {numbers} | {_verdict(each.passed)} |")
        verdicts = self._verdicts()
        failed, total = verdicts.count(False), len(verdicts)
        lines += ["", f"{self.preset}: {total - failed} of {total} comparisons within tolerance"]
        if self.noise is not None:
            lines.append(
                f"For scale: here PyTorch's own embedding differs by {self.noise:.1e} between float32 and float64. "
                "Where that is near the tolerance, the weights amplify rounding, as random ones may."
            )
        return "\n".join(lines)


def _verdict(passed: bool) -> str:
    return "ok" if passed else "FAIL"


def compare(
    form: str,
    name: str,
    found: np.ndarray,
    reference: np.ndarray,
    tolerance: float,
    scale: float | None = None,
    case: str = "",
) -> Row:
    """One row from two arrays of the same shape.

    `scale` is what differences are relative to: the reference's standard deviation if None.

    Raises:
      ValueError: the shapes differ.
    """
    if found.shape != reference.shape:
        raise ValueError(f"{name}: shape {found.shape} in JAX, {reference.shape} in PyTorch")
    a, b = np.asarray(found, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
    difference = a - b
    relative = np.sqrt(np.mean(difference**2)) / (b.std() if scale is None else scale)
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    return Row(form, name, float(np.abs(difference).max()), float(relative), float(cosine), tolerance, case)
