"""Mistakes in the converter, its exports and its checks, in evaluation and in the benchmarks."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LAYOUTS = "repvit_sam_jax/weights/formats/layouts.py"
_KEYMAP = "tests/repvit_sam_jax/weights/formats/test_official.py"
_READING = "tests/convert/bad_checkpoints/test_reading.py"
_EXPORTS = "tests/convert/export"
_SITE = "convert/export/page/site"
_PAGE = "tests/convert/export/test_web.py::test_unit_tests_of_the_page"
_PROTOCOL = "tests/repvit_sam_jax/evals/test_protocols.py::test_protocol_equals_a_plain_one"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="linear-kernels-not-transposed",
        file=_LAYOUTS,
        old='"linear": Layout((1, 0)),',
        new='"linear": Layout(),',
        tests=(f"{_KEYMAP}::test_conv_layouts_put_axes_where_they_belong",),
    ),
    Mutant(
        name="transposed-convolutions-lie-on-their-side",
        file=_LAYOUTS,
        old='"conv_transpose": Layout((0, 2, 3, 1)),',
        new='"conv_transpose": Layout((0, 3, 2, 1)),',
        tests=(f"{_KEYMAP}::test_conv_layouts_put_axes_where_they_belong",),
    ),
    Mutant(
        name="mean-and-variance-exchanged",
        file="repvit_sam_jax/weights/formats/official.py",
        old=(
            'running_mean", f"batch_stats/{jax}/mean", "same")\n'
            '    yield Rule(f"{torch}.running_var", f"batch_stats/{jax}/var", "same")'
        ),
        new=(
            'running_mean", f"batch_stats/{jax}/var", "same")\n'
            '    yield Rule(f"{torch}.running_var", f"batch_stats/{jax}/mean", "same")'
        ),
        tests=("tests/convert/test_parity.py::test_tiny_is_within_tolerance",),
    ),
    Mutant(
        name="half-precision-not-upcast",
        file="repvit_sam_jax/weights/checkpoint.py",
        old="if array.dtype in HALF or array.dtype == np.float64:",
        new="if array.dtype == HALF[0] or array.dtype == np.float64:",
        tests=(f"{_READING}::test_half_precision_is_upcast_exactly",),
    ),
    Mutant(
        name="pickled-objects-are-loaded",
        file="convert/from_torch.py",
        old="weights_only=True",
        new="weights_only=False",
        tests=(f"{_READING}::test_nothing_is_executed",),
    ),
    Mutant(
        name="nan-passes-parity",
        file="convert/report.py",
        old="return bool(self.relative <= self.tolerance)",
        new="return not self.relative > self.tolerance",
        tests=("tests/convert/test_parity.py::test_nan_never_passes",),
    ),
    Mutant(
        name="failed-parity-exits-with-0",
        file="convert/__main__.py",
        old="if not report.passed:\n        raise SystemExit(1)",
        new="if not report.passed:\n        raise SystemExit(0)",
        tests=("tests/convert/test_parity.py::test_command_exits_with_1_past_tolerance",),
    ),
    Mutant(
        name="twin-fused-without-its-1x1-branch",
        file="convert/torch_models/repvit.py",
        old="weight[:, :, 1, 1] += self.conv1.weight.double()[:, :, 0, 0] + 1.0",
        new="weight[:, :, 1, 1] += 1.0",
        tests=("tests/convert/test_conversion.py::test_twin_fuse_keeps_the_function",),
    ),
    Mutant(
        name="digest-of-a-download-not-compared",
        file="repvit_sam_jax/weights/hub.py",
        old='known = None if expected_sha256 is None else f"sha256:{expected_sha256.lower()}"',
        new="known = None",
        tests=("tests/repvit_sam_jax/weights/test_hub.py::test_other_digest",),
    ),
    Mutant(
        name="exports-pass-their-gate",
        file="convert/export/gate.py",
        old="if report.passed:\n        return report",
        new="if report.rows:\n        return report",
        tests=(f"{_EXPORTS}/test_onnx.py::test_gate_catches_other_weights",),
    ),
    Mutant(
        name="exported-background-points-have-no-place",
        file="convert/export/modules.py",
        old="(point_labels >= 0)[..., None]",
        new="(point_labels > 0)[..., None]",
        tests=(f"{_EXPORTS}/test_onnx.py::test_report_and_metadata",),
    ),
    Mutant(
        name="tools-decoder-keeps-the-not-a-point-of-a-tool",
        file="convert/export/tools.py",
        old="[point_labels[0] > NOT_A_POINT, ~has_box[None]]",
        new="[point_labels[0] >= NOT_A_POINT, ~has_box[None]]",
        tests=(f"{_EXPORTS}/test_tools.py::test_cvat_gives_what_the_predictor_gives",),
    ),
    Mutant(
        name="canvas-is-not-cut",
        file="convert/export/tools.py",
        old="bright = picture.amax(2) > 0",
        new="bright = picture.amax(2) >= 0",
        tests=(f"{_EXPORTS}/test_tools.py::test_canvas_is_cut_and_scaled_as_pillow_does",),
    ),
    Mutant(
        name="int8-weights-share-scales-across-outputs",
        file="convert/export/int8.py",
        old='"ConvTranspose": 1',
        new='"ConvTranspose": 0',
        tests=(f"{_EXPORTS}/test_int8.py::test_each_channel_is_rounded_to_its_own_scale",),
    ),
    Mutant(
        name="int8-gate-passes-any-mask",
        file="convert/report.py",
        old="return bool(self.mean >= self.bar)",
        new="return bool(self.mean >= 0)",
        tests=(f"{_EXPORTS}/test_int8.py::test_gate",),
    ),
    Mutant(
        name="artifact-counts-padding-points",
        file="convert/export/stablehlo.py",
        old="return jax.vmap(decode_one)(coords, labels, valid)",
        new="return jax.vmap(decode_one)(coords, labels, jnp.ones_like(valid))",
        tests=(f"{_EXPORTS}/test_stablehlo.py::test_platforms_and_symbolic_shapes",),
    ),
    Mutant(
        name="interpreter-of-coreml-rounds-gelu-to-tanh",
        file="convert/export/mil_ops.py",
        old='approximate="none" if mode == "EXACT" else "tanh"',
        new='approximate="tanh"',
        tests=(f"{_EXPORTS}/test_mil_ops.py::test_gelu_is_the_exact_one",),
    ),
    Mutant(
        name="interpreter-of-coreml-forgets-biases",
        file="convert/export/mil_ops.py",
        old='functional.conv2d(i["x"], i["weight"], i.get("bias"), strides',
        new='functional.conv2d(i["x"], i["weight"], None, strides',
        tests=(f"{_EXPORTS}/test_coreml.py::test_interpreter_against_pytorch",),
    ),
    Mutant(
        name="positions-in-float16-for-coreml",
        file="convert/export/coreml.py",
        old="op_selector=lambda op: not _feeds_sine(op)",
        new="op_selector=lambda op: True",
        tests=(f"{_EXPORTS}/test_coreml.py::test_positions_are_float32",),
    ),
    Mutant(
        name="iou-of-empty-masks-is-nan",
        file="repvit_sam_jax/evals/metrics/__init__.py",
        old="xp.maximum((a | b).sum((-2, -1)), 1).astype(np.float32)",
        new="xp.asarray((a | b).sum((-2, -1))).astype(np.float32)",
        tests=("tests/repvit_sam_jax/evals/test_metrics.py::test_iou_is_that_of_pycocotools",),
    ),
    Mutant(
        name="height-and-width-of-content-exchanged",
        file="repvit_sam_jax/transforms.py",
        old="inside[:, 0, :, None] & inside[:, 1, None, :]",
        new="inside[:, 1, :, None] & inside[:, 0, None, :]",
        tests=("tests/repvit_sam_jax/test_transforms.py::test_valid_positions_are_those_of_a_bilinear_shrink",),
    ),
    Mutant(
        name="oracle-takes-the-mean-of-three",
        file="repvit_sam_jax/evals/protocols.py",
        old="reference[kind]).max(-1)[batch.kept]",
        new="reference[kind]).mean(-1)[batch.kept]",
        tests=(_PROTOCOL,),
    ),
    Mutant(
        name="clicks-for-the-smaller-error",
        file="repvit_sam_jax/evals/protocols.py",
        old="foreground = inside[0] >= outside[0]",
        new="foreground = inside[0] <= outside[0]",
        tests=(_PROTOCOL,),
    ),
    Mutant(
        name="baselines-are-tuned-on-worst-settings",
        file="repvit_sam_jax/evals/baselines.py",
        old="radius = max(_RADII, key=",
        new="radius = min(_RADII, key=",
        tests=("tests/repvit_sam_jax/evals/test_baselines.py::test_tuning_takes_the_best",),
    ),
    Mutant(
        name="benchmark-accepts-nan",
        file="benchmarks/harness.py",
        old="if not difference <= candidate.tolerance:",
        new="if difference > candidate.tolerance:",
        tests=("tests/benchmarks/test_benchmarks.py::test_wrong_answers_stop_the_benchmark",),
    ),
    Mutant(
        name="candidates-do-not-take-turns",
        file="benchmarks/harness.py",
        old="for _ in range(rounds):\n        for candidate in candidates:",
        new="for candidate in candidates:\n        for _ in range(rounds):",
        tests=("tests/benchmarks/test_benchmarks.py::test_candidates_take_turns_after_a_warm_up",),
    ),
    Mutant(
        name="ratios-upside-down",
        file="benchmarks/harness.py",
        old='times[a]["median"] / times[b]["median"]',
        new='times[b]["median"] / times[a]["median"]',
        tests=("tests/benchmarks/test_benchmarks.py::test_ratios",),
    ),
    Mutant(
        name="page-resizes-without-antialiasing",
        file=f"{_SITE}/geometry.js",
        old="const support = Math.max(scale, 1);",
        new="const support = 1;",
        tests=(_PAGE,),
    ),
    Mutant(
        name="page-forgets-the-not-a-point",
        file=f"{_SITE}/geometry.js",
        old="    coords.push(0, 0);\n    labels.push(NOT_A_POINT);\n",
        new="",
        tests=(_PAGE,),
    ),
    Mutant(
        name="page-crops-no-padding",
        file=f"{_SITE}/masks.js",
        old="this.rows = compose(lowRes, imageSize, resized.height, picture.height);",
        new="this.rows = compose(lowRes, imageSize, imageSize, picture.height);",
        tests=(_PAGE,),
    ),
    Mutant(
        name="page-trusts-any-graphics-processor",
        file=f"{_SITE}/model.js",
        old="wrong <= TOLERANCE * mask.length",
        new="wrong <= mask.length",
        tests=(_PAGE,),
    ),
    Mutant(
        name="page-refines-without-the-mask",
        file=f"{_SITE}/model.js",
        old="Float32Array.of(mask ? 1 : 0)",
        new="Float32Array.of(0)",
        tests=(_PAGE,),
    ),
    Mutant(
        name="page-takes-corners-for-holes",
        file=f"{_SITE}/polygons.js",
        old="fill(padded, 0, 2, ALL_NEIGHBOURS)",
        new="fill(padded, 0, 2, NEIGHBOURS)",
        tests=(_PAGE,),
    ),
    Mutant(
        name="page-takes-photos-of-any-size",
        file=f"{_SITE}/geometry.js",
        old="if (width * height > MOST_PIXELS) {",
        new="if (!width) {",
        tests=(_PAGE,),
    ),
    Mutant(
        name="runtime-of-any-hash",
        file="convert/export/web.py",
        old='if integrity != f"sha512-{digest}":',
        new="if not integrity:",
        tests=(f"{_EXPORTS}/test_web.py::test_no_runtime_in_one_line",),
    ),
)
