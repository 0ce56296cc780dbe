"""What a segmenter and a classifier have in common: a frozen description on one side, a nested dict on the other."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from ..config import FORMS, Dtype, Form, ModelConfig
from .layers import Keys

Params = dict[str, Any]
"""A nested dict of arrays under string keys."""

DTYPES = ("float32", "bfloat16")

ConfigT = TypeVar("ConfigT", bound=ModelConfig)


@dataclasses.dataclass(frozen=True)
class Model(abc.ABC, Generic[ConfigT]):
    """A model without its parameters: what to compute, in which form and in which precision.

    Attributes:
      config: the architecture.
      form: `deploy` (fused, for inference) or `train` (every branch and BatchNorm); the same for encoders without.
      dtype: of the arithmetic, `float32` or `bfloat16`. Parameters are float32 in either case; so are the results.
    """

    config: ConfigT
    form: Form = "deploy"
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    def init(self, key: PRNGKeyArray) -> Params:
        """Random float32 parameters, for training from scratch (training form) or for tests (deploy form).

        `jax.eval_shape(model.init, key)` gives shapes alone.
        """
        return to_params(self._modules(Keys(key)))

    def abstract_params(self) -> Params:
        """`jax.ShapeDtypeStruct`s of the parameters: the target that checkpoints are held against."""
        return jax.tree.map(lambda leaf: leaf, _abstract(self)[1])

    def compact(self, params: Params) -> Params:
        """The params with kernels stored in the precision of the arithmetic, for inference.

        Every product rounds its kernel to that precision anyway, so results are the same to the last bit; in bfloat16
        the kernels take half of the memory, and no call spends time on rounding them. Works on arrays of JAX and NumPy,
        and under `jit`. In float32 nothing changes.
        """
        if self.compute_dtype == jnp.float32:
            return params
        rounded = _rounded_kernels(self)
        shrink = lambda path, leaf: leaf.astype(self.compute_dtype) if tuple(k.key for k in path) in rounded else leaf
        return jax.tree_util.tree_map_with_path(shrink, params)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as an object."""
        return jnp.dtype(self.dtype)

    @abc.abstractmethod
    def _modules(self, rngs: Keys) -> nnx.Module:
        """The Flax modules with fresh parameters. The names of their attributes are the top-level keys of `params`."""

    def _merge(self, params: Params) -> Any:
        """The modules with these parameters; raises ValueError if they are of the other form."""
        expects_stats = self.config.has_batch_norm and self.form == "train"
        if expects_stats and "batch_stats" not in params:
            raise ValueError(
                'the training form needs params["batch_stats"], and these have none: they are deploy-form params, or '
                'split_batch_stats took it out: put it back, {**params, "batch_stats": batch_stats}'
            )
        if not expects_stats and "batch_stats" in params:
            raise ValueError("these are training-form params; fuse them with repvit_sam_jax.weights.reparam.fuse first")
        return nnx.merge(_abstract(self)[0], *split_batch_stats(params), copy=True)


@functools.lru_cache(maxsize=64)
def _rounded_kernels(model: Model) -> frozenset[tuple[str, ...]]:
    """Paths of the kernels whose layers compute in the model's precision; squeeze-excite, for one, does not."""
    modules = nnx.merge(_abstract(model)[0], _abstract(model)[1])
    return frozenset(
        (*map(str, path), "kernel")
        for path, module in nnx.iter_modules(modules)
        if hasattr(module, "kernel") and getattr(module, "dtype", None) == model.compute_dtype
    )


@functools.lru_cache(maxsize=64)
def _abstract(model: Model) -> tuple[nnx.GraphDef, Params]:
    """The structure of the modules and the shapes of their params, without computing any."""
    modules = nnx.eval_shape(lambda key: model._modules(Keys(key)), jax.random.key(0))
    return nnx.split(modules)[0], to_params(modules)


def to_params(modules: nnx.Module) -> Params:
    """The parameters of modules as a nested dict, running statistics under `batch_stats`."""
    trained = nnx.to_pure_dict(nnx.state(modules, nnx.Param))
    statistics = nnx.to_pure_dict(nnx.state(modules, nnx.BatchStat))
    return {**trained, "batch_stats": statistics} if statistics else trained


def split_batch_stats(params: Params) -> tuple[Params, Params]:
    """(what is trained, the running statistics); the second is empty in deploy form.

    The statistics hold integer counters, so differentiate with respect to the first and put the second back:
    `jax.grad(lambda p: loss(model.encode({**p, "batch_stats": stats}, images)))(trained)`.
    """
    trained = {k: v for k, v in params.items() if k != "batch_stats"}
    return trained, params.get("batch_stats", {})
