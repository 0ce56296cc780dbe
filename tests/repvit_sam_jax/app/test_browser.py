"""The page in Chromium, over the demonstration model: upload, clicks, boxes, everything, files that are saved."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.data.synthetic import scenes
from tests.helpers.chromium import chromium, errors, requested
from tests.helpers.measures import rasterised
from tests.helpers.processes import ROOT

pytestmark = pytest.mark.slow(group="use")

PATIENCE = 180
"""Seconds for anything."""

THING, POINT = 3, (65, 174)
"""One of the scene, and a point within it, in pixels."""

# Of the server's own sockets: where it connects, and whose address it asks for.
SERVER = """
import sys
def report(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(event, arguments[1] if event == "socket.connect" else arguments[0], file=sys.stderr, flush=True)
sys.addaudithook(report)
from repvit_sam_jax.cli import main
main(["app", "--port", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def scene():
    return scenes.render(7, 3, (480, 640))


@pytest.fixture
def server(tmp_path):
    """The address of the page, and the file that says where its process connects to."""
    pytest.importorskip("gradio", reason="gradio is not installed: the extra app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "uploads"), "XDG_CACHE_HOME": str(tmp_path)}
    log = tmp_path / "log"
    command = [sys.executable, "-c", SERVER, str(port)]
    with log.open("w") as printed:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=printed)
    try:
        address = f"http://127.0.0.1:{port}/"
        await_(lambda: process.poll() is not None or answers(address))
        assert process.poll() is None, log.read_text()[-3000:]
        yield address, log
    finally:
        process.terminate()
        process.wait(30)


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def await_(condition):
    """What the condition gives, once it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


class Page:
    """What a visitor does."""

    def __init__(self, driver, downloads):
        from selenium.webdriver.common.by import By

        self.driver, self.downloads, self._by = driver, downloads, By.CSS_SELECTOR

    def find(self, selector):
        return await_(lambda: self.driver.find_elements(self._by, selector))[0]

    def all(self, selector):
        return self.driver.find_elements(self._by, selector)

    def words(self):
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return self.find("#words").text
        except StaleElementReferenceException:
            return ""

    def press(self, name):
        element = self.find(f"#{name}")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def at(self, *places):
        """Actions with the pointer on a place of the photo, in shares of its sides, and then on others."""
        from selenium.webdriver.common.action_chains import ActionChains

        image = self.find("#stage img")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        size, actions = image.size, ActionChains(self.driver)
        for i, (x, y) in enumerate(places):
            offset = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
            actions = actions.move_to_element_with_offset(image, *offset)
            actions = actions.click_and_hold() if i == 0 and len(places) > 1 else actions
        return actions.release() if len(places) > 1 else actions

    def save(self, kind):
        """A file that the button saves."""
        before = set(self.downloads.iterdir())
        self.press(kind)
        names = lambda: {path for path in self.downloads.iterdir() if path.suffix in (".png", ".json")} - before
        (path,) = await_(names)
        return path

    def saved_mask(self):
        with Image.open(self.save("png")) as image:
            return np.array(image)


def iou(a, b):
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def share(point):
    return point[0] / 640, point[1] / 480


def test_a_visit(server, scene, tmp_path):
    address, log = server
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "downloads").mkdir()
    with chromium(tmp_path / "downloads", (1400, 1000)) as driver:
        driver.get(address)
        page = Page(driver, tmp_path / "downloads")
        await_(lambda: "ready" in page.find("#state").text)
        page.find("#upload input[type=file]").send_keys(str(tmp_path / "scene.png"))
        await_(lambda: "scene.png" in page.words())
        prompted(page, scene)
        everything(page, scene)
        driver.save_screenshot(str(tmp_path / "everything.png"))
        assert errors(driver) == []

        page.find("#upload input[type=file]").send_keys(str(tmp_path / "text.png"))
        await_(lambda: "not an image" in page.find("body").text)
        assert "scene.png" in page.words()
        assert [path for path in (tmp_path / "uploads").rglob("*") if path.is_file() and path.stat().st_size] == []
        addresses = requested(driver)
        another_visitor(driver, page, address)
        addresses |= requested(driver)
    assert {name.split("/")[2] for name in addresses} == {address.split("/")[2]}
    places = [line for line in log.read_text().splitlines() if line.startswith("socket.")]
    assert [place for place in places if "127.0.0.1" not in place and "localhost" not in place] == []


def prompted(page, scene):
    """A click, another of its masks, refining, undoing, a point of what is not meant, a box; and the files."""
    encoded = page.words().split(";")[1]
    page.at(share(POINT)).click().perform()
    await_(lambda: "decoded" in page.words())
    assert iou(page.saved_mask(), scene.masks[THING]) > 0.8
    page.driver.save_screenshot(str(page.downloads.parent / "clicked.png"))
    choices = page.all("#masks label")
    assert len(choices) == 3
    before = page.words()
    choices[2].click()
    await_(lambda: page.words() != before)
    assert iou(page.saved_mask(), scene.masks[THING]) < 0.9
    page.press("refine")
    await_(lambda: "refined 1 time" in page.words())
    page.press("undo")
    await_(lambda: "refined" not in page.words())
    page.press("clear")
    await_(lambda: "click on an object" in page.words())

    page.at((0.5, 0.3)).context_click().perform()
    await_(lambda: "what is not meant" in page.words())
    rows, columns = np.nonzero(scene.masks[THING])
    corners = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
    page.at(*(share(corner) for corner in corners)).perform()
    await_(lambda: "decoded" in page.words())
    mask = page.saved_mask()
    assert iou(mask, scene.masks[THING]) > 0.85
    for kind in ("coco", "polygons"):
        (annotation,) = json.loads(page.save(kind).read_text())["annotations"]
        assert np.array_equal(rasterised(annotation["segmentation"], mask.shape), mask)
    assert annotation["point_labels"] == [0]
    assert np.abs(np.array(annotation["prompt_box"]) - np.ravel(corners)).max() < 2
    assert page.words().split(";")[1] == encoded


def everything(page, scene):
    page.press("search")
    await_(lambda: "of everything" in page.words())
    annotations = json.loads(page.save("coco").read_text())["annotations"]
    masks = [rasterised(annotation["segmentation"], scene.image.shape[:2]) for annotation in annotations]
    assert len(masks) >= 8
    assert max(iou(mask, scene.masks[1]) for mask in masks) > 0.9
    with Image.open(page.save("png")) as image:
        assert np.array(image).max() == len(masks)


def another_visitor(driver, page, address):
    """In a tab of their own, with an example; the first one's photo stays."""
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    driver.get(address)
    await_(lambda: "No photo yet" in page.words())
    page.find("#examples button").click()
    await_(lambda: "example 1.png" in page.words())
    driver.switch_to.window(first)
    page.press("undo")  # from everything back to the box
    await_(lambda: "scene.png" in page.words() and "predicted IoU" in page.words())
