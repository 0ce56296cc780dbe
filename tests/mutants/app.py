"""Mistakes in what the page does, and in polygons."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_APP = "repvit_sam_jax/app"
_TESTS = "tests/repvit_sam_jax/app"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="refining-sends-the-first-mask",
        file=f"{_APP}/session.py",
        old="now.answer.low_res[now.chosen])",
        new="now.answer.low_res[0])",
        tests=(f"{_TESTS}/test_session.py::test_refining_sends_the_chosen_mask",),
    ),
    Mutant(
        name="another-model-keeps-the-embedding",
        file=f"{_APP}/session.py",
        old="            self.open(predictor, self.photo.image, self.photo.name)\n",
        new="            self.predictor = predictor\n",
        tests=(f"{_TESTS}/test_session.py::test_another_model_answers_the_same_prompt",),
    ),
    Mutant(
        name="large-masks-over-small-ones",
        file=f"{_APP}/session.py",
        old='key=lambda record: -record["area"]',
        new='key=lambda record: record["area"]',
        tests=(f"{_TESTS}/test_session.py::test_everything_is_what_the_generator_finds",),
    ),
    Mutant(
        name="polygons-fill-holes",
        file="repvit_sam_jax/inference/polygons.py",
        old="if not holes.any():",
        new="if True:",
        tests=("tests/repvit_sam_jax/inference/test_polygons.py::test_a_hole_is_cut_through",),
    ),
    Mutant(
        name="photos-of-any-size-on-the-page",
        file=f"{_APP}/session.py",
        old="if height * width > transforms.MAX_PIXELS:",
        new="if False:",
        tests=(f"{_TESTS}/test_session.py::test_large_photos_are_refused_and_the_one_before_stays",),
    ),
)
