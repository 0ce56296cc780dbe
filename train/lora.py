"""LoRA (arXiv 2106.09685): low-rank updates of the attention of SAM's ViTs, in place of training their kernels.

An update is `a @ b`, added to the kernel of a block's `qkv`, with `b` zero at the start. The three projections are one
kernel in SAM, and are updated as one matrix; SAMed (2304.13785) updates those of queries and values apart. The modules
do not know of it: the step adds the product to the frozen kernel, and what is exported is a plain checkpoint.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from repvit_sam_jax.models.model import Params


def updates(encoder: Params, rank: int, key: PRNGKeyArray) -> Params:
    """Updates that change nothing yet.

    Args:
      encoder: params of a ViT's image encoder.
      rank: of the product.
      key: for `a`, normal values of variance 1 / `rank`; so the first step of Adam changes kernels by about the
        learning rate, whatever the rank.

    Returns:
      {block: {"a": [din, rank], "b": [rank, dout]}}, float32.
    """
    found: Params = {}
    for i, (name, block) in enumerate(encoder["blocks"].items()):
        din, dout = block["attn"]["qkv"]["kernel"].shape
        a = jax.random.normal(jax.random.fold_in(key, i), (din, rank), jnp.float32) / rank**0.5
        found[name] = {"a": a, "b": jnp.zeros((rank, dout), jnp.float32)}
    return found


def apply_updates(encoder: Params, found: Params) -> Params:
    """The encoder's params with the updates added to their kernels."""
    blocks = dict(encoder["blocks"])
    for name, update in found.items():
        block = blocks[name]
        kernel = block["attn"]["qkv"]["kernel"] + update["a"] @ update["b"]
        blocks[name] = {**block, "attn": {**block["attn"], "qkv": {**block["attn"]["qkv"], "kernel": kernel}}}
    return {**encoder, "blocks": blocks}
