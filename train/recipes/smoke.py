"""Minutes on a laptop: the whole machinery on tiny models, with a teacher of random weights."""

from ..recipe import Losses, Optimizer, Recipe

smoke = Recipe(
    name="smoke",
    student="tiny",
    teacher="random:tiny",
    batch_size=8,
    steps=40,
    trained=("image_encoder", "mask_decoder"),
    optimizer=Optimizer(3e-3, 1e-4, warmup=0.1, clip_norm=1.0),
    losses=Losses(mse=1.0, bce=5.0, dice=5.0),
    dtype="float32",
    log_every=5,
    checkpoint_every=20,
    evaluate_every=20,
)
