"""Mistakes in training: losses, optimizer, steps, prompts, data, runs."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_STEP = "tests/train/test_step.py"
_LOOP = "tests/train/test_loop.py"
_LOSSES = "tests/train/test_losses.py"
_PROMPTS = "tests/train/test_prompts.py"
_LOADER = "tests/repvit_sam_jax/data/test_loader.py"
_FINETUNE = "tests/train/test_finetune.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="padding-counts-in-the-embedding-loss",
        file="train/losses.py",
        old="jnp.square(student - teacher).mean(-1), positions_valid)",
        new="jnp.square(student - teacher).mean(-1), None)",
        tests=(f"{_LOSSES}::test_embedding_loss_equals_torch",),
    ),
    Mutant(
        name="dice-without-smoothing-above",
        file="train/losses.py",
        old="(2 * both + 1)",
        new="(2 * both)",
        tests=(f"{_LOSSES}::test_mask_losses_equal_torch",),
    ),
    Mutant(
        name="bce-averaged-over-padding",
        file="train/losses.py",
        old="/ jnp.maximum(inside.sum((-2, -1)), 1)",
        new="/ (losses.shape[-2] * losses.shape[-1])",
        tests=(f"{_LOSSES}::test_mask_losses_equal_torch",),
    ),
    Mutant(
        name="mean-of-means-of-photos",
        file="train/losses.py",
        old="return jnp.where(weights > 0, values * weights, 0).sum() / jnp.where(total > 0, total, 1)",
        new=(
            "axes = tuple(range(1, values.ndim))\n"
            "    counts = weights.sum(axes)\n"
            "    sums = jnp.where(weights > 0, values * weights, 0).sum(axes)\n"
            "    return (sums / jnp.where(counts > 0, counts, 1)).mean() * (total > 0)"
        ),
        tests=(f"{_LOSSES}::test_means_are_global",),
    ),
    Mutant(
        name="biases-decay",
        file="train/optim.py",
        old='return names[-1] == "kernel" and not',
        new='return names[-1] in ("kernel", "bias") and not',
        tests=(f"{_STEP}::test_what_decays",),
    ),
    Mutant(
        name="warm-up-a-step-longer",
        file="train/optim.py",
        old="min(round(optimizer.warmup * num_steps), num_steps - 1)",
        new="min(round(optimizer.warmup * num_steps) + 1, num_steps - 1)",
        tests=(f"{_STEP}::test_learning_rate",),
    ),
    Mutant(
        name="gradients-not-clipped",
        file="train/optim.py",
        old="return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), chosen)",
        new="return chosen",
        tests=(f"{_STEP}::test_gradients_are_clipped_by_their_norm",),
    ),
    Mutant(
        name="moving-average-forgets-at-once",
        file="train/step.py",
        old="rate * old + (1 - rate) * new if floating(old)",
        new="(1 - rate) * old + rate * new if floating(old)",
        tests=(f"{_STEP}::test_moving_average",),
    ),
    Mutant(
        name="sum-over-micro-batches",
        file="train/step.py",
        old="a + x / count if floating(x)",
        new="a + x if floating(x)",
        tests=(f"{_STEP}::test_parts_of_a_batch",),
    ),
    Mutant(
        name="frozen-encoder-runs-unfused",
        file="train/state.py",
        old='"train" if recipe.encoder_learns else "deploy"',
        new='"train"',
        tests=(f"{_STEP}::test_a_frozen_encoder_runs_fused",),
    ),
    Mutant(
        name="single-mask-among-the-best",
        file="train/step.py",
        old="1 + jnp.argmin(lax.stop_gradient(cost[..., 1:]), axis=-1)",
        new="jnp.argmin(lax.stop_gradient(cost), axis=-1)",
        tests=(f"{_STEP}::test_masks_that_count",),
    ),
    Mutant(
        name="padding-counts-unless-asked-for",
        file="train/step.py",
        old="None if recipe.losses.padding else",
        new="None if not recipe.losses.padding else",
        tests=(f"{_STEP}::test_padding_counts_if_it_is_asked_for",),
    ),
    Mutant(
        name="points-beside-the-mask",
        file="train/prompts.py",
        old="(jnp.cumsum(pixels, -1) <= (rank - before)[..., None])",
        new="(jnp.cumsum(pixels, -1) < (rank - before)[..., None])",
        tests=(f"{_PROMPTS}::test_every_pixel_can_be_drawn_and_no_other",),
    ),
    Mutant(
        name="noise-of-boxes-without-limit",
        file="train/prompts.py",
        old="jnp.clip(moves, -BOX_NOISE_LIMIT, BOX_NOISE_LIMIT)",
        new="moves",
        tests=(f"{_PROMPTS}::test_box_noise",),
    ),
    Mutant(
        name="correcting-points-with-the-wrong-label",
        file="train/prompts.py",
        old="jnp.where(inside, FOREGROUND, BACKGROUND)",
        new="jnp.where(inside, BACKGROUND, FOREGROUND)",
        tests=(f"{_PROMPTS}::test_add_point",),
    ),
    Mutant(
        name="photos-flipped-without-their-masks",
        file="repvit_sam_jax/data/examples.py",
        old="masks.to_low_res(found[i], size, config.image_size, flip=flip)",
        new="masks.to_low_res(found[i], size, config.image_size)",
        tests=("tests/repvit_sam_jax/data/test_examples.py::test_flip_is_the_example_of_the_mirrored_photo",),
    ),
    Mutant(
        name="mask-pixels-of-any-coverage",
        file="repvit_sam_jax/data/masks.py",
        old="(covered[:, ::-1] if flip else covered) >= half",
        new="(covered[:, ::-1] if flip else covered) > 0",
        tests=("tests/repvit_sam_jax/data/test_masks.py::test_low_res_masks_of_whole_factors_are_a_box_filter",),
    ),
    Mutant(
        name="every-seed-has-the-same-order",
        file="repvit_sam_jax/data/loader.py",
        old=".seed(seed).shuffle()",
        new=".seed(0).shuffle()",
        tests=(f"{_LOADER}::test_epochs",),
    ),
    Mutant(
        name="a-batch-skipped-on-resuming",
        file="repvit_sam_jax/data/loader.py",
        old="share[start * share.size :]",
        new="share[(start + (start > 0)) * share.size :]",
        tests=(f"{_LOADER}::test_resumed_exactly",),
    ),
    Mutant(
        name="index-outlives-its-tar",
        file="repvit_sam_jax/data/tar.py",
        old="status.st_size, status.st_mtime_ns], np.int64)",
        new="0, 0], np.int64)",
        tests=("tests/repvit_sam_jax/data/test_sources.py::test_index_is_kept_beside_the_tar_and_follows_it",),
    ),
    Mutant(
        name="loss-not-looked-at-before-saving",
        file="train/loop.py",
        old="log.check()\n                    checkpoints.save(state, score)",
        new="checkpoints.save(state, score)",
        tests=(f"{_LOOP}::test_loss_that_is_not_finite",),
    ),
    Mutant(
        name="run-goes-on-with-another-recipe",
        file="train/loop.py",
        old="before.get(key) != values[key] and key not in free]",
        new="before.get(key) != values[key] and key not in free and key in before and name != 'recipe.json']",
        tests=(f"{_LOOP}::test_run_of_another_recipe_or_data",),
    ),
    Mutant(
        name="worst-checkpoint-is-the-best",
        file="train/checkpoints.py",
        old='return max(scored, key=lambda found: found.metrics["score"]).step',
        new='return min(scored, key=lambda found: found.metrics["score"]).step',
        tests=("tests/train/test_checkpoints.py::test_the_best_is_the_one_with_the_highest_score",),
    ),
    Mutant(
        name="patience-of-one-more",
        file="train/log.py",
        old="len(self.scores) - 1 - _first_best(self.scores) >= patience",
        new="len(self.scores) - 1 - _first_best(self.scores) > patience",
        tests=(f"{_FINETUNE}::test_a_run_ends_when_it_gets_no_better",),
    ),
    Mutant(
        name="start-is-not-measured",
        file="train/loop.py",
        old="if not log.evaluated and (first or recipe.patience):",
        new="if not log.evaluated and first:",
        tests=(f"{_FINETUNE}::test_a_run_ends_when_it_gets_no_better",),
    ),
    Mutant(
        name="held-out-photos-are-learnt-from",
        file="train/finetune.py",
        old="[i for i in digests if digests[i] not in aside]",
        new="list(digests)",
        tests=(f"{_FINETUNE}::test_a_fifth_is_held_out_by_what_it_holds",),
    ),
    Mutant(
        name="overlap-by-name-alone",
        file="train/finetune.py",
        old="        both = set(digests.values()) & set(others.values())",
        new="        both = {source[i].name for i in digests} & {held_out[i].name for i in others}",
        tests=(f"{_FINETUNE}::test_held_out_photos_may_not_be_learnt_from",),
    ),
    Mutant(
        name="lora-takes-away",
        file="train/lora.py",
        old='["kernel"] + update["a"] @ update["b"]',
        new='["kernel"] - update["a"] @ update["b"]',
        tests=("tests/train/test_lora.py::test_a_step",),
    ),
    Mutant(
        name="held-out-masks-are-the-first",
        file="repvit_sam_jax/data/examples.py",
        old="np.linspace(0, length - 1, min(count or length, length))",
        new="np.arange(min(count or length, length))",
        tests=("tests/repvit_sam_jax/data/test_examples.py::test_masks_boxes_and_areas",),
    ),
    Mutant(
        name="void-of-a-label-map-is-an-object",
        file="repvit_sam_jax/data/pairs.py",
        old="known = objects != VOID",
        new="known = objects > 0",
        tests=("tests/repvit_sam_jax/data/test_pairs.py::test_objects_of_a_picture",),
    ),
)
