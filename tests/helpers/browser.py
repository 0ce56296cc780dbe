"""Chromium without a window, for tests of pages: where it, its driver or selenium is missing, they are skipped."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def chromium(downloads: Path, size: tuple[int, int] = (1400, 1000)) -> Iterator:
    """A browser that saves files into the folder, and remembers its console and its requests."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = paths[0]
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument(f"--window-size={size[0]},{size[1]}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(paths[1]))
    try:
        yield driver
    finally:
        driver.quit()


def requested(driver) -> set[str]:
    """Addresses that the page has asked for since the last call, but for what is in the page itself."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")]
    addresses = {params["url"] if "url" in params else params["request"]["url"] for params in sent}
    return {address for address in addresses if not address.startswith(("data:", "blob:"))}


def errors(driver) -> list[str]:
    """What the browser's console has in red since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
