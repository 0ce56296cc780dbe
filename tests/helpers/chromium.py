"""Chromium without a screen, and a page served by `http.server`."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = "page.test"
"""A name of this machine that Chromium does not take for a secure place, unlike 127.0.0.1: no workers of services."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port at which a folder is served, as by `python -m http.server`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def require_browser() -> tuple[str, str, Any]:
    """Chromium, its driver and selenium's module; the test is skipped, with a word, where one is missing."""
    browser, helper = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if browser is None or helper is None:
        pytest.skip("Chromium and its driver are not installed: apt-get install chromium chromium-driver")
    return (
        browser,
        helper,
        pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium"),
    )


@contextlib.contextmanager
def chromium(downloads: Path, size: tuple[int, int] = (1280, 900), *arguments: str) -> Iterator[Any]:
    """A driver of Chromium that saves files into a folder, and remembers its console and its requests."""
    browser, helper, webdriver = require_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    window = f"--window-size={size[0]},{size[1]}"
    mapped = f"--host-resolver-rules=MAP {SITE} 127.0.0.1"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", window, mapped, *arguments):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(helper))
    try:
        driver.set_script_timeout(120)
        yield driver
    finally:
        driver.quit()


def wait(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What a condition gives as soon as it is true; AssertionError if it stays false."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def requested(driver: Any) -> set[str]:
    """Addresses that the page has asked for since the last call, but for what is in the page itself."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")]
    addresses = {params["url"] if "url" in params else params["request"]["url"] for params in sent}
    return {address for address in addresses if not address.startswith(("data:", "blob:"))}


def errors(driver: Any) -> list[str]:
    """What the page complained about."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
