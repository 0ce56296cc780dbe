"""What a run is made of: frozen dataclasses that a run directory stores as JSON and the command line overrides."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from repvit_sam_jax.config import Dtype

LORA = "lora"
"""A part that learns in place of the image encoder."""
OPERATIONAL = (
    *("teacher", "fsdp", "remat", "log_every", "checkpoint_every", "evaluate_every", "patience", "evals"),
    *("evals_limit", "keep"),
)
"""Fields that may change while a run goes on: results do not depend on them. A teacher may move, not change."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Linear warm-up from 0 and cosine decay; gradients are clipped by their global norm."""

    learning_rate: float
    final_learning_rate: float = 0.0
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """For kernels alone: not biases, scales, tokens and relative positions; with Muon, nor depthwise kernels."""
    name: Literal["adamw", "muon"] = "adamw"
    """AdamW (arXiv 1711.05101); or Muon (2502.16982) for all kernels but depthwise ones, which are no matrices, with
    updates as large as AdamW's, so that one learning rate suits both, and AdamW with Nesterov momentum for the rest."""
    clip_norm: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    ema_decay: float | None = None
    """Decay of a moving average of params and running statistics, which is evaluated and exported; None for none."""


@dataclasses.dataclass(frozen=True)
class Losses:
    """Weights of the losses; a loss of weight 0 is not computed."""

    mse: float = 1.0
    """Squared error of the image embeddings."""
    padding: bool = False
    """Whether positions that lie in the padding of the image count in it."""
    bce: float = 0.0
    """Binary cross-entropy of the masks of the prompts; the next one is their Dice loss."""
    dice: float = 0.0
    iou: float = 0.0
    """Squared error of the predicted IoUs, against those of the masks with their targets."""

    @property
    def embeddings(self) -> bool:
        """Whether the teacher's embeddings are needed as targets."""
        return bool(self.mse)

    @property
    def masks(self) -> bool:
        """Whether prompts are in the loop."""
        return bool(self.bce or self.dice or self.iou)


@dataclasses.dataclass(frozen=True)
class Prompting:
    """Prompts in the loop: a box or a point on each of some masks of a photo, then points where the student errs."""

    num_prompts: int = 16
    """Masks of a photo that are prompted for, at most."""
    rounds: int = 2
    """Decodings; each after the first one gets one more point."""
    logits: bool = False
    """Whether it also gets the logits of the mask before, as SAM is trained (arXiv 2304.02643, appendix A); the prompt
    encoder is to learn then."""
    box_probability: float = 0.5
    """Probability of a box rather than a point, in the first round; masks without points always get a box."""
    box_noise: float = 0.0
    """Deviation of the noise on boxes, as a fraction of their sides."""
    area_exponent: float = 0.0
    """A mask is chosen with probability proportional to area**-area_exponent: 0 for all alike, more for small ones."""
    targets: Literal["teacher", "ground_truth"] = "teacher"
    """Masks to learn: the teacher's for the same prompts, or those that the prompts were drawn from."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run of distillation, or of training without a teacher. `epochs` or `steps` says how long."""

    name: str
    student: str
    """Preset."""
    batch_size: int
    """Photos a step, over all devices."""
    optimizer: Optimizer
    teacher: str | None = None
    """What `load` takes, a file, a folder or a name; `random:PRESET` for random weights; None if not needed."""
    init: str | None = None
    """A .safetensors file in training form to start the student from, such as `repvit-sam convert backbone` makes of a
    classifier and `repvit-sam train export --form train` of a run; None for random weights."""
    decoder: Literal["teacher", "init"] = "teacher"
    """Where prompt encoder and mask decoder come from; without a teacher it is `init`."""
    trained: tuple[str, ...] = ("image_encoder",)
    """Parts of the student that learn: `image_encoder`, `mask_decoder`, `prompt_encoder`; `lora` in place of the first
    for low-rank updates of a ViT's attention."""
    lora_rank: int = 4
    """Rank of these updates."""
    image_size: int | None = None
    """S in pixels, of student and teacher; the student's own if None."""
    epochs: float | None = None
    steps: int | None = None
    micro_batches: int = 1
    """Parts of a batch that go through the models one after the other, which saves memory; BatchNorm's running
    statistics move once a step, by the mean over the parts."""
    losses: Losses = Losses()
    prompting: Prompting = Prompting()
    flip_probability: float = 0.0
    dtype: Dtype = "bfloat16"
    """The arithmetic's, also the teacher's; the student's params and the optimizer's state are float32."""
    remat: Literal["none", "dots", "all"] = "none"
    """What of the student's blocks is computed again for their gradients: nothing, all but convolutions and linear
    layers, or all."""
    fsdp: int = 1
    """Devices that large arrays are split over; the batch is split over all devices."""
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    evaluate_every: int = 1000
    evals: tuple[str, ...] = ()
    """Tasks of `repvit-sam eval` that are measured besides, as often."""
    patience: int | None = None
    """Evaluations without a better score after which the run ends; it is then evaluated before its first step too, so
    that its best checkpoint is none worse than its start. None to take all steps."""
    evals_limit: int | None = 100
    """Items of each task, the first ones; None for all."""
    keep: int = 2
    """Latest checkpoints that are kept, besides the best one."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"recipe {self.name}: set one of epochs and steps, the other to None")
        counts = (
            *("epochs" if self.steps is None else "steps", "batch_size", "micro_batches", "fsdp", "log_every"),
            *("checkpoint_every", "evaluate_every", "keep", "lora_rank", *["patience"] * (self.patience is not None)),
        )
        groups = [(name, self) for name in counts] + [(name, self.prompting) for name in ("num_prompts", "rounds")]
        for name, group in groups:
            if not getattr(group, name) > 0:
                raise ValueError(f"recipe {self.name}: {name} must be positive, got {getattr(group, name)}")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"recipe {self.name}: batch_size {self.batch_size} is not divisible by micro_batches "
                f"{self.micro_batches}"
            )
        for name, value in (
            ("optimizer.warmup", self.optimizer.warmup),
            ("prompting.box_probability", self.prompting.box_probability),
            ("flip_probability", self.flip_probability),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"recipe {self.name}: {name} must be from 0 to 1, got {value}")
        optimizer, losses = self.optimizer, self.losses
        for name, value in (
            ("optimizer.learning_rate", optimizer.learning_rate),
            ("optimizer.final_learning_rate", optimizer.final_learning_rate),
            ("optimizer.weight_decay", optimizer.weight_decay),
            ("optimizer.clip_norm", math.inf if optimizer.clip_norm is None else optimizer.clip_norm),
            *((f"losses.{loss}", getattr(losses, loss)) for loss in ("mse", "bce", "dice", "iou")),
            ("prompting.box_noise", self.prompting.box_noise),
        ):
            if not value >= 0:
                raise ValueError(f"recipe {self.name}: {name} must not be negative, got {value}")
        for name in ("b1", "b2", "ema_decay"):
            value = getattr(optimizer, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"recipe {self.name}: optimizer.{name} must be from 0 to below 1, got {value}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"recipe {self.name}: seed must be from 0 to 2**31 - 1, got {self.seed}")
        own_decoder = self.decoder == "init" or (self.teacher is None and not self.needs_teacher)
        if self.prompting.logits and "prompt_encoder" not in self.trained and own_decoder and not self.init:
            raise ValueError(
                f"recipe {self.name}: prompting.logits needs a prompt encoder that knows masks: train it, or give init"
            )
        if self.losses.iou and not (self.losses.bce or self.losses.dice):
            raise ValueError(f"recipe {self.name}: losses.iou needs losses.bce or losses.dice, which choose the masks")
        unknown = set(self.trained) - {"image_encoder", "mask_decoder", "prompt_encoder", LORA}
        if unknown or not self.trained:
            raise ValueError(f"recipe {self.name}: trained names parts of the student, got {self.trained}")
        if {"image_encoder", LORA} <= set(self.trained):
            raise ValueError(f"recipe {self.name}: lora stands in place of image_encoder; train one of them")
        if not (self.losses.embeddings or self.losses.masks):
            raise ValueError(f"recipe {self.name}: all losses have weight 0")
        if not self.losses.masks and (idle := set(self.trained) - {"image_encoder", LORA}):
            raise ValueError(
                f"recipe {self.name}: without losses of masks nothing teaches {', '.join(sorted(idle))}, and weight "
                "decay would wear it away; leave it out of trained"
            )
        prompting, unasked = self.prompting, None
        if prompting.box_probability == 1:
            unasked = "the masks for single points"
        elif prompting.box_probability == 0 and prompting.rounds == 1:
            unasked = "the mask for boxes and several points"
        if unasked and self.losses.masks and "mask_decoder" in self.trained and optimizer.weight_decay:
            raise ValueError(
                f"recipe {self.name}: with prompting.box_probability {prompting.box_probability:g} nothing teaches "
                f"{unasked}, and weight decay would wear them away; set optimizer.weight_decay=0, or ask for both"
            )

    @property
    def encoder_learns(self) -> bool:
        """Whether anything in the image encoder changes."""
        return not {"image_encoder", LORA}.isdisjoint(self.trained)

    @property
    def needs_teacher(self) -> bool:
        """Whether any target comes from the teacher."""
        return self.losses.embeddings or self.asks_teacher

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher answers prompts."""
        return self.losses.masks and self.prompting.targets == "teacher"

    @property
    def num_masks(self) -> int:
        """Masks a photo that examples hold."""
        return self.prompting.num_prompts if self.losses.masks else 0

    def num_steps(self, num_photos: int) -> int:
        """Steps of the run, on a source of so many photos."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * num_photos / self.batch_size))


def recipes() -> dict[str, Recipe]:
    """All recipes of `train/recipes`, by name."""
    from . import recipes as folder

    found: dict[str, Recipe] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        for value in vars(importlib.import_module(f"{folder.__name__}.{module.name}")).values():
            if isinstance(value, Recipe):
                found[value.name] = value
    return found


def get_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe with some values replaced.

    Args:
      name: of a recipe, or a JSON file that a run wrote.
      settings: `key=value` each, such as `optimizer.learning_rate=1e-4`; the value is read as the field's type says.

    Raises:
      ValueError: there is no such recipe or field, or a value is none of its type.
    """
    if name.endswith(".json"):
        recipe = from_json(Path(name).read_text())
    elif name in recipes():
        recipe = recipes()[name]
    else:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(sorted(recipes()))}, and recipe.json of a run")
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {setting!r}")
        changes[key] = _parse(key, text)
    if "steps" in changes and "epochs" not in changes:
        changes["epochs"] = None
    if "epochs" in changes and "steps" not in changes:
        changes["steps"] = None
    return _replace(recipe, changes)


def to_json(recipe: Recipe) -> str:
    """The whole recipe; `from_json` is the inverse."""
    return json.dumps(dataclasses.asdict(recipe), indent=1)


_FORMER = {("losses", "cosine"): 0.0}
"""Fields of recipes of version 0.1, and the value with which this version does the same."""


def from_json(text: str) -> Recipe:
    """Raises ValueError if the text is no recipe of this version."""
    try:
        values = json.loads(text)
        for (group, name), default in _FORMER.items():
            if (value := values[group].pop(name, default)) != default:
                raise ValueError(f"not a recipe of this version: {group}.{name} is {value}, which only 0.1 could do")
        parts = {"optimizer": Optimizer, "losses": Losses, "prompting": Prompting}
        built = {name: part(**values[name]) for name, part in parts.items()}
        named = {name: tuple(values.get(name, ())) for name in ("trained", "evals")}
        return Recipe(**{**values, **built, **named})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a recipe of this version: {error}") from error


def _field_type(key: str) -> Any:
    kind: Any = Recipe
    for name in key.split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in hints:
            raise ValueError(f"recipes have no field {key!r}; {getattr(kind, '__name__', kind)} has {', '.join(hints)}")
        kind = hints[name]
    if dataclasses.is_dataclass(kind):
        raise ValueError(f"{key} is a group of fields: set one of {', '.join(typing.get_type_hints(kind))}")
    return kind


def _parse(key: str, text: str) -> Any:
    kind = _field_type(key)
    if isinstance(kind, types.UnionType) and text == "None":
        return None
    if typing.get_origin(kind) is tuple:
        return tuple(part for part in text.split(",") if part)
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    try:
        if kind is bool:
            return {"True": True, "False": False, "true": True, "false": False}[text]
        if typing.get_origin(kind) is Literal:
            return {str(choice): choice for choice in typing.get_args(kind)}[text]
        return kind(text)
    except (KeyError, ValueError):
        wanted = typing.get_args(kind) or kind.__name__
        raise ValueError(f"{key} takes {wanted}, got {text!r}") from None


def _replace(recipe: Any, changes: Mapping[str, Any]) -> Any:
    own = {key: value for key, value in changes.items() if "." not in key}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        if "." in key:
            group, _, name = key.partition(".")
            inner.setdefault(group, {})[name] = value
    groups = {group: _replace(getattr(recipe, group), values) for group, values in inner.items()}
    return dataclasses.replace(recipe, **own, **groups)
