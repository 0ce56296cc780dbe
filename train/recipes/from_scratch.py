"""Training without a teacher: prompts in the loop against exact masks, from random weights."""

from ..recipe import Losses, Optimizer, Prompting, Recipe

from_scratch = Recipe(
    name="from_scratch",
    student="demo",
    image_size=256,
    batch_size=8,
    steps=5000,
    decoder="init",
    trained=("image_encoder", "prompt_encoder", "mask_decoder"),
    optimizer=Optimizer(1e-3, 1e-5, warmup=0.03, weight_decay=0.05, clip_norm=1.0, ema_decay=0.998),
    losses=Losses(mse=0.0, bce=5.0, dice=2.0, iou=1.0),
    prompting=Prompting(num_prompts=8, box_probability=0.6, box_noise=0.05, targets="ground_truth", logits=True),
    flip_probability=0.5,
    dtype="float32",
    log_every=25,
    checkpoint_every=250,
    evaluate_every=1000,
)
