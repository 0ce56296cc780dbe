"""Does the JAX model compute what the PyTorch model computes? A table, a row an intermediate result.

Both models run on the same image and prompts. The JAX activations come out of `Sam.encode`, `Sam.decode` and
`Classifier.classify` themselves, in training and in deploy form; the PyTorch ones from hooks on the twin, which loads
the checkpoint with `strict=True`. The decoders are compared on the same embedding (the twin's), then the masks end to
end.
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
from repvit_sam_jax.config import ClassifierConfig, Form, SamConfig
from repvit_sam_jax.models import classifier
from repvit_sam_jax.models.classifier import Classifier
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.models.prompt_encoder import Prompts
from repvit_sam_jax.models.sam import Sam
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.checkpoint import CheckpointError
from repvit_sam_jax.weights.formats import mapping
from repvit_sam_jax.weights.loading import find_weights, is_own, read_params
from repvit_sam_jax.weights.reparam import ReparamError, fuse

from .from_torch import read_state_dict
from .report import DECODER_TOLERANCE, FLIP_TOLERANCE, MaskRow, Report, Row, compare, encoder_tolerance
from .synthetic import PHOTO, synthetic_image
from .torch_models import RepViTClassifier, twin_of
from .torch_models import Sam as TorchSam
from .torch_models.repvit import RepViTEncoder
from .torch_models.tiny_vit import TinyViTEncoder
from .torch_models.vit import ViTEncoder


def parity(source: Path, image: np.ndarray | None = None, image_size: int | None = None) -> Report:
    """Compare the JAX model with the PyTorch twin on the same weights.

    Args:
      source: a `.pt` file, of the published names or fused; a `.safetensors` file of this library, or `demo`.
      image: uint8 RGB [H, W, 3]; a synthetic one of `synthetic.PHOTO` if None.
      image_size: the input side in pixels, if not the preset's.

    Raises:
      CheckpointError: the file is no checkpoint of a known model.
    """
    source = find_weights(source)
    if not source.is_dir() and is_own(source):
        config, form, params = read_params(source)
        config = dataclasses.replace(config, image_size=image_size or config.image_size)
        state = mapping.to_state(params, config, form)
    else:
        state = read_state_dict(source)
        try:
            config, form = mapping.identify(state)
            params = mapping.to_params(state, config, form)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
        config = dataclasses.replace(config, image_size=image_size or config.image_size)
    if image is None:
        image = synthetic_image(*PHOTO)
    forms: dict[Form, Params] = {form: params}
    if form == "train":
        try:
            forms["deploy"] = fuse(params)
        except ReparamError as error:
            raise CheckpointError(f"{source} can't be fused: {error}") from error
    weights = {key: torch.from_numpy(checkpoint.widen(value).copy()) for key, value in state.items()}
    with jax.default_matmul_precision("highest"), torch.no_grad():
        if isinstance(config, ClassifierConfig):
            classifier_twin = twin_of(config, form)
            classifier_twin.load_state_dict(weights, strict=True)
            return _compare_classifiers(config, classifier_twin, forms, image)
        twin = twin_of(config, form)
        twin.load_state_dict(weights, strict=True)
        return _compare_segmenters(config, twin, forms, image)


def _compare_classifiers(
    config: ClassifierConfig, twin: RepViTClassifier, forms: Mapping[Form, Params], image: np.ndarray
) -> Report:
    images = classifier.preprocess(image, config.image_size)
    expected = _twin_intermediates(twin, images)
    classify = jax.jit(Classifier.classify_with_intermediates, static_argnums=0)
    rows = []
    for name, params in forms.items():
        _, intermediates = classify(Classifier(config, name), params, images)
        rows += _compare_intermediates(name, intermediates, expected, encoder_tolerance(config.backbone))
    report = Report(config.name, tuple(rows), masks=())
    if report.passed:
        return report
    return dataclasses.replace(report, noise=_float32_noise(twin, images, "logits", expected["logits"]))


def _compare_segmenters(config: SamConfig, twin: TorchSam, forms: Mapping[Form, Params], image: np.ndarray) -> Report:
    reference = _Reference(twin, image)
    encode = jax.jit(Sam.encode_with_intermediates, static_argnums=0)
    # The decoder has no BatchNorm: it is one and the same function in both forms.
    decode = functools.partial(
        jax.jit(Sam.decode_with_intermediates, static_argnums=0), Sam(config, "deploy"), forms["deploy"]
    )
    rows, masks = [], []
    for name, params in forms.items():
        embedding, intermediates = encode(Sam(config, name), params, reference.images)
        rows += _compare_intermediates(name, intermediates, reference.encoder, encoder_tolerance(config.image_encoder))
        masks += [_compare_masks(name, case, decode, embedding, reference) for case in reference.cases]
    rows += [row for case in reference.cases for row in _compare_decoder(case, decode, reference)]
    report = Report(config.name, tuple(rows), tuple(masks))
    if report.passed:
        return report
    noise = _float32_noise(twin.image_encoder, reference.images, "embedding", reference.encoder["embedding"])
    return dataclasses.replace(report, noise=noise)


def _compare_intermediates(
    form: Form, found: Mapping[str, Any], expected: Mapping[str, np.ndarray], tolerance: float
) -> list[Row]:
    return [compare(form, name, np.asarray(found[name]), value, tolerance) for name, value in expected.items()]


Encoder = RepViTClassifier | RepViTEncoder | ViTEncoder | TinyViTEncoder
"""The twins that say by which of their submodules the intermediates are computed."""


def _twin_intermediates(encoder: Encoder, images: np.ndarray) -> dict[str, np.ndarray]:
    """The twin's intermediates, channels last."""
    submodules = encoder.intermediates()
    with _Recording(encoder, {name: module for name, (module, _) in submodules.items()}) as recorded:
        encoder(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return {name: (y.permute(0, 2, 3, 1) if submodules[name][1] else y).numpy() for name, y in recorded.items()}


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
    """What the twin computes on the image: intermediates of the encoder, and per case the decoder's and masks."""

    def __init__(self, twin: TorchSam, image: np.ndarray):
        self.config = config = twin.config
        self.size, self.images = image.shape[:2], transforms.preprocess(image, config.image_size)
        self.cases = cases(self.size, config.image_size)
        self.encoder = _twin_intermediates(twin.image_encoder, self.images)
        self.embedding = self.encoder["embedding"]
        embedding = torch.from_numpy(self.embedding).permute(0, 3, 1, 2)
        self.decoder: dict[str, dict[str, np.ndarray]] = {}
        for case in self.cases:
            with _Recording(twin, _decoder_intermediates(config)) as recorded:
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

        def hook(name: str) -> Callable[..., None]:
            return lambda _module, _inputs, output: recorded.__setitem__(name, output)

        for name, submodule in self._names.items():
            self._handles.append(self._module.get_submodule(submodule).register_forward_hook(hook(name)))
        return recorded

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _decoder_intermediates(config: SamConfig) -> dict[str, str]:
    layers = {f"transformer.{i}": f"mask_decoder.transformer.layers.{i}" for i in range(config.mask_decoder.depth)}
    return {"prompt": "prompt_encoder", **layers, "transformer.final": "mask_decoder.transformer.norm_final_attn"}


def _float32_noise(encoder: Encoder, images: np.ndarray, name: str, float32: np.ndarray) -> float:
    """How far an intermediate of the twin in float32 is from the same in float64."""
    with torch.no_grad():
        exact = _twin_intermediates(encoder.double(), images.astype(np.float64))[name]
    return compare("both", "noise", float32, exact, 0.0).relative


Decode = Callable[[Any, Prompts], tuple[Any, Mapping[str, Any]]]
"""`Sam.decode_with_intermediates`, jitted, params filled in."""


def _compare_decoder(case: Case, decode: Decode, reference: _Reference) -> list[Row]:
    _, intermediates = decode(reference.embedding, case.prompts(reference.mask_input(case)))
    rows = []
    for name, expected in reference.decoder[case.name].items():
        # Three IoUs can be nearly equal, so their deviation is no scale; they live on [0, 1].
        scale = 1.0 if name == "iou_predictions" else None
        found = np.asarray(intermediates[name])
        rows.append(compare("both", name, found, expected, DECODER_TOLERANCE, scale, case=case.name))
    return rows


def _compare_masks(form: Form, case: Case, decode: Decode, embedding: Any, reference: _Reference) -> MaskRow:
    config, size = reference.config, reference.size
    (found, _), _ = decode(embedding, case.prompts(reference.mask_input(case)))
    expected = reference.decoder[case.name]["low_res_masks"]
    ours, theirs = (
        transforms.postprocess_masks(np.asarray(logits)[0, 0], size, config.image_size) > config.mask_threshold
        for logits in (found, expected)
    )
    union = (ours | theirs).sum((1, 2))
    ious = (ours & theirs).sum((1, 2)) / np.maximum(union, 1)
    return MaskRow(
        form, case.name, float(np.where(union, ious, 1.0).min()), float((ours != theirs).mean()), FLIP_TOLERANCE
    )
