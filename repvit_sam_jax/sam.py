"""The composition: `Sam` is a frozen, hashable description of a segmenter, and its parameters are a plain nested dict.

    model, params = repvit_sam_jax.load("repvit_sam.safetensors")
    encode, decode = jax.jit(model.encode), jax.jit(model.decode)  # once: a second jax.jit(model.encode) compiles anew
    embeddings = encode(params, images)
    low_res_masks, iou_predictions = decode(params, embeddings, prompts)

`jax.jit(Sam.encode, static_argnums=0)` is one function for all models. On a mesh, axes are those of automatic sharding:
`jax.make_mesh(..., axis_types=(AxisType.Auto,))`.

`params` has the keys `image_encoder`, `prompt_encoder` and `mask_decoder`; in the training form also `batch_stats`,
the running statistics of BatchNorm, which are state and no parameters. `split_batch_stats` takes them apart.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from . import transforms
from .config import Form, SamConfig, TinyViTConfig, ViTConfig, get_config
from .encoders.blocks import Remat
from .encoders.repvit import RepViTEncoder
from .encoders.tiny_vit import TinyViTEncoder
from .encoders.vit import ViTEncoder
from .layers import Keys, Stages
from .mask_decoder import MaskDecoder
from .model import Model, Params, to_params
from .prompt_encoder import PromptEncoder, Prompts


class _Modules(nnx.Module):
    def __init__(self, config: SamConfig, *, form: Form, dtype: jnp.dtype, rngs: Keys):
        encoder, decoder = config.image_encoder, config.mask_decoder
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.image_encoder: RepViTEncoder | ViTEncoder | TinyViTEncoder
        if isinstance(encoder, ViTConfig):
            self.image_encoder = ViTEncoder(encoder, decoder.embed_dim, **common)
        elif isinstance(encoder, TinyViTConfig):
            self.image_encoder = TinyViTEncoder(encoder, decoder.embed_dim, deploy=form == "deploy", **common)
        else:
            self.image_encoder = RepViTEncoder(encoder, decoder.embed_dim, deploy=form == "deploy", **common)
        self.prompt_encoder = PromptEncoder(decoder, **common)
        self.mask_decoder = MaskDecoder(decoder, **common)


def _static(multimask_output: Any) -> bool:
    """Also of NumPy's booleans and of integers."""
    if isinstance(multimask_output, jax.core.Tracer):
        raise TypeError('multimask_output is traced; make it static: static_argnames=("multimask_output",)')
    return bool(multimask_output)


class Sam(Model[SamConfig]):
    """A segmenter without its parameters: `config`, `form` and `dtype`, as in `Model`."""

    @classmethod
    def from_preset(
        cls,
        name: str,
        *,
        form: Form = "deploy",
        dtype: Literal["float32", "bfloat16"] = "float32",
        image_size: int | None = None,
    ) -> Sam:
        """The model of a preset, such as `repvit_sam`; see `config.PRESETS`. Raises ValueError for unknown values."""
        return cls(get_config(name, image_size), form, dtype)

    def _modules(self, rngs: Keys) -> _Modules:
        return _Modules(self.config, form=self.form, dtype=self.compute_dtype, rngs=rngs)

    @overload
    def encode(
        self, params: Params, images: Float[Array, "b s s 3"], *, return_stages: Literal[False] = False
    ) -> Float[Array, "b s16 s16 c"]: ...
    @overload
    def encode(
        self, params: Params, images: Float[Array, "b s s 3"], *, return_stages: Literal[True]
    ) -> tuple[Float[Array, "b s16 s16 c"], Stages]: ...
    def encode(self, params, images, *, return_stages=False):
        """Image embeddings.

        Args:
          params: as `load` or `init` gives them. In training form the running statistics are used, not updated.
          images: float [B, S, S, 3] from `transforms.preprocess`, S = `config.image_size`.
          return_stages: also return the dict of named intermediate activations (`stem`, `blocks.1`, ..., `neck`,
            `embedding`), taken from this very computation.

        Returns:
          float32 [B, S/16, S/16, C], with C = 256 for the published models. SAM's `image_encoder`, channels last.

        Raises:
          ValueError: the images have another shape, or the params are of the other form.
        """
        self._check_images(images)
        stages: Stages | None = {} if return_stages else None
        embeddings = self._merge(params).image_encoder(images, stages=stages)
        return embeddings if stages is None else (embeddings, stages)

    def encode_train(
        self, params: Params, images: Float[Array, "b s s 3"], *, remat: Remat = "none"
    ) -> tuple[Float[Array, "b s16 s16 c"], Params]:
        """Embeddings under batch statistics, and the new value of `params["batch_stats"]`.

        Args:
          params: in training form.
          images: as for `encode`.
          remat: what of the encoder's blocks is computed again for their gradients, to save memory.

        Raises:
          ValueError: the model is in deploy form, which has no BatchNorm, or the images have another shape.
        """
        if self.form != "train":
            raise ValueError('encode_train needs the training form: load(..., form="train")')
        self._check_images(images)
        modules = self._merge(params)
        embeddings = modules.image_encoder(images, train=True, remat=remat)
        return embeddings, to_params(modules).get("batch_stats", {})

    @overload
    def decode(
        self,
        params: Params,
        embeddings: Float[Array, "b s16 s16 c"],
        prompts: Prompts,
        multimask_output: bool = True,
        *,
        return_stages: Literal[False] = False,
    ) -> tuple[Float[Array, "b p m s4 s4"], Float[Array, "b p m"]]: ...
    @overload
    def decode(
        self,
        params: Params,
        embeddings: Float[Array, "b s16 s16 c"],
        prompts: Prompts,
        multimask_output: bool = True,
        *,
        return_stages: Literal[True],
    ) -> tuple[Float[Array, "b p m s4 s4"], Float[Array, "b p m"], Stages]: ...
    def decode(self, params, embeddings, prompts, multimask_output=True, *, return_stages=False):
        """Masks for P prompts on each of B images.

        Args:
          params: as `load` or `init` gives them.
          embeddings: [B, S/16, S/16, C] from `encode`.
          prompts: [B, P, ...], coordinates in the resized S-frame.
          multimask_output: three masks a prompt (whole, part, subpart) if true, else one. A Python bool: under `jit` it
            is static, `jax.jit(model.decode, static_argnames=("multimask_output", "return_stages"))`.
          return_stages: also return the dict of named intermediate activations; static likewise.

        Returns:
          `low_res_masks`, float32 logits [B, P, M, S/4, S/4] (a mask is where they exceed 0), and
          `iou_predictions`, float32 [B, P, M]; M is 3 or 1.

        Raises:
          ValueError: shapes or dtypes that do not fit the model or each other, or params of the other form.
          TypeError: `multimask_output` is traced.
        """
        modules, several = self._merge(params), _static(multimask_output)
        inputs = self._embed_prompts(modules, embeddings, prompts)
        stages: Stages = dict(zip(("dense_prompt", "image_pe", "prompt_tokens"), inputs, strict=False))
        masks, iou = modules.mask_decoder(*inputs, multimask_output=several, stages=stages if return_stages else None)
        if not return_stages:
            return masks, iou
        stages["low_res_masks"], stages["iou_predictions"] = masks, iou
        return masks, iou, stages

    def decode_all(
        self, params: Params, embeddings: Float[Array, "b s16 s16 c"], prompts: Prompts
    ) -> tuple[Float[Array, "b p m s4 s4"], Float[Array, "b p m"]]:
        """`decode` with every mask of a prompt, M = 4, for training: the single mask, then the multimask output's."""
        modules = self._merge(params)
        inputs = self._embed_prompts(modules, embeddings, prompts)
        return modules.mask_decoder(*inputs, multimask_output=None)

    def _decode_above(
        self,
        params: Params,
        embeddings: Float[Array, "b s16 s16 c"],
        prompts: Prompts,
        iou_threshold: Float[Array, ""],
    ) -> tuple[Float[Array, "b p m s4 s4"], Float[Array, "b p m"]]:
        """`decode`, with zeros for the masks of prompts none of whose predicted IoUs exceeds the threshold.

        IoUs need no masks, and masks are half of the work.
        """
        modules = self._merge(params)
        inputs = self._embed_prompts(modules, embeddings, prompts)
        return modules.mask_decoder.decode_above(*inputs, iou_threshold)

    def _embed_prompts(
        self, modules: _Modules, embeddings: Array, prompts: Prompts
    ) -> tuple[Array, Array, Array, Array]:
        """Image with the dense prompt, its positions, prompt tokens, and their validity."""
        self._check_prompts(embeddings, prompts)
        tokens, valid = modules.prompt_encoder.sparse(prompts, self.config.image_size)
        masks = None if prompts.masks is None else jnp.asarray(prompts.masks)
        image = embeddings[:, None].astype(jnp.float32) + modules.prompt_encoder.dense(masks)
        return image, modules.prompt_encoder.position.grid(self.config.embedding_size), tokens, valid

    def _check_images(self, images: Array) -> None:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images must have shape [B, {size}, {size}, 3] for this model, got {tuple(images.shape)}; "
                "transforms.preprocess makes them"
            )
        transforms.check_normalized(images)
        if not len(images):
            raise ValueError("no images were given: B is 0")

    def _check_prompts(self, embeddings: Array, prompts: Prompts) -> None:
        side, dim = self.config.embedding_size, self.config.mask_decoder.embed_dim
        if embeddings.ndim != 4 or embeddings.shape[1:] != (side, side, dim):
            raise ValueError(
                f"embeddings must have shape [B, {side}, {side}, {dim}] for this model, got {tuple(embeddings.shape)}"
            )
        coords = prompts.point_coords.shape
        if len(coords) != 4 or coords[0] != embeddings.shape[0] or coords[3] != 2:
            raise ValueError(f"point_coords must have shape [{embeddings.shape[0]}, P, N, 2], got {coords}")
        if 0 in coords[:2]:
            raise ValueError(f"no prompts were given: point_coords has shape {coords}")
        b, p, n = coords[:3]
        low = self.config.low_res_size
        expected = {"point_labels": (b, p, n), "point_valid": (b, p, n), "boxes": (b, p, 4), "masks": (b, p, low, low)}
        for name, shape in expected.items():
            value = getattr(prompts, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must have shape {shape} beside point_coords {coords}, got {value.shape}")
        if not jnp.issubdtype(prompts.point_labels.dtype, jnp.integer):
            raise ValueError(f"point_labels must be integers, got {prompts.point_labels.dtype}")
        if prompts.point_valid.dtype != bool:
            raise ValueError(f"point_valid must be boolean, got {prompts.point_valid.dtype}")
