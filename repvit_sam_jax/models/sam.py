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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .. import transforms
from ..config import Dtype, Form, SamConfig, TinyViTConfig, ViTConfig, get_config
from ..ops.chunks import over_prompts
from .encoders.blocks import Remat
from .encoders.repvit import RepViTEncoder
from .encoders.tiny_vit import TinyViTEncoder
from .encoders.vit import ViTEncoder
from .layers import Intermediates, Keys
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


class Sam(Model[SamConfig]):
    """A segmenter without its parameters: `config`, `form` and `dtype`, as in `Model`."""

    @classmethod
    def from_preset(
        cls,
        name: str,
        *,
        form: Form = "deploy",
        dtype: Dtype = "float32",
        image_size: int | None = None,
    ) -> Sam:
        """The model of a preset, such as `repvit_sam`; see `config.PRESETS`. Raises ValueError for unknown values."""
        return cls(get_config(name, image_size), form, dtype)

    def _modules(self, rngs: Keys) -> _Modules:
        return _Modules(self.config, form=self.form, dtype=self.compute_dtype, rngs=rngs)

    def encode(self, params: Params, images: Float[Array, "b s s 3"]) -> Float[Array, "b s16 s16 c"]:
        """Image embeddings.

        Args:
          params: as `load` or `init` gives them. In training form the running statistics are used, not updated.
          images: float [B, S, S, 3] from `transforms.preprocess`, S = `config.image_size`.

        Returns:
          float32 [B, S/16, S/16, C], with C = 256 for the published models. SAM's `image_encoder`, channels last.

        Raises:
          ValueError: the images have another shape, or the params are of the other form.
        """
        return self.encode_with_intermediates(params, images)[0]

    def encode_with_intermediates(
        self, params: Params, images: Float[Array, "b s s 3"]
    ) -> tuple[Float[Array, "b s16 s16 c"], Intermediates]:
        """`encode`, and activations of the same computation by name: `stem`, `blocks.1`, ..., `neck`, `embedding`."""
        self._check_images(images)
        return self._merge(params).image_encoder(images)

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
        embeddings, _ = modules.image_encoder(images, train=True, remat=remat)
        return embeddings, to_params(modules).get("batch_stats", {})

    def decode(
        self,
        params: Params,
        embeddings: Float[Array, "b s16 s16 c"],
        prompts: Prompts,
        multimask_output: bool | None = True,
        *,
        iou_threshold: Float[Array, ""] | float | None = None,
    ) -> tuple[Float[Array, "b p m s4 s4"], Float[Array, "b p m"]]:
        """Masks for P prompts on each of B images.

        Args:
          params: as `load` or `init` gives them.
          embeddings: [B, S/16, S/16, C] from `encode`.
          prompts: [B, P, ...], coordinates in the resized S-frame.
          multimask_output: three masks a prompt (whole, part, subpart) if true, else one; None for all four, the single
            one first, of all prompts at once, as training wants them. Under `jit` it is static:
            `jax.jit(model.decode, static_argnames="multimask_output")`.
          iou_threshold: masks of prompts none of whose predicted IoUs exceeds it need not be computed, and are zeros.
            IoUs need no masks, and masks are half of the work.

        Returns:
          `low_res_masks`, float32 logits [B, P, M, S/4, S/4] (a mask is where they exceed 0), and
          `iou_predictions`, float32 [B, P, M]; M is 3, 1 or 4.

        Raises:
          ValueError: shapes or dtypes that do not fit the model or each other, or params of the other form.
          TypeError: `multimask_output` is traced.
        """
        decode, inputs, _ = self._decoder(params, embeddings, prompts, multimask_output, iou_threshold)
        only = lambda *given: decode(*given)[0]
        return only(*inputs) if multimask_output is None else over_prompts(only, *inputs)

    def decode_with_intermediates(
        self,
        params: Params,
        embeddings: Float[Array, "b s16 s16 c"],
        prompts: Prompts,
        multimask_output: bool | None = True,
    ) -> tuple[tuple[Float[Array, "b p m s4 s4"], Float[Array, "b p m"]], Intermediates]:
        """`decode`, and activations of the same computation by name.

        They are `dense_prompt` (the image with it), `image_pe`, `prompt_tokens`, `transformer.0.tokens`,
        `transformer.0.image`, ..., `transformer.final`, `low_res_masks` and `iou_predictions`.
        """
        decode, inputs, before = self._decoder(params, embeddings, prompts, multimask_output, None)
        (masks, iou), within = over_prompts(decode, *inputs)
        return (masks, iou), {**before, **within, "low_res_masks": masks, "iou_predictions": iou}

    def _decoder(
        self,
        params: Params,
        embeddings: Array,
        prompts: Prompts,
        multimask_output: bool | None,
        iou_threshold: Array | float | None,
    ) -> tuple[Callable[..., Any], tuple[Array, Array, Array], Intermediates]:
        """A function of image tokens, prompt tokens and their validity, these, and activations that precede it."""
        if isinstance(multimask_output, jax.core.Tracer):
            raise TypeError('multimask_output is traced; make it static: static_argnames=("multimask_output",)')
        self._check_prompts(embeddings, prompts)
        modules = self._merge(params)
        encoder, decoder = modules.prompt_encoder, modules.mask_decoder
        tokens, valid = encoder.sparse(prompts, self.config.image_size)
        dense = encoder.dense(None if prompts.masks is None else jnp.asarray(prompts.masks))
        placed, image_pe = embeddings[:, None].astype(jnp.float32) + dense, encoder.position.grid(embeddings.shape[1])
        before = {"dense_prompt": placed, "image_pe": image_pe, "prompt_tokens": tokens}
        image, image_pe, tokens, valid = decoder.inputs(placed, image_pe, tokens, valid)
        shared = decoder.transformer.share(image, image_pe, tokens)
        several = multimask_output if multimask_output is None else bool(multimask_output)
        options = {"shared": shared, "multimask_output": several, "iou_threshold": iou_threshold}
        decode = lambda image, tokens, valid: decoder(image, image_pe, tokens, valid, **options)
        return decode, (image, tokens, valid), before

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
