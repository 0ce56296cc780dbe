"""The embedded demonstration model (docs/embedded-weights.md): from random weights, on synthetic scenes, and in
the end on what it makes of photos itself.

Each stage starts from the weights of the one before, which the package contained when it was run.
"""

import dataclasses

from ..recipe import Losses, Optimizer, Prompting, Recipe

demo = Recipe(
    name="demo",
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

demo_2 = dataclasses.replace(
    demo,
    name="demo_2",
    init="demo",
    batch_size=6,
    steps=3600,
    optimizer=dataclasses.replace(
        demo.optimizer, name="muon", learning_rate=2e-3, final_learning_rate=2e-5, warmup=0.02
    ),
)
"""Muon learns faster than AdamW."""

demo_3 = dataclasses.replace(
    demo_2,
    name="demo_3",
    image_size=512,
    batch_size=4,
    steps=700,
    optimizer=dataclasses.replace(demo_2.optimizer, learning_rate=1e-3, final_learning_rate=1e-5, ema_decay=0.99),
    log_every=10,
    checkpoint_every=100,
)
"""At the size that the model is for, which costs four times as much."""

demo_4 = dataclasses.replace(
    demo_3,
    name="demo_4",
    steps=2000,
    optimizer=dataclasses.replace(demo_3.optimizer, learning_rate=8e-4, ema_decay=0.998),
    prompting=dataclasses.replace(demo_3.prompting, box_noise=0.02),
)
"""Longer, with a longer average and tighter boxes, on scenes of which a quarter are far views."""

demo_5 = dataclasses.replace(demo_4, name="demo_5")
"""The like once more; most of the scenes are outdoors."""

demo_6 = dataclasses.replace(demo_5, name="demo_6", steps=1200)
"""Run twice side by side, with two seeds; the weights of both, and those that they start from, are averaged. Stage 11
is the same with exact boxes, on other scenes in each run, one of which has windows of photos too; stage 12 once more,
with windows in both, a learning rate of 6e-4, and in one of them four times the loss of predicted IoUs."""

demo_7 = dataclasses.replace(
    demo_6,
    name="demo_7",
    steps=600,
    optimizer=dataclasses.replace(demo_6.optimizer, learning_rate=4e-4, ema_decay=0.995),
    prompting=dataclasses.replace(demo_6.prompting, box_noise=0.0, box_probability=0.7),
)
"""Self-training: two fifths are windows of photos with pseudo-labels. Gentle, twice, and averaged likewise. Stages 8
to 10 are the same again, with 420, 450 and 800 steps."""
