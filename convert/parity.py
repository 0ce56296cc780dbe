"""Does the JAX model compute what the PyTorch model computes? A table, a row a stage.

Both models run on the same image and prompts. The JAX activations come out of `Sam.encode` and `Sam.decode`
themselves, in training and in deploy form; the PyTorch ones from hooks on the twin, which loads the checkpoint
with `strict=True`. The decoders are compared on the same embedding (the twin's), then the masks end to end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from repvit_sam_jax import transforms
from repvit_sam_jax.config import Form, SamConfig, get_config
from repvit_sam_jax.prompt_encoder import Prompts
from repvit_sam_jax.reparam import fuse
from repvit_sam_jax.sam import Params, Sam

from . import mapping
from .from_torch import read_state_dict
from .synthetic import synthetic_image
from .torch_models import Sam as TorchSam

ENCODER_TOLERANCE = {"repvit": 5e-5, "vit": 1e-5}
"""Relative RMS, by family. RepViT's float32 is 0.7-1.9e-5 from its float64 already, a wrong epsilon 4e-5."""
DECODER_TOLERANCE = 1e-5
"""Relative RMS, from an identical embedding."""
FLIP_TOLERANCE = 1e-5
"""Share of the mask's pixels at the photo's size that may change sides."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared stage. `passed` is False also for NaN."""

    form: str
    stage: str
    max_absolute: float
    relative: float
    """Root mean square of the difference over the reference's standard deviation (over 1 for predicted IoUs)."""
    cosine: float
    tolerance: float
    case: str = ""
    """The prompt, for a stage of the decoder."""

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
    tolerance: float = FLIP_TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether few enough pixels differ."""
        return bool(self.flipped <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that `parity` compared."""

    preset: str
    rows: tuple[Row, ...]
    masks: tuple[MaskRow, ...]
    noise: float | None = None
    """Relative RMS between the embeddings of PyTorch in float32 and in float64; measured only if something failed."""

    @property
    def passed(self) -> bool:
        """Whether all comparisons are within tolerance."""
        return all(row.passed for row in self.rows) and all(row.passed for row in self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def plain(row: Row | MaskRow) -> dict[str, Any]:
            return {**dataclasses.asdict(row), "passed": row.passed}

        return {
            "preset": self.preset,
            "passed": self.passed,
            "pytorch_float32_against_float64": self.noise,
            "stages": [plain(row) for row in self.rows],
            "masks": [plain(row) for row in self.masks],
        }

    def to_text(self) -> str:
        """The tables, as Markdown; a stage of the decoder is shown for the prompt where it differs most."""
        lines = [
            "| form | stage | max abs | relative | cosine | tolerance | |",
            "|---|---|---:|---:|---:|---:|---|",
        ]
        worst: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            shown = worst.setdefault((row.form, row.stage), row)
            if not row.relative <= shown.relative:
                worst[row.form, row.stage] = row
        for row in worst.values():
            stage = f"{row.stage} ({row.case})" if row.case else row.stage
            numbers = f"{row.max_absolute:.2e} | {row.relative:.2e} | {row.cosine:.9f} | {row.tolerance:.0e}"
            lines.append(f"| {row.form} | {stage} | {numbers} | {_verdict(row.passed)} |")
        lines += ["", "| form | prompt | mask IoU | flipped pixels | tolerance | |", "|---|---|---:|---:|---:|---|"]
        for mask in self.masks:
            numbers = f"{mask.iou:.7f} | {mask.flipped:.2e} | {mask.tolerance:.0e}"
            lines.append(f"| {mask.form} | {mask.case} | {numbers} | {_verdict(mask.passed)} |")
        failed = sum(not row.passed for row in self.rows) + sum(not row.passed for row in self.masks)
        total = len(self.rows) + len(self.masks)
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
    stage: str,
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
        raise ValueError(f"{stage}: shape {found.shape} in JAX, {reference.shape} in PyTorch")
    a, b = np.asarray(found, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
    difference = a - b
    relative = np.sqrt(np.mean(difference**2)) / (b.std() if scale is None else scale)
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    return Row(form, stage, float(np.abs(difference).max()), float(relative), float(cosine), tolerance, case)


def parity(source: Path, image: np.ndarray | None = None, image_size: int | None = None) -> Report:
    """Compare the JAX model with the PyTorch twin on a PyTorch checkpoint.

    Args:
      source: a `.pt` file, of the published names or fused.
      image: uint8 RGB [H, W, 3]; a synthetic image if None.
      image_size: the input side in pixels, if not the preset's.

    Raises:
      CheckpointError: the file is no checkpoint of a known model.
    """
    state = read_state_dict(source)
    config, form = mapping.identify(state)
    params = mapping.to_params(state, config, form)
    config = get_config(config.name, image_size)
    if image is None:
        image = synthetic_image(config.image_size * 3 // 4, config.image_size)
    twin = TorchSam(config).eval()
    if form == "deploy":
        twin.fuse()
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
    forms: dict[Form, Params] = {"deploy": params} if form == "deploy" else {"train": params, "deploy": fuse(params)}
    with jax.default_matmul_precision("highest"), torch.no_grad():
        reference = _Reference(twin, image)
        deployed = Sam(config, "deploy"), forms["deploy"]
        # The decoder has no BatchNorm: it is one and the same function in both forms.
        decode = functools.partial(jax.jit(functools.partial(deployed[0].decode, return_stages=True)), deployed[1])
        rows, masks = [], []
        for name, form_params in forms.items():
            model = Sam(config, name)
            embedding, stages = jax.jit(functools.partial(model.encode, return_stages=True))(
                form_params, reference.images
            )
            rows += [
                compare(
                    name, stage, np.asarray(stages[stage]), expected, ENCODER_TOLERANCE[config.image_encoder.family]
                )
                for stage, expected in reference.encoder.items()
            ]
            masks += [_compare_masks(name, case, decode, embedding, reference) for case in reference.cases]
        rows += [row for case in reference.cases for row in _compare_decoder(case, decode, reference)]
    report = Report(config.name, tuple(rows), tuple(masks))
    return report if report.passed else dataclasses.replace(report, noise=_float32_noise(twin, reference))


@dataclasses.dataclass(frozen=True)
class Case:
    """One prompt, in the resized frame. `after` names the case whose first mask is fed back in."""

    name: str
    coords: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None = None
    after: str | None = None

    def prompts(self, mask: np.ndarray | None) -> Prompts:
        """The case as `Prompts` for one image, with a mask prompt if one is given."""
        return Prompts(
            self.coords[None, None],
            self.labels[None, None],
            np.ones((1, 1, len(self.labels)), bool),
            boxes=None if self.box is None else self.box[None, None],
            masks=None if mask is None else mask[None, None],
        )


def cases(size: tuple[int, int], image_size: int) -> list[Case]:
    """Every combination of prompt kinds, for an image of (height, width)."""
    height, width = size
    points = transforms.apply_coords(
        np.array([[0.3 * width, 0.4 * height], [0.7 * width, 0.6 * height]]), size, image_size
    )
    box = transforms.apply_boxes(np.array([0.2 * width, 0.25 * height, 0.75 * width, 0.8 * height]), size, image_size)
    labels = np.array([1, 0], np.int32)
    return [
        Case("point", points[:1], labels[:1]),
        Case("points", points, labels),
        Case("box", points[:0], labels[:0], box),
        Case("box_point", points[:1], labels[:1], box),
        Case("points_mask", points, labels, after="point"),
    ]


class _Reference:
    """What the twin computes on the image: stages of the encoder, and per case stages of the decoder and masks."""

    def __init__(self, twin: TorchSam, image: np.ndarray):
        self.config = config = twin.config
        self.size, self.images = image.shape[:2], transforms.preprocess(image, config.image_size)
        self.cases = cases(self.size, config.image_size)
        channels_first = torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy())
        stages = twin.image_encoder.stages()
        with _Recording(twin.image_encoder, {name: module for name, (module, _) in stages.items()}) as recorded:
            embedding = twin.encode(channels_first)
        self.encoder = {
            name: (value.permute(0, 2, 3, 1) if stages[name][1] else value).numpy() for name, value in recorded.items()
        }
        self.embedding = embedding.numpy().transpose(0, 2, 3, 1)
        self.decoder: dict[str, dict[str, np.ndarray]] = {}
        for case in self.cases:
            with _Recording(twin, _decoder_stages(config)) as recorded:
                masks, iou = twin.decode(embedding, **self._arguments(case))
            tokens, dense = recorded.pop("prompt")
            decoded = {"prompt_tokens": tokens[None], "dense_prompt": (embedding + dense).permute(0, 2, 3, 1)[None]}
            for name, value in recorded.items():
                if isinstance(value, tuple):
                    decoded[f"{name}.tokens"], decoded[f"{name}.image"] = value[0][None], value[1][None]
                else:
                    decoded[name] = value[None]
            decoded |= {"low_res_masks": masks[None], "iou_predictions": iou[None]}
            self.decoder[case.name] = {name: value.numpy() for name, value in decoded.items()}

    def mask_input(self, case: Case) -> np.ndarray | None:
        return None if case.after is None else self.decoder[case.after]["low_res_masks"][0, 0, 0]

    def _arguments(self, case: Case) -> dict[str, Any]:
        mask = self.mask_input(case)
        coords, labels = torch.from_numpy(case.coords)[None], torch.from_numpy(case.labels)[None]
        return {
            "coords": coords if len(case.labels) else None,
            "labels": labels if len(case.labels) else None,
            "boxes": None if case.box is None else torch.from_numpy(case.box)[None],
            "masks": None if mask is None else torch.from_numpy(mask)[None, None],
        }


class _Recording:
    """A context in which the outputs of named submodules are collected into a dict."""

    def __init__(self, module: torch.nn.Module, names: Mapping[str, str]):
        self._module, self._names = module, names
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> dict[str, Any]:
        recorded: dict[str, Any] = {}

        def hook(stage: str) -> Callable[..., None]:
            return lambda _module, _inputs, output: recorded.__setitem__(stage, output)

        for stage, name in self._names.items():
            self._handles.append(self._module.get_submodule(name).register_forward_hook(hook(stage)))
        return recorded

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _decoder_stages(config: SamConfig) -> dict[str, str]:
    layers = {f"transformer.{i}": f"mask_decoder.transformer.layers.{i}" for i in range(config.mask_decoder.depth)}
    return {"prompt": "prompt_encoder", **layers, "transformer.final": "mask_decoder.transformer.norm_final_attn"}


def _float32_noise(twin: TorchSam, reference: _Reference) -> float:
    with torch.no_grad():
        images = torch.from_numpy(reference.images.transpose(0, 3, 1, 2).copy()).double()
        exact = twin.double().encode(images).permute(0, 2, 3, 1).numpy()
    return compare("both", "noise", reference.embedding, exact, 0.0).relative


Decode = Callable[[Any, Prompts], tuple[Any, ...]]
"""`Sam.decode` with its stages, jitted, params filled in."""


def _compare_decoder(case: Case, decode: Decode, reference: _Reference) -> list[Row]:
    *_, stages = decode(reference.embedding, case.prompts(reference.mask_input(case)))
    rows = []
    for name, expected in reference.decoder[case.name].items():
        # Three IoUs can be nearly equal, so their deviation is no scale; they live on [0, 1].
        scale = 1.0 if name == "iou_predictions" else None
        found = np.asarray(stages[name])
        rows.append(compare("both", name, found, expected, DECODER_TOLERANCE, scale, case=case.name))
    return rows


def _compare_masks(form: Form, case: Case, decode: Decode, embedding: Any, reference: _Reference) -> MaskRow:
    config, size = reference.config, reference.size
    found, *_ = decode(embedding, case.prompts(reference.mask_input(case)))
    expected = reference.decoder[case.name]["low_res_masks"]
    ours, theirs = (
        transforms.postprocess_masks(np.asarray(logits)[0, 0], size, config.image_size) > config.mask_threshold
        for logits in (found, expected)
    )
    union = (ours | theirs).sum((1, 2))
    ious = (ours & theirs).sum((1, 2)) / np.maximum(union, 1)
    return MaskRow(form, case.name, float(np.where(union, ious, 1.0).min()), float((ours != theirs).mean()))
