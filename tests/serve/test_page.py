"""The page in a real browser."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from recognition_graphs import plain
from service_process import Service, as_base64

from ovseg.samples import sample_path

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    """A fresh page; what it writes to the console or asks of others fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: _own(request.url, service, complaints))
    page.goto(service.url)
    page.wait_for_selector("body[data-ready]")
    yield page
    context.close()
    assert complaints == []


def _own(url: str, service: Service, complaints: list[str]) -> None:
    if not url.startswith((service.url, "blob:", "data:")):
        complaints.append(f"asks for {url}")


def drop(page: Any, selector: str, *files: tuple[str, str]) -> None:
    """Drop image files, (name, Base64), on an element."""
    data = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, text] of files) {
                const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/png" }));
            }
            return transfer;
        }""",
        [list(file) for file in files],
    )
    for kind in ("dragenter", "dragover", "drop"):
        page.dispatch_event(selector, kind, {"dataTransfer": data})


def masks(page: Any, count: int) -> None:
    """Wait until so many masks have come."""
    page.wait_for_selector(f"#segment[data-masks='{count}']", state="attached")


class Pointer:
    """Clicks at pixels of the image, wherever the page shows it."""

    def __init__(self, page: Any, width: int) -> None:
        self._page = page
        self._bounds = page.locator("#segment canvas").bounding_box()
        self._scale = self._bounds["width"] / width

    def _move(self, x: float, y: float) -> None:
        self._page.mouse.move(self._bounds["x"] + x * self._scale, self._bounds["y"] + y * self._scale, steps=3)

    def click(self, x: float, y: float, *keys: str) -> None:
        self._move(x, y)
        for key in keys:
            self._page.keyboard.down(key)
        self._page.mouse.down()
        self._page.mouse.up()
        for key in keys:
            self._page.keyboard.up(key)

    def drag(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self._move(x1, y1)
        self._page.mouse.down()
        self._move(x2, y2)
        self._page.mouse.up()


def open_image(page: Any, name: str, data: str, width: int) -> Pointer:
    drop(page, "#segment .stage", (name, data))
    sync_api.expect(page.locator("#status")).to_contain_text("Click on what you want")
    return Pointer(page, width)


def saved(page: Any, name: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator("section:not([hidden])").get_by_title(f"Download {name}").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_segment(page: Any, service: Service, photo: str, tmp_path: Path) -> None:
    pointer = open_image(page, "photo.png", photo, 160)
    before = page.locator("#segment canvas").screenshot()
    pointer.click(80, 60)
    masks(page, 1)
    pointer.drag(20, 20, 70, 90)
    masks(page, 2)
    assert page.locator("#segment canvas").screenshot() != before
    sync_api.expect(page.locator("#segment-list li")).to_have_count(2)

    rles = json.loads(saved(page, "COCO RLE", tmp_path).read_text())
    assert rles["images"] == [{"id": 1, "file_name": "photo.png", "width": 160, "height": 120}]
    shown = page.locator("#segment-list .score").all_inner_texts()
    asked = [("point", [[80, 60]]), ("box", [[20, 20, 70, 90]])]
    for (kind, prompt), annotation, score in zip(asked, rles["annotations"], shown, strict=True):
        result = service.result("/open-vocabulary-segmentation", image=photo, prompt=prompt, prompt_type=kind)
        expected, got = coco_mask.decode(result["masks"][0]), coco_mask.decode(annotation["segmentation"])
        # The pointer goes to whole pixels of the screen, so an edge may differ by a pixel.
        assert (expected != got).sum() <= 0.05 * expected.sum()
        assert annotation["area"] == got.sum()
        assert float(score) == pytest.approx(result["mask_infos"][0]["score"], abs=1)

    polygons = json.loads(saved(page, "Polygons", tmp_path).read_text())["annotations"]
    drawn = np.zeros((120, 160), np.uint8)
    cv2.fillPoly(drawn, [np.array(line, np.int32).reshape(-1, 2) for line in polygons[1]["segmentation"]], 1)
    assert np.array_equal(drawn, coco_mask.decode(rles["annotations"][1]["segmentation"]))

    picture = cv2.imread(str(saved(page, "PNG", tmp_path)))
    original = cv2.imdecode(np.frombuffer(base64.b64decode(photo), np.uint8), cv2.IMREAD_COLOR)
    changed = (picture != original).any(axis=2)
    both = np.logical_or.reduce([coco_mask.decode(one["segmentation"]) for one in rles["annotations"]])
    assert not changed[~both].any() and changed[both].mean() > 0.9


def test_points_are_added_and_taken_away(page: Any, photo: str) -> None:
    pointer = open_image(page, "photo.png", photo, 160)
    pointer.click(80, 60)
    masks(page, 1)
    with page.expect_request("**/open-vocabulary-segmentation") as more:
        pointer.click(100, 60, "Shift")
    masks(page, 2)
    with page.expect_request("**/open-vocabulary-segmentation") as less:
        pointer.click(84, 60, "Alt")
    masks(page, 3)
    assert more.value.post_data_json["pointLabels"] == [[1, 1]]
    assert less.value.post_data_json["pointLabels"] == [[1, 1, 0]]
    sync_api.expect(page.locator("#segment-list li")).to_have_count(1)


def test_undo_and_clear(page: Any, photo: str) -> None:
    pointer = open_image(page, "photo.png", photo, 160)
    items = page.locator("#segment-list li")
    for number, x in enumerate((40, 80, 120), 1):
        pointer.click(x, 60)
        masks(page, number)
    page.click("#undo")
    sync_api.expect(items).to_have_count(2)
    page.keyboard.press("Control+z")
    sync_api.expect(items).to_have_count(1)
    page.click("#clear")
    sync_api.expect(items).to_have_count(0)
    page.click("#undo")
    sync_api.expect(items).to_have_count(1)
    page.get_by_title("Remove object 1").click()
    sync_api.expect(items).to_have_count(0)
    assert page.locator("#clear").is_disabled()


def test_keyboard_alone(page: Any) -> None:
    sample = page.locator("#segment").get_by_role("button", name="Sample coffee")
    sample.focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#status")).to_contain_text("Click on what you want")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    masks(page, 1)
    page.keyboard.press("b")
    for key in ("ArrowRight", "ArrowDown"):
        for _ in range(4):
            page.keyboard.press(f"Shift+{key}")
    with page.expect_request("**/open-vocabulary-segmentation") as asked:
        page.keyboard.press("b")
    masks(page, 2)
    x1, y1, x2, y2 = asked.value.post_data_json["prompt"][0]
    assert x1 < x2 and y1 < y2
    page.locator("#tab-segment").focus()
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator("#tab-objects")).to_be_focused()
    sync_api.expect(page.locator("#objects")).to_be_visible()


def test_threshold_acts_without_the_model(page: Any) -> None:
    page.click("#tab-objects")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    drop(page, "#objects .stage", ("white.png", as_base64(plain((250, 250, 250), 64, 80))))
    items = page.locator("#objects-list li")
    sync_api.expect(items).to_have_count(2)
    for value, count in (("80", 1), ("20", 3), ("95", 0), ("5", 3)):
        page.locator("#threshold").fill(value)
        sync_api.expect(items).to_have_count(count)
    assert len(asked) == 1
    assert items.first.inner_text().split() == ["traffic", "light", "0.88"]


def test_masks_of_instances_are_where_they_belong(page: Any, service: Service, tmp_path: Path) -> None:
    image = as_base64(plain((250, 250, 250), 64, 80))
    page.click("#tab-objects")
    drop(page, "#objects .stage", ("white.png", image))
    sync_api.expect(page.locator("#objects-list li")).to_have_count(2)
    saved_masks = json.loads(saved(page, "COCO RLE", tmp_path).read_text())["annotations"]
    instances = service.result("/instance-segmentation", image=image)["instances"]
    for annotation, one in zip(saved_masks, instances, strict=True):
        whole = np.zeros((64, 80), np.uint8)
        (x, y), (height, width) = one["mask"]["offset"], one["mask"]["size"]
        whole[y : y + height, x : x + width] = coco_mask.decode(one["mask"])
        assert np.array_equal(coco_mask.decode(annotation["segmentation"]), whole)


def test_recognise(page: Any) -> None:
    page.click("#tab-recognise")
    for number, (label, colour) in enumerate({"green": (20, 250, 20), "blue": (250, 20, 20)}.items(), 1):
        page.fill("#label", label)
        drop(page, "#gallery-drop", (f"{label}.png", as_base64(plain(colour))))
        sync_api.expect(page.locator("#gallery li")).to_have_count(number)
    drop(page, "#recognise .stage", ("query.png", as_base64(plain((10, 200, 10), 120, 160))))
    sync_api.expect(page.locator("#recognise-list .name")).to_have_text(["green"])
    page.get_by_title("Remove green, id 0").click()
    sync_api.expect(page.locator("#gallery li")).to_have_count(1)


def test_what_is_no_image_is_said(page: Any) -> None:
    drop(page, "#segment .stage", ("notes.txt", "aGVsbG8="))
    sync_api.expect(page.locator("#status")).to_contain_text("notes.txt is not an image")


def test_a_click_shows_its_mask_soon(page: Any) -> None:
    """With a model of no size: what the page, the service and the way between them take."""
    data = base64.b64encode(sample_path("coffee").read_bytes()).decode()
    pointer = open_image(page, "coffee.jpg", data, 600)
    times = []
    for number in range(1, 8):
        started = time.perf_counter()
        pointer.click(100 + 50 * number, 200)
        masks(page, number)
        times.append(time.perf_counter() - started)
    assert sorted(times)[3] < 3


def test_the_page_without_a_pipeline(browser: Any, start: Any) -> None:
    service = start(pipelines=("PP-ShiTuV2",))
    page = browser.new_page()
    page.goto(service.url)
    page.wait_for_selector("body[data-ready]")
    sync_api.expect(page.locator("#recognise")).to_be_visible()
    page.click("#tab-segment")
    sync_api.expect(page.locator("#segment .missing")).to_contain_text("ovs serve --pipeline")
    page.close()
    service.stop()


def test_token(browser: Any, start: Any, photo: str) -> None:
    service = start("--token", "secret", pipelines=("open_vocabulary_segmentation",))
    page = browser.new_page()
    page.goto(service.url)
    page.wait_for_selector("body[data-ready]")
    drop(page, "#segment .stage", ("photo.png", photo))
    for given in ("wrong", "secret"):
        page.locator("#token").fill(given)
        page.get_by_role("button", name="Go on").click()
    sync_api.expect(page.locator("#status")).to_contain_text("Click on what you want")
    page.close()
    service.stop()
