"""The programs in docs/export.md; each is run where what it reads is tested."""

from tests.helpers.examples import EXAMPLES


def test_all_examples_are_known():
    assert set(EXAMPLES) == {"onnx", "stablehlo", "coreml"}
