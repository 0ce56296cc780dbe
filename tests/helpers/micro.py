"""The smallest models there are, for tests of the training machinery; and a run of them in a process of its own."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from repvit_sam_jax import config
from repvit_sam_jax.terminal import errors_in_one_line
from train.recipe import Losses, Optimizer, Prompting, Recipe

_DECODER = config.MaskDecoderConfig(
    embed_dim=16, depth=1, num_heads=2, mlp_dim=32, iou_head_hidden_dim=16, mask_in_channels=4
)
PRESETS = (
    # One stage less than RepViT's four; the last downsampling block has a stride, to end at 16 all the same.
    config.SamConfig("micro", config.RepViTConfig((8, 16, 16), (1, 1, 1), last_stride=2), _DECODER, image_size=64),
    config.SamConfig(
        "micro_vit", config.ViTConfig(16, 2, 2, (1,), window_size=2, grid_size=4, mlp_dim=32), _DECODER, image_size=64
    ),
)


def register() -> None:
    """Let `get_config` find them."""
    config.MODELS.update({preset.name: preset for preset in PRESETS})


ENCODER = Recipe(
    name="micro",
    student="micro",
    teacher="random:micro_vit",
    batch_size=8,
    steps=8,
    optimizer=Optimizer(1e-2, warmup=0.2, clip_norm=1.0),
    losses=Losses(mse=1.0),
    dtype="float32",
    log_every=2,
    checkpoint_every=3,
    evaluate_every=100,
)
PROMPTS = dataclasses.replace(
    ENCODER,
    trained=("image_encoder", "mask_decoder"),
    losses=Losses(mse=0.5, bce=5.0, dice=5.0, iou=1.0),
    prompting=Prompting(num_prompts=4),
)


def main() -> None:
    """Arguments: run folder, photos, JSON of {process, processes, port, changes}."""
    run, photos, about = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    import jax

    register()
    jax.config.update("jax_default_matmul_precision", "highest")  # as in conftest.py
    with contextlib.ExitStack() as stack:
        if about.get("processes", 1) > 1:
            from train.processes import joined

            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            place = f"localhost:{about['port']}", about["processes"], about["process"]
            names = ("coordinator_address", "num_processes", "process_id")
            stack.enter_context(errors_in_one_line())
            stack.enter_context(joined(heartbeat_timeout=10, **dict(zip(names, place, strict=True))))
        from train import state
        from train.loop import Inputs, train

        state.SPLIT_FROM = 64
        recipe = dataclasses.replace(ENCODER, **about.get("changes", {}))
        result = train(recipe, Path(run), Inputs((photos,)))
        print(f"ended at {int(result.step)}", flush=True)


if __name__ == "__main__":
    main()
