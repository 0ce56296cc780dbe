"""The page of `repvit-sam export web` in Chromium, with real clicks; what it gives is held against Python."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from convert.export import web
from repvit_sam_jax import SamAutomaticMaskGenerator
from repvit_sam_jax.data.synthetic.scenes import render
from repvit_sam_jax.inference import rle
from repvit_sam_jax.inference.onnx import OnnxPredictor
from repvit_sam_jax.transforms import load_image
from repvit_sam_jax.weights.hub import DownloadError
from tests.helpers.chromium import SITE, chromium, require_browser, served
from tests.helpers.measures import rasterised
from tests.helpers.page import Page
from tests.helpers.processes import ROOT

pytestmark = [pytest.mark.torch, pytest.mark.slow(group="use")]

SIZE = (600, 840)
ENOUGH = 0.999


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page with the demonstration model."""
    require_browser()
    given = web.PAGE / "node_modules" / web.PACKAGE / "dist"
    out = tmp_path_factory.mktemp("site") / "out"
    try:
        web.export_web(ROOT / "repvit_sam_jax/weights/demo.safetensors", out, runtime=given if given.is_dir() else None)
    except DownloadError as error:
        pytest.skip(str(error))
    return out


@pytest.fixture(scope="module")
def port(site):
    with served(site) as port:
        yield port


@pytest.fixture(scope="module")
def python(site):
    """What the page's masks must be."""
    return OnnxPredictor(site / "model")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    with chromium(folder) as driver:
        driver.downloads = folder
        yield driver


@pytest.fixture(scope="module")
def scene():
    """A picture and its masks, the largest things first."""
    return render(7, 3, SIZE)


@pytest.fixture(scope="module")
def photo(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(scene.image).save(path)
    return path


@pytest.fixture
def page(driver, port, photo):
    """The page with the photo, seen."""
    page = Page(driver, driver.downloads)
    page.open(f"http://127.0.0.1:{port}/")
    page.choose(photo)
    yield page
    assert page.errors() == []


def agreement(found, expected):
    assert found.shape == expected.shape
    return (found == expected).mean()


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_a_click(page, python, scene, photo):
    """Hovering shows the mask, a click keeps it, and both files have it as ONNX Runtime gives it in Python."""
    target = scene.masks[big_thing(scene)]
    x, y = middle(target)
    page.hover(x, y)
    page.wait_for_status("Click to keep it")
    assert page.drawn() > 1000
    page.click()
    page.wait_for_status("Kept")
    mask, record = page.mask(), page.record()
    (clicked,) = record["point_coords"]
    assert np.hypot(clicked[0] - x, clicked[1] - y) < 2
    python.set_image(load_image(photo))
    masks, predicted, _ = python.predict([clicked], [1])
    best = predicted.argmax()
    assert agreement(mask, masks[best]) >= ENOUGH
    np.testing.assert_array_equal(mask, decode(record))
    assert record["area"] == mask.sum()
    assert record["predicted_iou"] == pytest.approx(predicted[best], abs=1e-4)
    assert iou(mask, target) > 0.6


def test_threads_where_the_page_may_have_them(page):
    assert page.driver.execute_script("return crossOriginIsolated")
    assert (
        " threads)" in page.text("figures") or page.driver.execute_script("return navigator.hardwareConcurrency") == 1
    )


def test_loaded_once_more(port, tmp_path):
    """By hand, right after the first visit, in which the page has loaded itself again for its threads."""
    with chromium(tmp_path) as driver:
        page = Page(driver, tmp_path)
        page.open(f"http://127.0.0.1:{port}/")
        driver.refresh()
        page.wait_for(lambda: page.state() == "ready", 30)
        assert driver.execute_script("return crossOriginIsolated")


def test_points_boxes_and_undo(page, python, photo):
    python.set_image(load_image(photo))
    page.hover(590, 420)
    page.click()
    page.wait_for_status("Kept")
    first = page.mask()
    page.hover(640, 330)
    page.click(background=True)
    page.wait_for_status("Kept 2 points")
    record = page.record()
    assert record["point_labels"] == [1, 0]
    masks, *_ = python.predict(record["point_coords"], [1, 0], multimask_output=False)
    assert agreement(decode(record), masks[0]) >= ENOUGH
    page.press("undo")
    page.wait_for_status("Kept 1 point")
    np.testing.assert_array_equal(page.mask(), first)
    page.press("clear")
    page.drag((270, 110), (560, 400))
    page.wait_for_status("Kept a box")
    box = page.record()["prompt_box"]
    assert box == pytest.approx([270, 110, 560, 400], abs=2)
    masks, *_ = python.predict(box=box, multimask_output=False)
    assert agreement(page.mask(), masks[0]) >= ENOUGH


def test_each_of_the_three_masks(page, python, photo):
    python.set_image(load_image(photo))
    page.hover(590, 420)
    page.click()
    page.wait_for_status("Kept")
    for number in (1, 2, 3):
        page.take_candidate(number)
        record = page.record()
        masks, predicted, _ = python.predict(record["point_coords"], [1])
        assert record["predicted_iou"] == pytest.approx(predicted[number - 1], abs=1e-4)
        assert agreement(page.mask(), masks[number - 1]) >= ENOUGH


def test_a_mask_refined(page, python, photo):
    """The logits of the mask that is shown go in again; polygons have the very pixels."""
    python.set_image(load_image(photo))
    page.hover(590, 420)
    page.click()
    page.wait_for_status("Kept")
    page.take_candidate(3)
    (point,) = page.record()["point_coords"]
    page.press("refine")
    page.wait_for_status("refined")
    *_, low_res = python.predict([point], [1])
    masks, predicted, _ = python.predict([point], [1], mask_input=low_res[2:], multimask_output=False)
    mask, record = page.mask(), page.record("polygons")
    assert agreement(mask, masks[0]) >= ENOUGH
    assert record["predicted_iou"] == pytest.approx(predicted[0], abs=1e-3)
    np.testing.assert_array_equal(rasterised(record["segmentation"], mask.shape), mask)
    page.press("undo")
    page.wait_for(lambda: "refined" not in page.text("status"))
    assert page.record()["predicted_iou"] != pytest.approx(predicted[0], abs=1e-3)


def test_everything(page, python, tmp_path):
    """The masks of the generator."""
    size = (480, 640)
    photo = tmp_path / "photo.png"
    Image.fromarray(render(7, 3, size).image).save(photo)
    page.choose(photo)
    page.everything(16)
    page.wait_for_status("found in", 300)
    records = page.records()
    generator = SamAutomaticMaskGenerator(python.backend, points_per_side=16)
    expected = [record["segmentation"] for record in generator.generate(load_image(photo))]
    assert abs(len(records) - len(expected)) <= 1
    assert len(expected) > 8
    found = [decode(record) for record in records]
    matched = [max(iou(mask, other) for other in found) for mask in expected]
    assert sum(match > 0.99 for match in matched) >= len(expected) - 1
    assert page.picture("masks").size == (size[1], size[0])


def test_everything_ends_when_it_is_stopped(page):
    page.everything(32)
    page.wait_for_status("Finding everything … ")
    page.press("everything")
    page.wait_for_status("found in", 30)


def test_a_photo_from_a_phone(page, python, tmp_path):
    """JPEG, on its side."""
    image = Image.fromarray(render(7, 0, (480, 640)).image)
    exif = Image.Exif()
    exif[0x112] = 6
    image.save(tmp_path / "phone.jpg", quality=92, exif=exif)
    page.choose(tmp_path / "phone.jpg")
    page.hover(240, 400)
    page.click()
    page.wait_for_status("Kept")
    record = page.record()
    pixels = load_image(tmp_path / "phone.jpg")
    assert pixels.shape == (640, 480, 3)
    python.set_image(pixels)
    masks, predicted, _ = python.predict(record["point_coords"], [1])
    assert agreement(page.mask(), masks[predicted.argmax()]) >= ENOUGH


def test_keys(page):
    """The photo can be prompted without a mouse, and what has the focus is outlined."""
    page.tab_to("picture")
    page.keys("ArrowRight", "ArrowDown", "Enter")
    page.wait_for_status("Kept")
    outline = "return getComputedStyle(document.getElementById('picture')).outlineStyle"
    assert page.driver.execute_script(outline) == "solid"
    ((x, y),) = page.record()["point_coords"]
    assert (x, y) == pytest.approx((SIZE[1] / 2 + SIZE[1] / 60, SIZE[0] / 2 + SIZE[1] / 60))
    page.tab_to("picture")
    page.keys("Backspace")
    page.wait_for_status("Point at something")


def test_what_is_no_photo(page, photo, tmp_path):
    """Is refused in a line, and the photo that is there stays, with its mask."""
    page.hover(590, 420)
    page.click()
    page.wait_for_status("Kept")
    mask = page.mask()
    (tmp_path / "text.png").write_text("text")
    Image.new("RGB", (9000, 5600)).save(tmp_path / "large.png")
    Image.new("RGB", (4000, 3)).save(tmp_path / "narrow.png")
    page.choose(tmp_path / "text.png", "text.png is no picture that this browser can read.")
    page.choose(tmp_path / "large.png", "The photo has 9000 x 5600 pixels; at most 50 million are possible.")
    page.choose(tmp_path / "narrow.png", "The photo is too narrow for the model, 4000 x 3 pixels.")
    assert page.driver.execute_script("return document.body.dataset.photo") == photo.name
    np.testing.assert_array_equal(page.mask(), mask)


def test_a_photo_while_everything_is_searched(page, tmp_path):
    """Comes next."""
    Image.fromarray(render(7, 0, (60, 80)).image).save(tmp_path / "next.png")
    page.everything(32)
    page.wait_for_status("Finding everything … ")
    page.choose(tmp_path / "next.png")
    assert page.driver.execute_script("return document.body.dataset.photo") == "next.png"


def test_another_page_at_this_address_later(site, tmp_path, tmp_path_factory):
    """Has nothing of this one left."""
    folder = tmp_path / "served"
    folder.symlink_to(site)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<!doctype html><title>Other</title>")
    with served(folder) as port, chromium(tmp_path_factory.mktemp("downloads")) as driver:
        Page(driver, tmp_path).open(f"http://127.0.0.1:{port}/")
        assert driver.execute_script("return crossOriginIsolated")
        folder.unlink()
        folder.symlink_to(tmp_path / "other")
        driver.get(f"http://127.0.0.1:{port}/")
        assert driver.title == "Other"
        assert not driver.execute_script("return crossOriginIsolated")
        registered = "navigator.serviceWorker.getRegistrations().then((all) => arguments[0](all.length))"
        assert driver.execute_async_script(registered) == 0


def test_on_a_phone_without_threads(port, python, photo, tmp_path):
    """An address without https is no secure place: one thread, no graphics processor. Nothing is cut off."""
    with chromium(tmp_path, (500, 900)) as driver:
        metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        page = Page(driver, tmp_path)
        page.open(f"http://{SITE}:{port}/")
        page.choose(photo)
        assert "1 thread)" in page.text("figures")
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        page.tap(590, 420)
        page.wait_for_status("Kept")
        record = page.record()
        python.set_image(load_image(photo))
        masks, predicted, _ = python.predict(record["point_coords"], [1])
        assert agreement(decode(record), masks[predicted.argmax()]) >= ENOUGH
        assert [text for text in page.errors() if "insecure connection" not in text] == []


def big_thing(scene):
    """A thing that is large, but no background."""
    area = [mask.sum() if mask.sum() < 0.2 * mask.size else 0 for mask in scene.masks]
    return int(np.argmax(area))


def middle(mask):
    y, x = np.nonzero(mask)
    nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
    return int(x[nearest]), int(y[nearest])


def decode(record):
    size = record["segmentation"]["size"]
    return rle.counts_to_mask(rle.read_segmentation(record["segmentation"], size), size)
