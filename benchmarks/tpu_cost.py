"""What a TPU would need, as its compiler estimates it ahead of time on a machine without one.

The compiler annotates the operations of the optimised program with the cycles that it expects. Their sum, loops
counted, is an estimate and no measurement; beside the roofline it shows how far a program is from what the chip could
do, and which operations to look at. Needs libtpu, which `make setup` puts beside the environment.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

from repvit_sam_jax import Prompts, Sam
from repvit_sam_jax.config import SamConfig

CHIPS = {"v5e": pltpu.ChipVersion.TPU_V5E, "v6e": pltpu.ChipVersion.TPU_V6E}
BATCH, PROMPTS = 8, 64
LIBTPU = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
TOP = 8
"""Operations of a program that are listed."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of a compiled program."""

    source: str
    """Where it comes from, as in JAX's name stack."""
    shape: str
    times: int
    """How often it is executed."""
    cycles: int
    """Estimated, of all executions together."""


def tpu_cost(config: SamConfig, chip: str) -> dict[str, Any]:
    """Estimates in bfloat16 for one chip: the encoder on `BATCH` images, the decoder on `PROMPTS` points of one.

    Milliseconds are cycles at the clock at which the compiler's estimate of a large product reaches the chip's peak.
    The roofline's two sides are what the program's FLOPs take at that peak, and the bytes that it moves at the memory's
    bandwidth, both as JAX knows them of the chip. A program that JAX can't read back has no cycles.

    Returns:
      a section of the report: `table`, the operations with most cycles; `programs`, the numbers of each; and `notes`,
      which say them.

    Raises:
      FileNotFoundError: there is no libtpu.
    """
    compile_on = _compiler(chip)
    info = pltpu.get_tpu_info_for_chip(CHIPS[chip], 1)
    side = 8192
    product = compile_on(jnp.matmul, *[jax.ShapeDtypeStruct((side, side), jnp.bfloat16)] * 2)
    clock = sum(op.cycles for op in operations(product.as_text())) / (2 * side**3 / info.bf16_ops_per_second)
    table, programs, notes = [], {}, []
    for name, (function, arguments) in _programs(config).items():
        compiled = compile_on(function, *arguments)
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
        try:
            found = sorted(operations(compiled.as_text()), key=lambda op: -op.cycles)
        except jax.errors.JaxRuntimeError as error:
            notes.append(f"{name}: {told}; no cycles, as JAX can't read the program: {str(error).splitlines()[0]}")
            continue
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
    section = {"programs": programs, "clock_ghz": clock / 1e9, "notes": notes}
    return section | ({"table": table} if table else {})


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


def _compiler(chip: str) -> Callable[..., Any]:
    """Compiles a function for one chip, given its arguments' shapes."""
    if not LIBTPU.exists():
        raise FileNotFoundError(f"no libtpu at {LIBTPU}; `make setup` installs it on Linux")
    os.environ.setdefault("TPU_LIBRARY_PATH", str(LIBTPU))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    device = topologies.get_topology_desc(f"{chip}:2x2", platform="tpu").devices[0]
    here = jax.sharding.SingleDeviceSharding(device)

    def compile_on(function: Callable[..., Any], *arguments: Any) -> Any:
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments)
        return jax.jit(function).lower(*placed).compile()

    return compile_on


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (\([^=]*?\)|\S+) ([\w-]+)\(")


def operations(hlo: str) -> Iterator[Operation]:
    """What a compiled program executes, from its text: instructions with a cycle estimate, loop bodies multiplied."""
    bodies: dict[str, list[str]] = {}
    entry = ""
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            current.append(line)

    def walk(name: str, times: int) -> Iterator[Operation]:
        for line in bodies[name]:
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            shape, opcode = instruction.groups()
            if opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
                body = re.search(r"body=%?([\w.-]+)", line)
                assert body is not None
                yield from walk(body[1], times * (int(trips[1]) if trips else 1))
            elif cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
                source = re.search(r'op_name="([^"]*)"', line)
                yield Operation(source[1] if source else opcode, shape.split("{")[0], times, times * int(cycles[1]))

    yield from walk(entry, 1)
