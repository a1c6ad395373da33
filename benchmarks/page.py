"""Milliseconds from a click on the page to its mask, in headless Chromium, with a running `ovs serve`; a screenshot.

python benchmarks/page.py --url http://127.0.0.1:8080 --screenshot page.png
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

from playwright.sync_api import expect, sync_playwright

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH = 640  # of the sample "citrus"
CLICKS = ((352, 190), (270, 95), (110, 375))
BOXES = ((91, 125, 297, 324), (258, 234, 433, 407), (400, 120, 600, 318))


def prompt(page: Any, number: int, start: tuple[float, float], end: tuple[float, float] | None = None) -> float:
    """Click, or drag a box, and return the milliseconds that the page took to show the mask."""
    bounds = page.locator("#segment canvas").bounding_box()
    scale = bounds["width"] / WIDTH
    page.mouse.move(bounds["x"] + start[0] * scale, bounds["y"] + start[1] * scale)
    page.mouse.down()
    if end:
        page.mouse.move(bounds["x"] + end[0] * scale, bounds["y"] + end[1] * scale, steps=4)
    page.mouse.up()
    page.wait_for_selector(f"#segment[data-masks='{number}']", state="attached")
    found = re.search(r"in (\d+) ms", page.inner_text("#status"))
    assert found
    return float(found[1])


def main() -> None:
    """Print the median over clicks and boxes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--screenshot", type=Path)
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1240, "height": 760})
        page.set_default_timeout(120_000)
        page.goto(arguments.url)
        page.wait_for_selector("body[data-ready]")
        page.locator("#segment").get_by_alt_text("Sample citrus").click()
        expect(page.locator("#status")).to_contain_text("Click on")
        made = [prompt(page, number, place) for number, place in enumerate(CLICKS, 1)]
        made += [prompt(page, number, box[:2], box[2:]) for number, box in enumerate(BOXES, len(made) + 1)]
        if arguments.screenshot:
            page.screenshot(path=arguments.screenshot)
        places = [(50 + 25 * i, 60 + 17 * i) for i in range(arguments.clicks)]
        times = [prompt(page, number, place) for number, place in enumerate(places, len(made) + 1)]
        browser.close()
    print(f"{len(times)} clicks: median {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f} ms")


if __name__ == "__main__":
    main()
