"""What a TPU would need, as its compiler estimates it ahead of time on a machine without one (`train.tpu`).

Beside the roofline it shows how far a program is from what the chip could do, and which operations to look at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from repvit_sam_jax import Prompts, Sam
from repvit_sam_jax.config import SamConfig
from train import tpu

BATCH, PROMPTS = 8, 64
TOP = 8
"""Operations of a program that are listed."""


def tpu_cost(config: SamConfig, chip: str) -> dict[str, Any]:
    """Estimates in bfloat16 for one chip: the encoder on `BATCH` images, the decoder on `PROMPTS` points of one.

    Milliseconds are cycles at the clock at which the compiler's estimate of a large product reaches the chip's peak.
    The roofline's two sides are what the program's FLOPs take at that peak, and the bytes that it moves at the memory's
    bandwidth, both as JAX knows them of the chip.

    Returns:
      a section of the report: `table`, the operations with most cycles; `programs`, the numbers of each; and `notes`,
      which say them.

    Raises:
      FileNotFoundError: there is no libtpu.
    """
    info, device = tpu.chip_info(chip), tpu.devices(f"{chip}:2x2")[0]
    clock = tpu.clock(device, chip)
    here = jax.sharding.SingleDeviceSharding(device)
    table, programs, notes = [], {}, []
    for name, (function, arguments) in _programs(config).items():
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments)
        compiled, text = tpu.compile_to_text(jax.jit(function).lower(*placed))
        costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
        by_flops = 1e3 * costs["flops"] / info.bf16_ops_per_second
        by_bytes = 1e3 * costs["bytes accessed"] / info.mem_bw_bytes_per_second
        megabytes = memory.temp_size_in_bytes / 1e6
        programs[name] = {
            "flops_milliseconds": by_flops,
            "bytes_milliseconds": by_bytes,
            "temporaries_megabytes": megabytes,
        }
        told = f"its FLOPs take {by_flops:.2f} ms, its bytes {by_bytes:.2f} ms; {megabytes:.0f} MB of temporaries"
        found = sorted(tpu.operations(text), key=lambda op: -op.cycles)
        cycles = sum(op.cycles for op in found)
        programs[name] |= {"megacycles": cycles / 1e6, "milliseconds": 1e3 * cycles / clock}
        notes.append(
            f"{name}: {cycles / 1e6:.1f} Mcycles, {1e3 * cycles / clock:.2f} ms by the compiler's estimate; {told}"
        )
        table += [
            {
                "program": name,
                "operation": op.source,
                "result": op.shape,
                "times": op.times,
                "share": f"{op.cycles / cycles:.1%}",
            }
            for op in found[:TOP]
        ]
    return {"table": table, "programs": programs, "clock_ghz": clock / 1e9, "notes": notes}


def _programs(config: SamConfig) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    model = Sam(config, dtype="bfloat16")
    size, side, dim = config.image_size, config.embedding_size, config.mask_decoder.embed_dim

    def shaped(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    params = model.abstract_params()
    labels, valid = shaped(1, PROMPTS, 1, dtype=np.int32), shaped(1, PROMPTS, 1, dtype=bool)
    points: Any = Prompts(shaped(1, PROMPTS, 1, 2), labels, valid)  # type: ignore[arg-type]
    return {
        f"encoder, {BATCH} images": (model.encode, (params, shaped(BATCH, size, size, 3))),
        f"decoder, {PROMPTS} points": (model.decode, (params, shaped(1, side, side, dim), points)),
    }
