"""What encoders share: blocks that repeat, applied as one `lax.scan`, and attention within windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ..layers import PRODUCT, STATISTICS, Intermediates

Remat = Literal["none", "dots", "all"]
"""What of a block is computed again for its gradient: nothing, all but convolutions and linear layers, or all.

Statistics of a batch never are: over several devices they would be communicated again.
"""

_SAVED = {"dots": (PRODUCT, STATISTICS), "all": (STATISTICS,)}


def apply_blocks(
    blocks: Mapping[str, Any],
    runs: Iterable[Sequence[Sequence[int]]],
    x: Array,
    *,
    train: bool = False,
    remat: Remat = "none",
) -> tuple[Array, Intermediates]:
    """Apply all blocks of an encoder in order. Intermediates are their outputs, `blocks.N`.

    Args:
      blocks: by their index as a string. With `train`, running statistics are updated in place.
      runs: the indices in order, as runs of groups; the groups of a run are built alike and go through one `lax.scan`.
      x: input of the first block.
      train: passed on to every block.
      remat: of each group of blocks.
    """
    intermediates: Intermediates = {}
    for run in runs:
        groups = [[blocks[str(index)] for index in group] for group in run]
        x, outputs = apply_run(groups, x, train=train, remat=remat)
        for group, group_outputs in zip(run, outputs, strict=True):
            intermediates |= {f"blocks.{index}": y for index, y in zip(group, group_outputs, strict=True)}
    return x, intermediates


def apply_run(
    groups: list[list[Any]], x: Array, *, train: bool, remat: Remat = "none"
) -> tuple[Array, list[list[Array]]]:
    """Apply groups of equally built blocks one after the other, as one `lax.scan` where there are several.

    Returns the last output, and those of all blocks by group, which cost nothing where they are not used.

    The scan keeps the compiled program small, and on CPU it keeps XLA from fusing (and recomputing) depthwise
    convolutions across blocks. Parameters stay separate arrays outside: they are stacked here, inside the trace.
    """
    graphdef, _ = nnx.split(nnx.List(groups[0]))
    states = [nnx.to_pure_dict(nnx.state(nnx.List(group))) for group in groups]

    def step(x: Array, state: dict) -> tuple[Array, tuple[list[Array], dict]]:
        blocks = nnx.merge(graphdef, state, copy=True)
        outputs = []
        for block in blocks:
            x = block(x, train)
            outputs.append(x)
        statistics = nnx.to_pure_dict(nnx.state(blocks, nnx.BatchStat)) if train else {}
        return x, (outputs, statistics)

    if remat != "none":
        policy = jax.checkpoint_policies.save_only_these_names(*_SAVED[remat])
        step = jax.checkpoint(step, policy=policy, prevent_cse=len(groups) == 1)
    if len(groups) == 1:
        x, (outputs, statistics) = step(x, states[0])
        per_group = [(outputs, statistics)]
    else:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        x, ys = lax.scan(step, x, stacked)
        per_group = [jax.tree.map(lambda leaf, i=i: leaf[i], ys) for i in range(len(groups))]
    if train:
        for group, (_, statistics) in zip(groups, per_group, strict=True):
            nnx.update(nnx.List(group), statistics)
    return x, [outputs for outputs, _ in per_group]


def in_windows(attention: Callable[[Array], Array], x: Float[Array, "b s s c"], window: int) -> Float[Array, "b s s c"]:
    """Attention within windows; the last ones are padded with zeros that take part in it, as in the original."""
    b, size, _, c = x.shape
    count = -(-size // window)
    padding = count * window - size
    x = jnp.pad(x, ((0, 0), (0, padding), (0, padding), (0, 0)))
    x = x.reshape(b, count, window, count, window, c).swapaxes(2, 3).reshape(-1, window, window, c)
    x = attention(x).reshape(b, count, count, window, window, c).swapaxes(2, 3)
    return x.reshape(b, count * window, count * window, c)[:, :size, :size]
