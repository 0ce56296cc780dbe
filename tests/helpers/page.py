"""The page of `repvit-sam export web` as a person uses it, in pixels of the photo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.chromium import errors, wait


class Page:
    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.wait_for(lambda: self.state() in ("ready", "failed"))
        assert self.state() == "ready", self.text("status")

    def state(self) -> str:
        return self.driver.execute_script("return document.body ? document.body.dataset.state : ''")

    def text(self, name: str) -> str:
        return self.driver.find_element("id", name).text

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        wait(condition, seconds)

    def wait_for_status(self, part: str, seconds: float = 120) -> None:
        self.wait_for(lambda: part in self.text("status"), seconds)

    def errors(self) -> list[str]:
        return errors(self.driver)

    def choose(self, photo: Path, answer: str = "Point at something.") -> None:
        self.driver.find_element("id", "file").send_keys(str(photo))
        self.wait_for(lambda: answer == self.text("status"))

    def press(self, name: str) -> None:
        self.driver.find_element("id", name).click()

    def _screen(self, x: float, y: float) -> tuple[int, int]:
        """Where a pixel of the photo is, from the middle of the picture."""
        size = "const p = document.getElementById('picture').getBoundingClientRect(); return [p.width, p.height]"
        width, height = self.driver.execute_script(size)
        photo = self._photo_size()
        return round(x / photo[0] * width - width / 2), round(y / photo[1] * height - height / 2)

    def _photo_size(self) -> tuple[int, int]:
        canvas = self.driver.find_element("id", "photo")
        return int(canvas.get_attribute("width")), int(canvas.get_attribute("height"))

    def _actions(self) -> Any:
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver, duration=20)

    def hover(self, x: float, y: float) -> None:
        picture = self.driver.find_element("id", "picture")
        self._actions().move_to_element_with_offset(picture, *self._screen(x, y)).perform()

    def click(self, background: bool = False) -> None:
        from selenium.webdriver import Keys

        actions = self._actions()
        if background:
            actions.key_down(Keys.SHIFT).click().key_up(Keys.SHIFT).perform()
        else:
            actions.click().perform()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.hover(*start)
        by = np.array(self._screen(*end)) - np.array(self._screen(*start))
        self._actions().click_and_hold().move_by_offset(*by.tolist()).release().perform()

    def tap(self, x: float, y: float) -> None:
        picture = self.driver.find_element("id", "picture")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        box = "const p = arguments[0].getBoundingClientRect(); return [p.left + p.width / 2, p.top + p.height / 2]"
        middle = self.driver.execute_script(box, picture)
        dx, dy = self._screen(x, y)
        touch = {"type": "touchStart", "touchPoints": [{"x": middle[0] + dx, "y": middle[1] + dy}]}
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def keys(self, *names: str) -> None:
        """Press keys, by their names in JavaScript."""
        from selenium.webdriver import Keys

        known = {"Enter": Keys.ENTER, "Backspace": Keys.BACKSPACE, "Tab": Keys.TAB}
        known |= {"ArrowRight": Keys.ARROW_RIGHT, "ArrowDown": Keys.ARROW_DOWN}
        for name in names:
            self._actions().send_keys(known[name]).perform()

    def tab_to(self, name: str) -> None:
        for _ in range(20):
            self.keys("Tab")
            if self.driver.execute_script("return document.activeElement.id") == name:
                return
        raise AssertionError(f"no Tab leads to {name}")

    def take_candidate(self, number: int) -> None:
        self.driver.find_element("css selector", f"[name=candidate][value='{number}']").click()

    def everything(self, per_side: int) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.driver.find_element("id", "per-side")).select_by_value(str(per_side))
        self.press("everything")

    def drawn(self) -> int:
        """Pixels that something is drawn over."""
        count = """const canvas = document.getElementById("overlay");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return data.filter((value, i) => i % 4 === 3 && value > 0).length"""
        return self.driver.execute_script(count)

    def _saved(self, button: str, pattern: str) -> Path:
        for old in self.downloads.glob(pattern):
            old.unlink()
        self.press(button)
        wait(lambda: list(self.downloads.glob(pattern)))
        wait(lambda: not list(self.downloads.glob("*.crdownload")))
        (path,) = self.downloads.glob(pattern)
        return path

    def picture(self, kind: str) -> Image.Image:
        with Image.open(self._saved("save-png", f"*_{kind}.png")) as picture:
            return picture.convert("RGB")

    def mask(self) -> np.ndarray:
        return np.asarray(self.picture("mask").convert("L")) > 127

    def records(self, kind: str = "json") -> list[dict[str, Any]]:
        """COCO's annotations; `kind` is `json`, with RLE, or `polygons`."""
        pattern = "*_masks.json" if kind == "json" else "*_polygons.json"
        return json.loads(self._saved(f"save-{kind}", pattern).read_text())["annotations"]

    def record(self, kind: str = "json") -> dict[str, Any]:
        (record,) = self.records(kind)
        return record
