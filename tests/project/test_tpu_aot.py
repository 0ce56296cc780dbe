"""The real TPU compiler takes the models, on a machine without a TPU."""

import json
import platform
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.processes import run_python

LIBTPU = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"

pytestmark = [pytest.mark.tpu_aot, pytest.mark.slow(group="tpu")]


def compile_for_tpu(program: str) -> dict:
    """Run a program that prints JSON, with libtpu at hand; it gets `devices` of a v5e 2x4 slice."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("libtpu is published for Linux on x86-64 only")
    assert LIBTPU.exists(), "make setup installs libtpu"
    head = textwrap.dedent(
        """
        import functools, json
        import jax, jax.numpy as jnp, numpy as np
        from jax.experimental import topologies
        from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
        from repvit_sam_jax import Prompts, Sam, split_batch_stats

        devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        batch, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

        def struct(tree, sharding):
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

        def shaped(shape, dtype=np.float32):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=batch)
        """
    )
    # The topology comes from the library; no TPU is looked for.
    flags = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_LIBRARY_PATH": str(LIBTPU)}
    return json.loads(run_python(head + textwrap.dedent(program), flags)[-1])


def test_encode_and_decode_on_a_slice():
    """RepViT-SAM in bfloat16, sixteen images over eight chips, in a small part of a chip's 16 GB."""
    found = compile_for_tpu(
        """
        model = Sam.from_preset("repvit_sam", dtype="bfloat16")
        params = struct(model.abstract_params(), whole)
        encode = jax.jit(model.encode).lower(params, shaped((16, 1024, 1024, 3))).compile()
        prompts = Prompts(shaped((16, 4, 2, 2)), shaped((16, 4, 2), np.int32), shaped((16, 4, 2), bool))
        decode = jax.jit(model.decode).lower(params, shaped((16, 64, 64, 256)), prompts).compile()
        text = encode.as_text()
        print(json.dumps({
            "encode": encode.memory_analysis().temp_size_in_bytes,
            "decode": decode.memory_analysis().temp_size_in_bytes,
            "bfloat16": "bf16[" in text,
            "collectives": "all-reduce" in text or "all-gather" in text,
        }))
        """
    )
    print(found)
    assert found["bfloat16"]
    assert not found["collectives"]  # images are independent
    assert found["encode"] < 4e9
    assert found["decode"] < 4e9


def test_a_real_recipe():
    """EdgeSAM's first stage as it stands: ViT-H in bfloat16 beside RepViT-SAM, four photos a chip of a v5e."""
    found = compile_for_tpu(
        """
        import dataclasses
        from train.aot import describe, estimate
        from train.recipe import get_recipe

        found = estimate(get_recipe("edgesam_stage1"), "v5e:4x4")
        print(describe(found))
        print(json.dumps(dataclasses.asdict(found)))
        """
    )
    print(found)
    assert (found["chips"], found["batch_size"]) == (16, 64)
    assert found["arguments"] + found["temporaries"] < 15.75 * 2**30  # what the compiler leaves of 16
    assert 1.3e9 < found["arguments"] < 2e9  # 1.3 GB of them are the teacher
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["collectives"]["all-reduce"][1] < 0.1e9  # gradients of 23 million params in bfloat16
    assert found["flops"] == pytest.approx(64 * 6.9e12, rel=0.02)
    assert set(found["parts"]) >= {"student", "teacher", "gradients", "optimizer"}


def test_estimates_of_the_benchmark():
    """`python -m benchmarks tpu-cost` on the tiny preset: cycles, and the operations that have them."""
    found = compile_for_tpu(
        """
        from benchmarks.tpu_cost import tpu_cost
        from repvit_sam_jax import PRESETS

        section = tpu_cost(PRESETS["tiny"], "v5e")
        print(json.dumps(section))
        """
    )
    print(found["notes"])
    assert 1.2 < found["clock_ghz"] < 1.8  # v5e's is 1.5
    assert {row["program"] for row in found["table"]} == set(found["programs"])
    for program in found["programs"].values():
        assert program["milliseconds"] > max(program["flops_milliseconds"], 0.01)
        assert program["megacycles"] > 0


def test_estimate_of_a_recipe():
    """`repvit-sam train aot` with prompts in the loop on tiny models: memory, collectives, time."""
    found = compile_for_tpu(
        """
        import dataclasses
        from tests.helpers.models import register
        from train.aot import describe, estimate, per_chip
        from train.recipe import get_recipe

        register()
        recipe = per_chip(get_recipe("smoke", ["dtype=bfloat16"]), "v5e:2x4", 2)
        found = estimate(recipe, "v5e:2x4", teacher="tiny_vit_sam")
        print(describe(found))
        print(json.dumps(dataclasses.asdict(found)))
        """
    )
    assert (found["chips"], found["batch_size"]) == (8, 16)
    assert found["collectives"]["all-reduce"][1] > 4 * 50_000  # float32 gradients
    assert 0 < found["arguments"] + found["temporaries"] < 1e9
    assert found["milliseconds"] > 0
    assert sum(found["parts"].values()) == pytest.approx(found["milliseconds"])
