"""What a compiled program says of itself."""

import textwrap

import pytest

from train import tpu


@pytest.mark.parametrize("told", [True, False])
def test_operations_of_a_tpu_program(told):
    """Loops are multiplied, fusions are not opened, and what has no estimate is left out."""
    hlo = textwrap.dedent(
        """
        HloModule jit_f

        %fused (a: f32[8]) -> f32[8] {
          %a = f32[8]{0} parameter(0)
          ROOT %b = f32[8]{0} negate(%a), backend_config={"estimated_cycles":"999"}
        }

        %body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
          %g = f32[8]{0} all-reduce(%t), to_apply=%add
          %x = f32[8]{0} fusion(%t), calls=%fused, metadata={op_name="f/neg"}, backend_config={"estimated_cycles":"10"}
        }

        %condition (t: (s32[], f32[8])) -> pred[] {
          %n = s32[]{:T(128)} constant(5)
          ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT, backend_config={"estimated_cycles":"7"}
        }

        ENTRY %main (p: f32[8]) -> f32[8] {
          %w = (s32[], f32[8]{0}) while(%p), condition=%condition, body=%body, KNOWN
          %r = (f32[100]{0:T(128)S(1)}, /*index=1*/bf16[2,3]{1,0:T(8,128)(2,1)}) all-reduce(%w), to_apply=%add
          %s = (f32[4]{0}, f32[16]{0}) all-gather-start(%w), dimensions={0}
          %d = f32[16]{0} all-gather-done(%s)
          ROOT %y = (f32[4]{0}, f32[2]{0}) fusion(%w), metadata={op_name="f/b"}, backend_config={"estimated_cycles":"3"}
        }
        """
    )
    hlo = hlo.replace("KNOWN", 'backend_config={"known_trip_count":{"n":"5"}}' if told else "metadata={}")
    found = list(tpu.operations(hlo))
    assert [(op.source, op.times, op.cycles) for op in found] == [("f/neg", 5, 50), ("f/b", 1, 3)]
    assert found[0].shape == "f32[8]"
    assert tpu.collectives(hlo) == {"all-gather": (1, 64), "all-reduce": (6, 412 + 5 * 32)}


def test_unknown_chips():
    with pytest.raises(ValueError, match="chips known here are v5e, v6e, got 'v2'"):
        tpu.chip_info("v2")
