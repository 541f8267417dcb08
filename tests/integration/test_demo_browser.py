"""The demo in a real browser: pictures uploaded and clicked, boxes dragged, sliders moved, by mouse and by touch."""

import base64
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.demo_models import BANDS, encoded
from tests.helpers.methods import METHODS
from tests.helpers.task_folders import task_folder

CHROMIUM = "/usr/bin/chromium"
gradio = pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'hf_geossl[space]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
if not Path(CHROMIUM).is_file():
    pytest.skip("needs a browser: apt install chromium", allow_module_level=True)

from hf_geossl.demo import launch_demo  # noqa: E402

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
DESKTOP = {"viewport": {"width": 1200, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
COMMON = ["What looks alike", "Find the same spot", "Where it looks", "Similar pictures"]
OWN = {"gtsa": "Which way up", "loca": "Drag a box", "equicoherent": "In between"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1, 1, 2)  # no marks' blue
        Image.fromarray(pixels.astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST).save(
            folder / f"{index}.png"
        )
    return folder


@pytest.fixture(scope="module")
def addresses(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The demos of a tiny model of each method, of a trunk alone, and of a model of five bands without samples."""
    folder, running = tmp_path_factory.mktemp("models"), {}
    for name, method in METHODS.items():
        method.model("ForPreTraining").save_pretrained(folder / name)
    METHODS["gtsa"].model("Model").save_pretrained(folder / "trunk")
    bands = METHODS["gtsa"].model("Model", num_channels=5, image_format=BANDS.to_dict())
    bands.save_pretrained(folder / "bands")
    for name in (*METHODS, "trunk", "bands"):
        own = None if name == "bands" else samples
        running[name] = launch_demo(folder / name, samples=own, block=False, say=lambda line: None)
    yield {name: demo.local_url for name, demo in running.items()}
    for demo in running.values():
        demo.close()


@pytest.fixture(scope="module")
def fine_tuned(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo of a fine-tuned model of transformers."""
    folder = task_folder("segformer", tmp_path_factory.mktemp("segformer"))
    demo = launch_demo(folder, samples=samples, block=False, say=lambda line: None)
    yield demo.local_url
    demo.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what went wrong on it."""

    def __init__(self, browser: Any, url: str, options: dict[str, Any]) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.wrong: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", lambda request: self._own(request.url, url))
        self.page.on("websocket", lambda socket: self.wrong.append(f"another protocol: {socket.url}"))
        self.page.goto(url)
        self.page.wait_for_selector(".geo-figures img, .geo-said")

    def _own(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.wrong.append(f"another host: {asked}")

    def _failed(self, request: Any) -> None:
        if "/queue/data?" not in request.url:  # what the page listens to is ended by the page
            self.wrong.append(f"failed: {request.url} {request.failure}")

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()
        self.page.get_by_role("tabpanel", name=tab).or_(self.page.locator(".tabitem:visible")).first.wait_for()
        self.wait(lambda: self.page.locator(".geo-figures img:visible").count() > 0)

    def wait(self, holds: Any) -> None:
        limit = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < limit, self.html()[-2000:]
            self.page.wait_for_timeout(40)

    def html(self) -> str:
        """All figures and sentences that are seen, without the pictures' names."""
        return "".join(
            self.page.locator(".geo-figures:visible, .geo-said:visible, .geo-bars:visible").all_inner_texts()
        )

    def image(self, number: int) -> np.ndarray:
        """The pixels of a figure that is seen."""
        source = self.page.locator(".geo-figures img:visible").nth(number).get_attribute("src")
        return np.array(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB")).astype(int)

    def changed(self, before: str) -> str:
        self.wait(lambda: self.html() != before)
        return self.html()

    def toast(self) -> str:
        """What an error says, once it is there."""
        text = self.page.locator(".toast-body").first
        text.wait_for()
        return text.inner_text()

    def finish(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.page.viewport_size["width"]
        assert self.wrong == []
        self.context.close()


def clicked_patch(text: str) -> tuple[int, int]:
    row, column = re.search(r"patch in row (\d+), column (\d+)", text).groups()  # type: ignore[union-attr]
    return int(row), int(column)


def png(*color: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 30), color).save(buffer, "PNG")
    return {"name": "own.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


@pytest.mark.parametrize("method", METHODS)
def test_page_opens_and_every_tab_shows_its_figures(browser: Any, addresses: dict[str, str], method: str) -> None:
    visit = Visit(browser, addresses[method], DESKTOP)
    tabs = visit.page.get_by_role("tab").all_inner_texts()
    assert tabs == [*COMMON[:2], OWN[method], *COMMON[2:]]
    seen = [visit.html()]
    for tab in tabs[1:]:
        visit.open(tab)
        seen.append(visit.changed(seen[-1]))
    assert len(set(seen)) == 5
    visit.finish()


def test_uploaded_picture_is_shown_and_a_bad_one_explained(browser: Any, addresses: dict[str, str]) -> None:
    visit = Visit(browser, addresses["gtsa"], DESKTOP)
    upload = visit.page.locator("input[type=file]").first
    upload.set_input_files(files=[png(10, 200, 30)])
    visit.page.wait_for_selector("button[data-index='-1'][aria-pressed=true]")
    visit.wait(lambda: abs(visit.image(0)[200, 200] - (10, 200, 30)).max() < 6)
    assert visit.image(0).shape == (448, 448, 3)
    upload.set_input_files(files=[{"name": "text.png", "mimeType": "image/png", "buffer": b"no picture"}])
    said = visit.toast()
    assert "This file cannot be read as a picture" in said
    assert "Traceback" not in said
    assert abs(visit.image(0)[200, 200] - (10, 200, 30)).max() < 6  # the old one is kept
    visit.page.locator(".geo-strip").first.locator("button[data-index='2']").click()
    visit.wait(lambda: abs(visit.image(0)[200, 200] - (10, 200, 30)).max() > 20)
    visit.page.locator(".geo-strip").first.locator("button[data-index='-1']").click()
    visit.wait(lambda: abs(visit.image(0)[200, 200] - (10, 200, 30)).max() < 6)
    visit.finish()


@pytest.mark.parametrize("method", METHODS)
def test_clicked_patch_is_found_and_arrow_keys_move_it(browser: Any, addresses: dict[str, str], method: str) -> None:
    visit = Visit(browser, addresses[method], DESKTOP)
    visit.open("Find the same spot")
    visit.wait(lambda: "patch in row" in visit.html())
    before = visit.html()
    area = visit.page.locator(".geo-picture:visible")
    size = area.bounding_box()
    area.click(position={"x": size["width"] * 0.95, "y": size["height"] * 0.3})
    text = visit.changed(before)
    assert clicked_patch(text) == (3, 8)  # of 8 x 8, the finer grid
    edge = (56 * 2 + 28, 56 * 7 - 5)
    visit.wait(lambda: abs(visit.image(0)[edge] - (0, 200, 255)).max() < 90)  # its mark
    visit.page.locator(".geo-picture:visible").focus()
    visit.page.keyboard.press("ArrowLeft")
    text = visit.changed(text)
    assert clicked_patch(text) == (3, 7)
    visit.open("Where it looks")
    visit.wait(lambda: "looks at" in visit.html())
    before = visit.html()
    visit.page.locator(".geo-picture:visible").click(position={"x": 5, "y": 5})
    text = visit.changed(before)
    assert "What the patch in row 1, column 1 looks at" in text
    visit.page.get_by_label("2", exact=True).click()
    assert "head 2" in visit.changed(text)
    visit.open("Similar pictures")
    visit.wait(lambda: "4. cosine" in visit.html() or "3. cosine" in visit.html())
    visit.finish()


def test_quarter_turn_buttons_turn_the_picture(browser: Any, addresses: dict[str, str]) -> None:
    visit = Visit(browser, addresses["gtsa"], DESKTOP)
    visit.open("Which way up")
    visit.wait(lambda: "The model says" in visit.html())
    upright = visit.image(0)
    for quarter in (1, 2, 3):
        visit.page.get_by_label(f"{90 * quarter}°", exact=True).click()
        bars = visit.page.locator(".geo-bars")
        visit.wait(lambda: bars.locator(".true").inner_text() == f"turned by {90 * quarter}°")  # noqa: B023
        visit.wait(lambda: np.abs(visit.image(0) - np.rot90(upright, quarter)).mean() < 3)  # noqa: B023
        shares = [float(share) for share in re.findall(r"([\d.]+)%", bars.inner_text())]
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(100, abs=0.3)
    visit.finish()


def frame_of(image: np.ndarray) -> tuple[int, int, int, int]:
    """The outline of the drawn box."""
    rows, columns = np.nonzero(np.abs(image - (0, 200, 255)).max(axis=-1) < 60)
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("device", ["mouse", "touch"])
def test_dragged_box_is_placed(browser: Any, addresses: dict[str, str], device: str) -> None:
    visit = Visit(browser, addresses["loca"], PHONE if device == "touch" else DESKTOP)
    visit.open("Drag a box")
    visit.wait(lambda: "patches are put exactly" in visit.html())
    area = visit.page.locator(".geo-picture:visible")
    area.scroll_into_view_if_needed()
    size, before, scrolled = area.bounding_box(), visit.image(0), visit.page.evaluate("scrollY")

    def at(x: float, y: float) -> tuple[float, float]:
        return size["x"] + x * size["width"], size["y"] + y * size["height"]

    ends = at(0.25, 0.75), at(0.75, 0.125)  # from below, so that a page that scrolls would show
    if device == "mouse":
        visit.page.mouse.move(*ends[0])
        visit.page.mouse.down()
        visit.page.mouse.move(*ends[1], steps=5)
        drawn = visit.page.locator(".geo-frame").bounding_box()
        visit.page.mouse.up()
        assert drawn["width"] == pytest.approx(size["width"] / 2, abs=2)
    else:
        session = visit.context.new_cdp_session(visit.page)
        for step in range(6):
            x, y = (a + (b - a) * step / 5 for a, b in zip(*ends, strict=True))
            kind = "touchStart" if step == 0 else "touchMove"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        assert visit.page.locator(".geo-frame").count() == 1
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    visit.wait(lambda: np.abs(visit.image(0) - before).mean() > 0.5)
    assert frame_of(visit.image(0)) == pytest.approx((112, 56, 336, 336), abs=8)
    assert visit.page.evaluate("scrollY") == scrolled
    assert visit.page.locator(".geo-frame").count() == 0
    assert re.search(r"\d+ of 4 patches are put exactly where they are \(\d+%; guessing: 6\.2%\)", visit.html())
    visit.finish()


def test_keyboard_alone_chooses_pictures_and_moves_the_box(browser: Any, addresses: dict[str, str]) -> None:
    visit = Visit(browser, addresses["loca"], DESKTOP)
    keys, active = visit.page.keyboard, "document.activeElement.getAttribute('aria-label')"
    for _ in range(4):  # upload, three samples
        keys.press("Tab")
    assert visit.page.evaluate(active) == "Picture A: sample 3"
    before = visit.image(0)
    keys.press("Enter")
    visit.wait(lambda: np.abs(visit.image(0) - before).mean() > 5)
    visit.wait(lambda: visit.page.evaluate(active) == "Picture A: sample 3")  # although the strip is a new one
    visit.open("Drag a box")
    visit.wait(lambda: "patches are put exactly" in visit.html())
    visit.page.locator(".geo-picture:visible").focus()
    frames = [frame_of(visit.image(0))]
    for key in ("ArrowLeft", "Shift+ArrowRight", "Shift+ArrowDown"):
        keys.press(key)
        visit.wait(lambda: frame_of(visit.image(0)) != frames[-1])
        visit.wait(lambda: visit.page.evaluate("document.activeElement.className") == "geo-picture")
        frames.append(frame_of(visit.image(0)))
    assert frames[1][0] <= 1  # as far as the edge, and not cut there
    assert frames[1][2] == pytest.approx(frames[0][2] - frames[0][0], abs=2)
    assert frames[2][2] == pytest.approx(frames[1][2] + 112, abs=2)  # a patch wider
    assert frames[3][3] == pytest.approx(frames[2][3] + 112, abs=2)
    visit.finish()


def test_slider_goes_along_the_path(browser: Any, addresses: dict[str, str]) -> None:
    visit = Visit(browser, addresses["equicoherent"], DESKTOP)
    visit.open("In between")
    visit.wait(lambda: "at 1/3 of the way" in visit.html())
    point = visit.page.get_by_role("slider", name="Point of the path").first
    images = {1: visit.image(3)}
    assert "Mean squared error of the reconstruction" in visit.html()
    for step, words in [(2, "at 2/3 of the way"), (3, "where it ends (v2)"), (0, "where the path begins (u)")]:
        point.fill(str(step))
        visit.wait(lambda: words in visit.html())  # noqa: B023
        images[step] = visit.image(3)
    visit.wait(lambda: "No decoder reconstructs this point" in visit.html())
    assert np.abs(images[0] - visit.image(1)).mean() < 3  # u
    assert np.abs(images[3] - visit.image(2)).mean() < 3  # v2
    apart = [np.abs(images[step] - images[0]).mean() for step in range(4)]
    assert min(apart[1:]) > 10
    end = visit.image(2)
    visit.page.get_by_role("slider", name="Turn").first.fill("-45")
    visit.wait(lambda: np.abs(visit.image(2) - end).mean() > 5)
    visit.finish()


@pytest.mark.parametrize("method", METHODS)
def test_phone_shows_one_column_that_fits_and_can_be_tapped(
    browser: Any, addresses: dict[str, str], method: str
) -> None:
    visit = Visit(browser, addresses[method], PHONE)
    for tab in [OWN[method], *COMMON]:
        visit.page.get_by_role("tab", name=tab, exact=True).tap()
        visit.wait(lambda: visit.page.locator(".geo-figures img:visible").count() > 0)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    for target in visit.page.get_by_role("tab").all() + visit.page.locator(".geo-strip button, .geo-upload").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 44
    boxes = [one.bounding_box() for one in visit.page.locator(".geo-strip").all()]
    assert boxes[0]["x"] == boxes[1]["x"]  # one under the other
    visit.open("Find the same spot")
    visit.wait(lambda: "patch in row" in visit.html())
    before, area = visit.html(), visit.page.locator(".geo-picture:visible")
    size = area.bounding_box()
    assert size["width"] > 320
    area.tap(position={"x": size["width"] * 0.3, "y": size["height"] * 0.95})
    assert clicked_patch(visit.changed(before)) == (8, 3)
    visit.finish()


def test_trunk_alone_says_what_is_missing_and_shows_the_rest_in_the_dark(
    browser: Any, addresses: dict[str, str]
) -> None:
    visit = Visit(browser, addresses["trunk"], {**DESKTOP, "color_scheme": "dark"})
    assert visit.page.get_by_role("tab").all_inner_texts() == COMMON
    assert visit.page.get_by_text("This folder holds the trunk alone").is_visible()
    colors = visit.page.evaluate(
        "() => ['.geo-figures figcaption', 'body'].map((name, body) =>"
        " getComputedStyle(document.querySelector(name))[body ? 'backgroundColor' : 'color'])"
    )
    text, ground = (sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in colors)
    assert text - ground > 150
    visit.finish()


def test_files_of_five_bands_are_uploaded_and_shown_in_the_colours_that_are_chosen(
    browser: Any, addresses: dict[str, str]
) -> None:
    visit = Visit(browser, addresses["bands"], PHONE)
    assert visit.page.get_by_role("tab").all_inner_texts() == COMMON[:-1]
    assert "Upload picture A first." in visit.html()
    uploads = visit.page.locator("input[type=file]")
    for number in range(2):
        content = {"name": "IM0001", "mimeType": "application/octet-stream", "buffer": encoded("bands", number)}
        uploads.nth(number).set_input_files(files=[content])
        visit.wait(lambda: f"Picture {'AB'[number]}" in visit.html())  # noqa: B023
    colored = visit.image(0)
    assert (colored.max(axis=-1) - colored.min(axis=-1)).mean() > 40
    visit.page.get_by_label("Shown").first.click()
    visit.page.get_by_role("option", name="edge alone").dispatch_event("mousedown")
    visit.wait(lambda: (visit.image(0).max(axis=-1) - visit.image(0).min(axis=-1)).mean() < 4)
    visit.open("Find the same spot")
    visit.wait(lambda: "patch in row" in visit.html())
    uploads.first.set_input_files(files=[png(10, 200, 30)])
    assert "which takes 5 channels: infrared (5)" in visit.toast()
    visit.finish()


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_fine_tuned_model_shows_what_it_predicts_of_an_upload(
    options: dict[str, Any], browser: Any, fine_tuned: str
) -> None:
    visit = Visit(browser, fine_tuned, options)
    assert visit.page.get_by_role("tab").all_inner_texts() == ["Areas"]
    legend = visit.page.locator(".geo-legend:visible li")
    first = legend.all_inner_texts()
    assert all(re.fullmatch(r"(road|house|tree) (< 0\.1|\d+\.\d) %", text) for text in first), first
    visit.page.locator("input[type=file]").first.set_input_files(files=[png(10, 200, 30)])
    visit.page.wait_for_selector("button[data-index='-1'][aria-pressed=true]")
    visit.wait(lambda: visit.image(0).shape == (270, 450, 3))
    visit.wait(lambda: visit.image(1).shape == (30, 50, 3))  # in its own shape
    assert legend.count() >= 1
    visit.finish()
