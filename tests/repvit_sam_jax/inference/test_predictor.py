"""SamPredictor against the twin run in SAM's own order of operations, and the number of programs that it compiles."""

import itertools

import chex
import jax
import numpy as np
import pytest
import torch

from convert.torch_models import Sam as TorchSam
from repvit_sam_jax import Sam, SamPredictor, transforms
from repvit_sam_jax.inference import backends, predictor, prompts
from repvit_sam_jax.weights.formats import mapping
from tests.helpers.measures import relative_rms

pytestmark = pytest.mark.torch
HEIGHT, WIDTH = 75, 110


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor_with_image(tiny, image):
    made = SamPredictor(*tiny)
    made.set_image(image)
    return made


@pytest.fixture(scope="module")
def twin(tiny_train):
    twin = TorchSam(tiny_train[0].config).eval()
    state = mapping.to_state(tiny_train[1], tiny_train[0].config, "train")
    twin.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()}, strict=True)
    return twin


def reference(twin, image, coords=None, labels=None, box=None, mask=None, multimask=True):
    """Logits at the image's size, IoU and low-res logits of one prompt, step by step as the official predictor does."""
    size = twin.config.image_size
    images = torch.from_numpy(transforms.preprocess(image, size).transpose(0, 3, 1, 2).copy())
    height, width = image.shape[:2]
    new_height, new_width = transforms.resized_shape(height, width, size)
    scale = torch.tensor([new_width / width, new_height / height], dtype=torch.float64)
    with torch.no_grad():
        low_res, iou = twin.decode(
            twin.encode(images),
            None if coords is None else (torch.tensor(coords, dtype=torch.float64) * scale).float()[None],
            None if labels is None else torch.tensor(labels)[None],
            None
            if box is None
            else (torch.tensor(box, dtype=torch.float64).reshape(2, 2) * scale).float().reshape(1, 4),
            None if mask is None else torch.from_numpy(mask)[None],
            multimask,
        )
        square = torch.nn.functional.interpolate(low_res, (size, size), mode="bilinear", align_corners=False)
        cropped = square[..., :new_height, :new_width]
        logits = torch.nn.functional.interpolate(cropped, (height, width), mode="bilinear", align_corners=False)
    return logits[0].numpy(), iou[0].numpy(), low_res[0].numpy()


POINTS, LABELS, BOX = [[30, 40], [80.5, 20.25], [5, 70]], [1, 0, 1], [10, 12, 90, 60]
MASK = np.random.default_rng(1).normal(size=(1, 32, 32)).astype(np.float32)
PROMPTS = {
    "point": {"coords": POINTS[:1], "labels": LABELS[:1]},
    "points": {"coords": POINTS, "labels": LABELS},
    "box": {"box": BOX},
    "box and points": {"coords": POINTS, "labels": LABELS, "box": BOX},
    "point and mask": {"coords": POINTS[:1], "labels": LABELS[:1], "mask": MASK},
    "box and mask": {"box": BOX, "mask": MASK},
    "mask alone": {"mask": MASK},
}
NAMES = {"coords": "point_coords", "labels": "point_labels", "box": "box", "mask": "mask_input"}


@pytest.mark.parametrize(("kind", "multimask"), list(zip(PROMPTS, itertools.cycle((True, False)))))
def test_equals_the_official_procedure(predictor_with_image, twin, image, kind, multimask):
    prompt = PROMPTS[kind]
    expected = reference(twin, image, **prompt, multimask=multimask)
    given = {NAMES[key]: value for key, value in prompt.items()}
    found = predictor_with_image.predict(**given, multimask_output=multimask, return_logits=True)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == np.float32
    assert relative_rms(found[0], expected[0]) < 2e-5
    assert relative_rms(found[2], expected[2]) < 2e-5
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    masks, _, _ = predictor_with_image.predict(**given, multimask_output=multimask)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, found[0] > 0)


def test_many_prompts_of_different_lengths_at_once(predictor_with_image):
    coords = [POINTS[:1], POINTS, POINTS[1:]]
    labels = [LABELS[:1], LABELS, LABELS[1:]]
    masks, iou, low_res = predictor_with_image.predict(coords, labels, return_logits=True)
    assert masks.shape == (3, 3, HEIGHT, WIDTH)
    for i in range(3):
        alone = predictor_with_image.predict(coords[i], labels[i], return_logits=True)
        assert relative_rms(masks[i], alone[0]) < 2e-6
        np.testing.assert_allclose(iou[i], alone[1], atol=1e-6)
        assert relative_rms(low_res[i], alone[2]) < 2e-6


def test_more_prompts_than_one_call_decodes(predictor_with_image, monkeypatch):
    boxes = np.array([[x, 5, x + 20, 50] for x in range(10)], np.float32)
    expected = predictor_with_image.predict(box=boxes)
    monkeypatch.setattr(predictor, "DECODE_BATCH", 4)
    found = predictor_with_image.predict(box=boxes)
    assert found[0].shape == (10, 3, HEIGHT, WIDTH)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    assert (found[0] != expected[0]).mean() < 1e-4


def test_batch_of_images_equals_images_one_by_one(tiny, image):
    rng = np.random.default_rng(2)
    images = [
        image,
        *(rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 40), (128, 60), (20, 90), (33, 44))),
    ]
    points = [[[5.0, 6.0]], None, [[[1.0, 2.0]], [[3.0, 4.0], [10.0, 19.0]]], None, [[7.0, 8.0]]]
    labels = [[1], None, [[1], [0, 1]], None, [0]]
    boxes = [None, [1, 2, 30, 30], None, [[0, 0, 10, 10], [5, 5, 80, 15]], [2, 2, 20, 20]]
    made = SamPredictor(*tiny)
    made.set_image_batch(images)
    batch = made.predict_batch(points, labels, boxes, return_logits=True)
    assert len(batch) == 5
    assert batch[3][0].shape == (2, 3, 20, 90)
    for i, single in enumerate(images):
        made.set_image(single)
        alone = made.predict(points[i], labels[i], boxes[i], return_logits=True)
        for a, b in zip(batch[i], alone, strict=True):
            assert relative_rms(a, b) < 1e-5


def test_stored_embedding_gives_the_same_masks(tiny, predictor_with_image):
    given = predictor_with_image.get_image_embedding()
    memory = np.zeros(given.nbytes + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :][: given.nbytes]  # so aligned, JAX may share it on CPU
    embedding = memory.view(np.float32).reshape(given.shape)
    embedding[:] = given
    assert embedding.shape == (1, 8, 8, 32)
    other = SamPredictor(*tiny)
    assert not other.is_image_set
    other.set_image_embedding(embedding, (HEIGHT, WIDTH))
    embedding[:] = 0  # the caller's own again
    assert other.original_size == (HEIGHT, WIDTH)
    assert other.input_size == predictor_with_image.input_size == (87, 128)
    for a, b in zip(other.predict(box=BOX), predictor_with_image.predict(box=BOX), strict=True):
        np.testing.assert_array_equal(a, b)
    other.reset_image()
    with pytest.raises(RuntimeError, match="no image"):
        other.predict(box=BOX)


def test_bgr_is_reversed(tiny, predictor_with_image, image):
    other = SamPredictor(*tiny)
    other.set_image(image[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(other.get_image_embedding(), predictor_with_image.get_image_embedding())
    other.set_image(image[..., ::-1])
    assert relative_rms(other.get_image_embedding(), predictor_with_image.get_image_embedding()) > 1e-3


def test_low_res_logits_feed_back(predictor_with_image):
    _, iou, low_res = predictor_with_image.predict(POINTS[:1], LABELS[:1])
    best = low_res[np.argmax(iou)][None]
    _, _, corrected = predictor_with_image.predict(POINTS, LABELS, mask_input=best, multimask_output=False)
    _, _, without = predictor_with_image.predict(POINTS, LABELS, multimask_output=False)
    assert relative_rms(corrected, without) > 1e-2


def test_prompts_without_points_beside_boxes(predictor_with_image):
    """Some prompts with points and some without, in any order; and a leading axis however many boxes there are."""
    boxes = [[5, 5, 60, 50], [20, 10, 90, 70]]
    for points in ([[], POINTS], [POINTS, []]):
        labels = [LABELS if len(p) else [] for p in points]
        together = predictor_with_image.predict(points, labels, boxes, return_logits=True)
        for i in range(2):
            given = {"point_coords": points[i], "point_labels": labels[i]} if len(points[i]) else {}
            alone = predictor_with_image.predict(**given, box=boxes[i], return_logits=True)
            assert relative_rms(together[0][i], alone[0]) < 2e-6
    for count in (1, 2):
        masks, _, _ = predictor_with_image.predict([[]] * count, [[]] * count, boxes[:count])
        assert masks.shape == (count, 3, HEIGHT, WIDTH)


def test_few_programs_are_compiled(tiny, monkeypatch):
    """Calls with 1 to 8 points on images of as many sizes: one encoder, and a decoder a power of two and mode."""
    chex.clear_trace_counter()
    encode = jax.jit(chex.assert_max_traces(Sam.encode, n=1), static_argnums=0)
    decode = jax.jit(chex.assert_max_traces(Sam.decode, n=3), static_argnums=(0, 4))
    monkeypatch.setattr(backends, "_encode", encode)
    monkeypatch.setattr(backends, "_decode", decode)
    made = SamPredictor(*tiny)
    rng = np.random.default_rng(0)
    for count in range(1, 9):
        height, width = rng.integers(10, 200, 2)
        made.set_image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        made.predict(rng.uniform(0, 10, (count, 2)), [1, *rng.integers(0, 2, count - 1)])
    assert decode._cache_size() == 3  # 2, 4 and 8 points
    made.predict(box=[1, 1, 5, 5])  # two corners: the program for two points serves it
    assert decode._cache_size() == 3


def test_warmup_leaves_nothing_to_compile(tiny, image, monkeypatch, caplog):
    def fresh_encode(*arguments):
        return Sam.encode(*arguments)

    def fresh_decode(*arguments):
        return Sam.decode(*arguments)

    monkeypatch.setattr(backends, "_encode", jax.jit(fresh_encode, static_argnums=0))
    monkeypatch.setattr(backends, "_decode", jax.jit(fresh_decode, static_argnums=(0, 4)))
    made = SamPredictor(*tiny)

    def compiled() -> list[str]:
        lines = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
        caplog.clear()
        return [name for name in ("fresh_encode", "fresh_decode") if any(name in line for line in lines)]

    with jax.log_compiles():
        made.warmup(num_points=3, multimask_output=False)
        assert compiled() == ["fresh_encode", "fresh_decode"]
        made.set_image(image)
        made.predict(POINTS, LABELS, multimask_output=False)
        assert compiled() == []


@pytest.mark.parametrize(
    ("count", "minimum", "expected"), [(0, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 2), (3, 1, 4), (20, 2, 32), (64, 1, 64)]
)
def test_bucket(count, minimum, expected):
    assert prompts.bucket(count, minimum) == expected


def test_low_res_masks_alone(predictor_with_image):
    """For photos whose masks are large: the rest is what it was."""
    whole = predictor_with_image.predict(box=[[1, 1, 50, 50], [5, 5, 60, 60]])
    masks, iou, low_res = predictor_with_image.predict(box=[[1, 1, 50, 50], [5, 5, 60, 60]], return_low_res_only=True)
    assert masks.shape == (2, 3, 0, 0)
    np.testing.assert_array_equal(iou, whole[1])
    np.testing.assert_array_equal(low_res, whole[2])


def test_the_photo_is_taken_once(tiny, image, monkeypatch):
    """Another thread sets another image while the decoder runs: the masks are those of the image asked about."""
    made = SamPredictor(*tiny)
    made.set_image(image)
    expected = made.predict([[5, 5]], [1])
    original = made.backend.decode

    def decode(*arguments):
        made.set_image(image[:30, :20])
        return original(*arguments)

    monkeypatch.setattr(made.backend, "decode", decode)
    found = made.predict([[5, 5]], [1])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
