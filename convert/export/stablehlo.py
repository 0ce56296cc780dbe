"""The whole model as one `jax.export` artifact, which needs nothing but JAX to be loaded.

exported = jax.export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
embeddings, low_res_masks, iou_predictions = jax.jit(exported.call)(images, point_coords, point_labels, point_valid)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from repvit_sam_jax.files import write_atomically
from repvit_sam_jax.models.prompt_encoder import Prompts

from ..report import Report, Row, compare
from .gate import PAST_TOLERANCE, gate, write_table
from .source import Source, read_source
from .verify import Refer, Reference, Tolerances, pack_cases, reference

Function = Literal["segment", "encode", "decode"]
NUM_POINTS = 16
"""Points of a prompt, padding and corners of a box included: the model takes one of two ways by their number."""
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LARGEST = 2_100_000_000
"""Bytes of weights in an artifact, which ends at 2 GiB."""


def export_stablehlo(
    weights: Path,
    out: Path,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    function: Function = "segment",
    image_size: int | None = None,
    allow_past_tolerance: bool = False,
) -> Report:
    """Write a function with its weights, for any number B of images and P of prompts on each, all or nothing.

    `segment` takes images [B, S, S, 3], as `transforms.preprocess` makes them, float point_coords [B, P, N, 2] in the
    resized frame, int32 point_labels [B, P, N] (`Prompts` says which) and bool point_valid [B, P, N], with N =
    `NUM_POINTS`, those that are not valid changing nothing. It gives embeddings
    [B, S/16, S/16, C], low_res_masks [B, P, 4, S/4, S/4] and iou_predictions [B, P, 4]: the single mask, then the three
    of an ambiguous prompt. `encode` is its first half, images to embeddings, and `decode` its second, embeddings in the
    place of images.

    Args:
      weights: a `.safetensors` file of this library or a PyTorch checkpoint.
      out: the file to write; one that is there is replaced.
      platforms: that it is to run on.
      function: which of the three.
      image_size: side of the input square in pixels, if not the checkpoint's.
      allow_past_tolerance: write an artifact that does not compute what the JAX model does, with the table beside it.

    Returns:
      The comparison of what was read back with the JAX model, within tolerance unless that is allowed not to be.

    Raises:
      ValueError: an unknown platform, `out` is a folder or named as a checkpoint, the image size is no multiple of 16,
        or there are more than `LARGEST` bytes of weights.
      FileNotFoundError, CheckpointError: as `read_source`.
      ExportError: the artifact does not compute what the model computes; nothing is written.
    """
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise ValueError(f"--platforms takes some of {','.join(PLATFORMS)}, got {','.join(unknown) or 'none'}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give the name of a file, such as model.stablehlo")
    if out.suffix in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"--out {out} has the name of a checkpoint; name it model.stablehlo, for example")
    source = read_source(weights, image_size)
    used = {name: part for name, part in source.params.items() if function != "decode" or name != "image_encoder"}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(used))
    if size > LARGEST:
        raise ValueError(
            f"{source.config.name} has {size / 1e9:.1f} GB of weights, and a StableHLO artifact ends at 2 GiB; "
            "`convert onnx` takes them"
        )
    serialized = serialize(source, function, platforms)
    # What is not for the CPU can't be run here: the same function is compared as it is lowered for the CPU as well.
    runnable = serialized if "cpu" in platforms else serialize(source, function, ["cpu", *platforms])
    report = gate(functools.partial(check, source, runnable, function), source, allow=allow_past_tolerance)
    write_atomically(out, lambda temporary: temporary.write_bytes(serialized))
    write_table(report, out.with_name(f"{out.name}.{PAST_TOLERANCE}"))
    return report


def serialize(source: Source, function: Function, platforms: Sequence[str]) -> bytearray:
    """The artifact of a function, weights inside."""
    model, params, config = source.model, jax.device_put(source.params), source.config

    # An image and a prompt at a time under `vmap`: on CPU the model plans its loops by their numbers, unknown here.
    @jax.vmap
    def encode(image: jax.Array) -> jax.Array:
        return model.encode(params, image[None])[0]

    @jax.vmap
    def decode(
        embedding: jax.Array, coords: jax.Array, labels: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def decode_one(*prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
            masks, iou = model.decode(params, embedding[None], Prompts(*(x[None, None] for x in prompt)), None)
            return masks[0, 0], iou[0, 0]

        return jax.vmap(decode_one)(coords, labels, valid)

    def segment(images: jax.Array, coords: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[Any, ...]:
        embeddings = encode(images)
        return embeddings, *decode(embeddings, coords, labels, valid)

    functions: dict[str, Callable[..., Any]] = {"segment": segment, "encode": encode, "decode": decode}
    (b, p), n = export.symbolic_shape("b, p"), NUM_POINTS
    side, dim = config.embedding_size, config.mask_decoder.embed_dim
    first = (b, side, side, dim) if function == "decode" else (b, config.image_size, config.image_size, 3)
    shapes: list[tuple[Any, Any]] = [(first, jnp.float32)]
    if function != "encode":
        shapes += [((b, p, n, 2), jnp.float32), ((b, p, n), jnp.int32), ((b, p, n), jnp.bool_)]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return export.export(jax.jit(functions[function]), platforms=tuple(platforms))(*arguments).serialize()


def check(source: Source, serialized: bytearray, function: Function, refer: Refer = reference) -> Report:
    """What the artifact computes when it is read back, for two images and several prompts, against the JAX model.

    On the CPU, where products are exact.
    """
    expected = refer(source, batch=2)
    call = jax.jit(export.deserialize(serialized).call)
    with jax.default_device(jax.devices("cpu")[0]):
        rows = _rows(expected, call, function, Tolerances.float32(source.config))
    return Report(expected.config.name, tuple(rows), ())


def _rows(expected: Reference, call: Any, function: Function, bars: Tolerances) -> list[Row]:
    if function == "encode":
        found = call(expected.images)
        return [compare("stablehlo", "embedding", np.asarray(found), expected.embeddings, bars.embedding)]
    cases = [case for case in expected.cases if not case.masked]
    packed = pack_cases(cases, None, NUM_POINTS)
    # Two images with the same prompts; the reference has those on the first.
    prompts = [np.repeat(x, 2, 0) for x in (packed.point_coords, packed.point_labels, packed.point_valid)]
    results = call(expected.embeddings if function == "decode" else expected.images, *prompts)
    *embedding, masks, iou = (np.asarray(value) for value in results)
    rows = [compare("stablehlo", "embedding", found, expected.embeddings, bars.embedding) for found in embedding]
    start = 0
    for case in cases:
        here = slice(start, start := start + case.count)
        wanted = expected.masks[case.name], expected.iou[case.name]
        rows.append(compare("stablehlo", "low_res_masks", masks[0, here], wanted[0], bars.masks, case=case.name))
        rows.append(compare("stablehlo", "iou_predictions", iou[0, here], wanted[1], bars.iou, 1.0, case=case.name))
    return rows
