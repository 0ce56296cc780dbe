"""`python -m tests.helpers.page_picture SITE FILE` draws the page of a folder of `repvit-sam export web` as PNG."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.helpers.chromium import chromium, served
from tests.helpers.page import Page

WIDE, NARROW = (1180, 720), (390, 720)
LOOK = "--hide-scrollbars", "--blink-settings=primaryHoverType=2,availableHoverTypes=2"
"""As with a mouse, which there is none of."""


def main(site: Path, target: Path) -> None:
    """A box on a wide screen beside everything on a narrow one, both on the page's example."""
    with served(site) as port, tempfile.TemporaryDirectory() as folder, chromium(Path(folder), WIDE, *LOOK) as driver:
        page, shots = Page(driver, Path(folder)), []
        for width, height in (WIDE, NARROW):
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            page.open(f"http://127.0.0.1:{port}/")
            page.choose(site / "example.jpg")
            if width > height:
                page.drag((432, 180), (628, 382))
                page.wait_for_status("Kept")
            else:
                page.everything(16)
                page.wait_for_status("found in", 300)
                driver.execute_script("scrollTo(0, 0)")
            shots.append(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))
    picture = Image.new("RGB", (WIDE[0] + NARROW[0] + 20, WIDE[1]), "white")
    picture.paste(shots[0])
    picture.paste(shots[1], (WIDE[0] + 20, 0))
    picture.quantize(255, kmeans=2, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
