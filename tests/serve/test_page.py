"""The page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
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
    sync_api.expect.set_options(timeout=60_000)
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

    path = saved(page, "COCO RLE", tmp_path)
    assert COCO(path).getCatIds("object") == [1]
    rles = json.loads(path.read_text())
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
    saved_masks = COCO(saved(page, "COCO RLE", tmp_path))
    instances = service.result("/instance-segmentation", image=image)["instances"]
    for annotation, one in zip(saved_masks.anns.values(), instances, strict=True):
        assert saved_masks.cats[annotation["category_id"]]["name"] == one["categoryName"]
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
    sync_api.expect(page.locator("#recognise-list .name")).not_to_have_text(["green"])


def test_pictures_that_are_added_at_once_make_one_gallery(page: Any) -> None:
    page.click("#tab-recognise")
    for label, colour in {"green": (20, 250, 20), "blue": (250, 20, 20), "red": (20, 20, 250)}.items():
        page.fill("#label", label)
        drop(page, "#gallery-drop", (f"{label}.png", as_base64(plain(colour))))
    sync_api.expect(page.locator("#gallery li")).to_have_text(["green×", "blue×", "red×"])


def test_a_gallery_is_opened_by_its_key(page: Any, service: Service) -> None:
    pair = {"image": as_base64(plain((20, 250, 20))), "label": "green"}
    key = service.result("/shitu-index-build", imageLabelPairs=[pair])["indexKey"]
    page.click("#tab-recognise")
    page.click("summary")

    def open_and_add(given: str) -> None:
        page.fill("#key", given)
        page.get_by_role("button", name="Open").click()
        page.fill("#label", "blue")
        drop(page, "#gallery-drop", ("blue.png", as_base64(plain((250, 20, 20)))))

    open_and_add(f" {key} ")
    sync_api.expect(page.locator("#gallery li")).to_have_text(["green×", "blue×"])
    # The service does not give pictures back: only the new one is seen.
    assert page.locator("#gallery li").nth(0).locator("img").count() == 0
    assert page.locator("#gallery li").nth(1).locator("img").count() == 1
    open_and_add("")
    sync_api.expect(page.locator("#gallery li")).to_have_text(["blue×"])
    assert page.input_value("#key") != key


def test_what_is_no_image_is_said(page: Any) -> None:
    drop(page, "#segment .stage", ("notes.txt", "aGVsbG8="))
    sync_api.expect(page.locator("#status")).to_contain_text("notes.txt is not an image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "ICO"])
def test_the_service_sees_what_the_page_shows(page: Any, kind: str) -> None:
    """Also of pictures that are to be turned, and of formats that only the browser reads."""
    turned = PIL.Image.Exif()
    turned[0x112] = 6
    file = io.BytesIO()
    PIL.Image.fromarray(plain((20, 250, 20), 32, 64)).save(file, kind, exif=turned)
    with page.expect_response("**/open-vocabulary-segmentation") as encoded:
        drop(page, "#segment .stage", ("turned", base64.b64encode(file.getvalue()).decode()))
    height, width = encoded.value.json()["result"]["masks"][0]["size"]
    sync_api.expect(page.locator("#status")).to_contain_text("Click on what you want")
    bounds = page.locator("#segment canvas").bounding_box()
    assert bounds["width"] / bounds["height"] == pytest.approx(width / height, rel=0.05)


@pytest.mark.parametrize("width", [320, 768])
def test_a_small_screen_is_wide_enough(browser: Any, service: Service, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 640})
    page.goto(service.url)
    page.wait_for_selector("body[data-ready]")
    for name in ("segment", "objects", "recognise"):
        page.click(f"#tab-{name}")
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


def test_the_last_image_chosen_is_the_one_shown(page: Any, photo: str, tmp_path: Path) -> None:
    """Also if another one takes longer to read, or the service is still busy with it."""
    page.evaluate(
        """() => {
            const read = window.createImageBitmap;
            window.createImageBitmap = async (file) => {
                if (file.name === "slow.png") await new Promise((resolve) => setTimeout(resolve, 1000));
                return read(file);
            };
        }"""
    )
    drop(page, "#segment .stage", ("slow.png", as_base64(plain((250, 250, 250), 50, 70))))
    pointer = open_image(page, "photo.png", photo, 160)
    page.wait_for_timeout(1500)
    pointer.click(80, 60)
    masks(page, 1)
    pictures = json.loads(saved(page, "COCO RLE", tmp_path).read_text())["images"]
    assert pictures == [{"id": 1, "file_name": "photo.png", "width": 160, "height": 120}]


def test_an_image_that_was_left_is_not_waited_for(page: Any, photo: str) -> None:
    given_up: list[str] = []
    page.on("requestfailed", lambda request: given_up.append(request.failure))
    held: list[Any] = []
    page.route("**/open-vocabulary-segmentation", lambda route: held.append(route), times=1)
    drop(page, "#segment .stage", ("first.png", as_base64(plain((250, 250, 250), 50, 70))))
    sync_api.expect(page.locator("#status")).to_contain_text("Reading")
    open_image(page, "photo.png", photo, 160)
    assert given_up == ["net::ERR_ABORTED"]


def test_an_object_outlasts_a_failure(browser: Any, service: Service, photo: str) -> None:
    page = browser.new_page()
    page.goto(service.url)
    page.wait_for_selector("body[data-ready]")
    pointer = open_image(page, "photo.png", photo, 160)
    pointer.click(80, 60)
    masks(page, 1)
    score = page.locator("#segment-list .score").inner_text()
    page.route("**/open-vocabulary-segmentation", lambda route: route.fulfill(status=502, body="<html>"))
    pointer.click(100, 60, "Shift")
    sync_api.expect(page.locator("#status")).to_have_text("The service answers with status 502.")
    sync_api.expect(page.locator("#segment-list .score")).to_have_text([score])
    pointer.click(20, 20)
    sync_api.expect(page.locator("#segment-list li")).to_have_count(1)
    page.close()


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
    for leave in (page.get_by_role("button", name="Cancel").click, lambda: page.keyboard.press("Escape")):
        drop(page, "#segment .stage", ("photo.png", photo))
        page.wait_for_selector("#token-dialog[open]")
        leave()
        sync_api.expect(page.locator("#status")).to_have_text("This service wants a token.")
    drop(page, "#segment .stage", ("photo.png", photo))
    for given in ("wrong", "secret"):
        page.locator("#token").fill(given)
        page.get_by_role("button", name="Go on").click()
    sync_api.expect(page.locator("#status")).to_contain_text("Click on what you want")
    page.close()
    service.stop()
