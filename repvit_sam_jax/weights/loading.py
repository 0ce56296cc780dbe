"""`load`: a checkpoint to `(model, params)`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from ..config import FORMS, Dtype, Form, ModelConfig
from ..models.classifier import Classifier
from ..models.factory import model_of
from ..models.model import Params
from ..models.sam import Sam
from . import checkpoint, hub
from .checkpoint import CheckpointError
from .formats import mapping, safetensors_file
from .formats.reading import read_official
from .reparam import ReparamError, fuse

DEMO = Path(__file__).parent / "demo.safetensors"
"""The demonstration model, which is part of the package."""


def find_weights(name: str | os.PathLike | None) -> Path:
    """The file or the folder that weights are in.

    Args:
      name: a path, which stays as it is; unless there is something of that name, `demo` for the package's own, or a
        name that `hub.fetch` takes, whose weights are downloaded the first time; or None for the package's own.

    Raises:
      FileNotFoundError: the package's own is asked for, and is missing.
      DownloadError: as `hub.fetch`.
    """
    if name is not None and hub.is_name(name):
        return _own_file(hub.fetch(name))
    if name is not None and (os.fspath(name) != "demo" or Path(name).is_file()):
        return _own_file(Path(name))
    if not DEMO.is_file():
        raise FileNotFoundError(f"the demonstration model is missing from this installation: there is no {DEMO}")
    return DEMO


def _own_file(path: Path) -> Path:
    """This library's file in a folder that `convert to-hf` wrote; any other path as it is."""
    inner = path / "model.safetensors"
    return inner if path.is_dir() and inner.is_file() and is_own(inner) else path


def read_params(
    path: str | os.PathLike,
    form: Form | None = None,
    *,
    verify: bool = False,
    key: str | None = None,
    ignore: Sequence[str] = (),
) -> tuple[ModelConfig, Form, Params]:
    """The checked params of a file, as NumPy arrays, fused if the deploy form of a training-form file is asked for.

    Args:
      path: a `.safetensors` file of this library, `demo` (`find_weights`), or what `reading.read_official` takes.
      form: `train` or `deploy`; the file's own if None.
      verify: as `checkpoint.read` does, for files of this library; always for those that have a name.
      key: as `reading.read_official` takes it, for others.
      ignore: patterns of keys that others have too many, as `mapping.convert` takes them.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: a damaged or foreign file, weights that do not fit the model that the file names (all of them
        are listed) or can't be fused, or a deploy-form file where the training form was asked for.
      ValueError: an unknown form.
    """
    if form not in (None, *FORMS):
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    verify = verify or hub.is_name(path)
    path = find_weights(path)
    if path.is_dir() or not is_own(path):
        try:
            return mapping.convert(read_official(path, key), form=form, ignore=ignore)
        except CheckpointError as error:
            raise CheckpointError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    if key is not None or ignore:
        raise CheckpointError(f"{path} is a file of this library, which has neither another key nor keys to ignore")
    return _read_own(path, form, verify)


def is_own(path: Path) -> bool:
    """Whether a file is, or pretends to be, one of this library's."""
    checkpoint.check_file(path)
    if not safetensors_file.is_one(path):
        return False
    return safetensors_file.metadata(path).get("format", "").startswith(checkpoint.FORMAT.partition("/")[0])


def _read_own(path: Path, form: Form | None, verify: bool) -> tuple[ModelConfig, Form, Params]:
    arrays, metadata = checkpoint.read(path, verify=verify)
    config, stored = metadata.config, metadata.form
    try:
        expected = dict(checkpoint.flatten(model_of(config, stored).abstract_params()))
    except Exception as error:  # a damaged config is free to be any nonsense
        raise CheckpointError(f"{path} can't be loaded: its metadata are damaged: {error}") from error
    checkpoint.check(arrays, expected, f"{path} ({config.name}, {stored} form)")
    params = checkpoint.unflatten(arrays)
    if not config.has_batch_norm:
        return config, form or stored, params
    if form == "train" and stored == "deploy":
        raise CheckpointError(
            f"{path} is in deploy form: its BatchNorms are folded and can't be had back; give the file in train form"
        )
    if form == "deploy" and stored == "train":
        try:
            return config, form, fuse(params)
        except ReparamError as error:
            raise CheckpointError(f"{path} can't be fused: {error}") from error
    return config, stored, params


def load(
    path: str | os.PathLike,
    *,
    form: Form = "deploy",
    dtype: Dtype = "float32",
    image_size: int | None = None,
    verify: bool = False,
    key: str | None = None,
    ignore: Sequence[str] = (),
) -> tuple[Sam, Params]:
    """A model and its params from a checkpoint, of this library or of another program.

    Args:
      path: a `.safetensors` file of this library; an official PyTorch checkpoint such as `repvit_sam.pt`, which is read
        without PyTorch; a folder or a file of transformers' `SamModel`; a name, such as `repvit_sam`, `sam_vit_h` or
        `hf://facebook/sam-vit-base`, whose weights are downloaded once (`hub.fetch`); or `demo` for the demonstration
        model in the package, trained on synthetic scenes and by itself. A file of that name goes before a name.
      form: `deploy` for inference; a training-form file is fused on the way. `train` for training and for BatchNorm.
      dtype: of the arithmetic. The params are float32 in either case.
      image_size: another side of the input square in pixels, a multiple of 16; the checkpoint's own if None.
      verify: whether to compare the arrays with the digest in the file, which takes some 3 s for ViT-H. Files of
        PyTorch have CRC-32 checksums, which are always compared.
      key: the entry that the state dict is under, if a file of PyTorch has several, such as `ema`.
      ignore: patterns of official keys to leave out, such as `adapter.*` of a fine-tuned model; otherwise every key
        that the model has not is an error.

    Returns:
      The static model and its params, a nested dict of JAX arrays on the default device.

    Raises:
      FileNotFoundError: there is no such file.
      DownloadError: a name's weights can't be had; the message says which file to put where.
      CheckpointError: a damaged file or one of an unknown model, weights that do not fit the model that the file names
        or that is nearest (all of them are listed), or a deploy-form file where the training form was asked for.
      ValueError: an unknown form or dtype, or an image size that is no multiple of 16.
    """
    model, params = _load(path, form, dtype, image_size, verify, key, ignore)
    if not isinstance(model, Sam):
        raise CheckpointError(
            f"{path} holds the classifier {model.config.name}, no segmenter; `repvit-sam classify` and "
            "`load_classifier` read it"
        )
    return model, params


def load_classifier(
    path: str | os.PathLike,
    *,
    form: Form = "deploy",
    dtype: Dtype = "float32",
    verify: bool = False,
    key: str | None = None,
) -> tuple[Classifier, Params]:
    """A RepViT classifier and its params, as `load` does it for segmenters; timm's files are read too."""
    model, params = _load(path, form, dtype, None, verify, key)
    if not isinstance(model, Classifier):
        raise CheckpointError(
            f"{path} holds the segmenter {model.config.name}, no classifier; `repvit-sam segment` and `load` read it"
        )
    return model, params


def _load(
    path: str | os.PathLike,
    form: Form,
    dtype: Dtype,
    image_size: int | None,
    verify: bool,
    key: str | None,
    ignore: Sequence[str] = (),
) -> tuple[Sam | Classifier, Params]:
    config, form, params = read_params(path, form, verify=verify, key=key, ignore=ignore)
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    return model_of(config, form, dtype), _to_device(params)


def _to_device(params: Params) -> Params:
    """The arrays on the default device, one after the other and forgotten here: a model is not in memory twice."""
    placed: Params = {}
    for name in list(params):
        value = params.pop(name)
        placed[name] = _to_device(value) if isinstance(value, dict) else jax.device_put(value).block_until_ready()
    return placed
