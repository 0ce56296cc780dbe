"""The TPU compiler ahead of time, on a machine without a TPU: topologies, and what a compiled program says of itself.

The compiler annotates the operations of the optimised program with the cycles that it expects. Their sum, loops
counted, is an estimate and no measurement. Needs libtpu, which `make setup` puts beside the environment.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

CHIPS = {"v5e": pltpu.ChipVersion.TPU_V5E, "v6e": pltpu.ChipVersion.TPU_V6E}
LIBTPU = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"

_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""For libtpu to look for no TPU, without complaints, and to let several processes compile at a time."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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


def devices(topology: str) -> list[Any]:
    """The devices of a slice such as `v5e:4x4`, to compile for.

    Raises:
      FileNotFoundError: there is no libtpu.
      ValueError: the compiler knows no such topology.
    """
    if not LIBTPU.exists():
        raise FileNotFoundError(f"no libtpu at {LIBTPU}; `make setup` installs it on Linux")
    for name, value in {"TPU_LIBRARY_PATH": str(LIBTPU), **_WITHOUT_TPU}.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (jax.errors.JaxRuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"the TPU compiler knows no topology {topology!r}: {str(error).splitlines()[0]}") from error


def compile_to_text(lowered: Any) -> tuple[Any, str]:
    """A compiled program, and its text with estimates of cycles.

    The text is the compiler's own dump: JAX can't read every program of a newer compiler back.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (dump,) = Path(folder).glob("*.after_codegen.txt")
        return compiled, dump.read_text()


def chip_info(chip: str) -> Any:
    """What JAX knows of a chip: `bf16_ops_per_second`, `mem_bw_bytes_per_second` and others."""
    if chip not in CHIPS:
        raise ValueError(f"chips known here are {', '.join(CHIPS)}, got {chip!r}")
    return pltpu.get_tpu_info_for_chip(CHIPS[chip], 1)


def clock(device: Any, chip: str) -> float:
    """Cycles a second by which the compiler's estimate of a large product reaches the chip's peak."""
    side = 8192
    here = jax.sharding.SingleDeviceSharding(device)
    operands = [jax.ShapeDtypeStruct((side, side), jnp.bfloat16, sharding=here)] * 2
    _, product = compile_to_text(jax.jit(jnp.matmul).lower(*operands))
    return sum(op.cycles for op in operations(product)) / (2 * side**3 / chip_info(chip).bf16_ops_per_second)


def operations(hlo: str) -> Iterator[Operation]:
    """What a compiled program executes, from its text: instructions with a cycle estimate, loop bodies multiplied."""
    for opcode, shape, line, times in _instructions(hlo):
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            source = re.search(r'op_name="([^"]*)"', line)
            yield Operation(source[1] if source else opcode, shape.split("{")[0], times, times * int(cycles[1]))


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Kind of collective -> (how many are executed, bytes of their results on a chip together)."""
    found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for opcode, shape, _, times in _instructions(hlo):
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            sizes = [_bytes(*match) for match in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)]
            # An asynchronous one holds its operand beside its result.
            total = max(sizes, default=0) if opcode != kind and kind == "all-gather" else sum(sizes)
            found[kind][0] += times
            found[kind][1] += times * total
    return {kind: (count, size) for kind, (count, size) in sorted(found.items())}


def _bytes(kind: str, shape: str) -> int:
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind) or 0)
    return int(np.prod([int(side) for side in shape.split(",") if side], dtype=np.int64)) * bits // 8


def _trips(loop: str, condition: list[str]) -> int:
    """How often a loop runs: as it says, or the limit that its counter is compared with; 1 if neither is known."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
        return int(known[1])
    compared = re.search(r"compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", condition[-1])
    name = re.escape(compared[1]) if compared else "(?!)"
    limit = re.search(rf"%?{name} = s32\[\]\S* constant\((\d+)\)", "\n".join(condition))
    return int(limit[1]) if limit else 1


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ([\w-]+)\(")


def _instructions(hlo: str) -> Iterator[tuple[str, str, str, int]]:
    """(opcode, shape, line, how often) of what is executed."""
    bodies: dict[str, list[str]] = {}
    entry = ""
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            current.append(line)

    def walk(name: str, times: int) -> Iterator[tuple[str, str, str, int]]:
        for line in bodies[name]:
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            shape, opcode = instruction.groups()
            if opcode == "while":
                parts = re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line)
                assert parts is not None
                yield from walk(parts[2], times * _trips(line, bodies[parts[1]]))
            else:
                yield opcode, shape, line, times

    yield from walk(entry, 1)
