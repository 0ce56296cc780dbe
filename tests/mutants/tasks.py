"""Mistakes in the tasks of the zero-shot evaluations, and in how they run."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_TASKS = "repvit_sam_jax/evals/tasks"
_DATA = "repvit_sam_jax/data/datasets"
_TESTS = "tests/repvit_sam_jax/evals"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="edges-on-the-mask-itself",
        file=f"{_TASKS}/edges.py",
        old="np.ones((3, 3))) & ~mask",
        new="np.ones((3, 3))) & mask",
        tests=(f"{_TESTS}/test_task_edges.py::test_edges_of_one_mask_are_the_gradient_on_its_outer_boundary",),
    ),
    Mutant(
        name="edge-maps-are-not-thinned",
        file=f"{_TASKS}/edges.py",
        old="np.clip(edge_nms.suppress(stretched), 0, 1)",
        new="np.clip(stretched, 0, 1)",
        tests=(f"{_TESTS}/test_task_edges.py::test_maps_are_stretched_thinned_and_stored_in_8_bits",),
    ),
    Mutant(
        name="contour-maps-between-pixels",
        file=f"{_DATA}/bsds.py",
        old='"ucm2")[2::2, 2::2]',
        new='"ucm2")[1::2, 1::2]',
        tests=(f"{_TESTS}/test_task_edges.py::test_the_truth_itself_is_perfect_and_half_of_it_has_half_the_recall",),
    ),
    Mutant(
        name="items-that-are-done-are-done-again",
        file="repvit_sam_jax/evals/run.py",
        old=" if parts.read(key) is None or key in drawn.missing]",
        new="]",
        tests=(f"{_TESTS}/test_run.py::test_a_run_that_was_stopped_goes_on_to_the_same_numbers",),
    ),
    Mutant(
        name="result-of-a-few-items-passes-for-all",
        file="repvit_sam_jax/evals/run.py",
        old='return result if result.data["items"] == items else None',
        new="return result",
        tests=(f"{_TESTS}/test_run.py::test_a_limit_takes_the_first_items_and_says_so",),
    ),
    Mutant(
        name="result-of-other-weights-is-taken",
        file="repvit_sam_jax/evals/run.py",
        old='before = {"settings": result.settings, "model": result.model}',
        new='before = {"settings": result.settings}',
        tests=(f"{_TESTS}/test_run.py::test_a_finished_result_is_read_and_others_are_not_taken_for_it",),
    ),
    Mutant(
        name="truth-of-salient-objects-at-half-of-255",
        file=f"{_TASKS}/duts.py",
        old="saliency.read_truth(answer.truth)",
        new="answer.truth > 128",
        tests=(f"{_TESTS}/test_task_duts.py",),
    ),
    Mutant(
        name="worst-masks-make-the-map",
        file=f"{_TASKS}/mvtec.py",
        old="[-anomaly.BEST :]",
        new="[: anomaly.BEST]",
        tests=(f"{_TESTS}/test_task_mvtec.py",),
    ),
    Mutant(
        name="anomalies-without-saliency",
        file=f"{_TASKS}/mvtec.py",
        old="anomaly.rescore(mask(i)[None], np.array([score]), saliency)",
        new="np.array([score])",
        tests=(f"{_TESTS}/test_task_mvtec.py",),
    ),
    Mutant(
        name="defects-as-large-as-their-object",
        file="repvit_sam_jax/evals/proposals/anomalies.py",
        old="area * factor, word)",
        new="factor, word)",
        tests=(f"{_TESTS}/test_task_mvtec.py",),
    ),
    Mutant(
        name="boxes-above-points",
        file="repvit_sam_jax/cli/compare.py",
        old="row[1].box is not None)",
        new="row[1].box is None)",
        tests=("tests/repvit_sam_jax/cli/test_compare.py",),
    ),
    Mutant(
        name="scores-without-predicted-ious",
        file="repvit_sam_jax/evals/tasks/coco.py",
        old="return segment(subject, items, weighted=True)",
        new="return segment(subject, items, weighted=False)",
        tests=("tests/repvit_sam_jax/evals/test_task_coco.py",),
    ),
    Mutant(
        name="photos-that-were-not-done-count",
        file="repvit_sam_jax/evals/tasks/coco.py",
        old="self.data.truth(records)",
        new="self.data.truth(self.keys)",
        tests=("tests/repvit_sam_jax/evals/test_task_coco.py",),
    ),
    Mutant(
        name="foreground-where-circles-are-equal",
        file="repvit_sam_jax/evals/clicks.py",
        old="foreground = inside[0] > outside[0]",
        new="foreground = inside[0] >= outside[0]",
        tests=("tests/repvit_sam_jax/evals/test_clicks.py",),
    ),
    Mutant(
        name="a-pixel-is-clicked-twice",
        file="repvit_sam_jax/evals/clicks.py",
        old="if found[1:] not in clicked:",
        new="if True:",
        tests=("tests/repvit_sam_jax/evals/test_clicks.py",),
    ),
    Mutant(
        name="unmatched-results-count-where-not-all-is-annotated",
        file="repvit_sam_jax/evals/metrics/federated.py",
        old='found["dtIgnore"] |= found["dtMatches"] == 0',
        new="pass",
        tests=("tests/repvit_sam_jax/evals/test_task_prompted.py",),
    ),
    Mutant(
        name="iou-after-the-last-click",
        file="repvit_sam_jax/evals/tasks/prompted.py",
        old="ious[min(count, len(ious)) - 1]",
        new="ious[-1]",
        tests=("tests/repvit_sam_jax/evals/test_task_prompted.py",),
    ),
    Mutant(
        name="all-boxes-of-a-photo-are-taken",
        file="repvit_sam_jax/evals/proposals/boxes.py",
        old="chosen = [part[:most] for part",
        new="chosen = [part for part",
        tests=("tests/repvit_sam_jax/evals/test_proposals_boxes.py",),
    ),
    Mutant(
        name="an-object-is-beside-itself",
        file="repvit_sam_jax/evals/tasks/sam_pt.py",
        old="            of_others[number] = False\n",
        new="",
        tests=("tests/repvit_sam_jax/evals/test_sam_pt.py::test_prompts_are_those_of_sam_pt",),
    ),
    Mutant(
        name="first-masks-of-tracked-points-are-forgotten",
        file="repvit_sam_jax/evals/tasks/sam_pt.py",
        old="Prompt(of.points, of.labels, mask=of.low_res)",
        new="Prompt(of.points, of.labels)",
        tests=("tests/repvit_sam_jax/evals/test_sam_pt.py",),
    ),
    Mutant(
        name="points-at-the-edge-of-a-frame-count",
        file="repvit_sam_jax/evals/tasks/sam_pt.py",
        old="(places >= BORDER) & (places <= 1 - BORDER)",
        new="(places >= 0) & (places <= 1)",
        tests=("tests/repvit_sam_jax/evals/test_sam_pt.py::test_prompts_are_those_of_sam_pt",),
    ),
    Mutant(
        name="the-last-object-wins-a-pixel",
        file="repvit_sam_jax/evals/tasks/davis.py",
        old="labels[frame.number][logits > best]",
        new="labels[frame.number][logits > 0]",
        tests=("tests/repvit_sam_jax/evals/test_task_davis.py::test_a_pixel_is_of_the_object_with_the_largest_logit",),
    ),
    Mutant(
        name="void-is-an-object",
        file="repvit_sam_jax/data/datasets/davis.py",
        old="np.where(labels == VOID, 0, labels)",
        new="labels",
        tests=("tests/repvit_sam_jax/evals/test_task_davis.py",),
    ),
    Mutant(
        name="a-lost-track-comes-first",
        file="repvit_sam_jax/evals/tasks/uvo.py",
        old="if np.isfinite(mean) else LAST",
        new="if np.isfinite(mean) else 1.0",
        tests=("tests/repvit_sam_jax/evals/test_task_uvo.py",),
    ),
    Mutant(
        name="half-visible-points-are-visible",
        file="repvit_sam_jax/evals/proposals/tracks.py",
        old='np.asarray(found["visibilities"]) == 1',
        new='np.asarray(found["visibilities"]) > 0',
        tests=("tests/repvit_sam_jax/evals/test_sam_pt.py",),
    ),
)
