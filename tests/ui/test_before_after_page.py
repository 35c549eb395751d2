"""A page of before/after sliders in a real browser: keys, mouse, touch, phone, dark, print."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipelines.pages.before_after import BeforeAfterPage
from tests.conftest import scene
from tests.pipelines.pages.test_before_after import HOSTILE
from tests.ui.browser import phone_of

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

SIZES = {"landscape": (600, 900), "portrait": (1500, 700), "panorama": (150, 1500),
         "small": (90, 120)}  # fmt: skip
LONG = "album/" + "grandmother" * 30 + ".jpg"


def photo(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey before, vivid in every column after."""
    grey = scene(0, height, width).mean(axis=2).astype(np.uint8)
    after = np.stack([200 + grey // 8, 30 + grey // 8, 40 + grey // 8], axis=2)
    return grey, after


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of photos of all shapes, then of photos with hostile names."""
    path = tmp_path_factory.mktemp("pages") / "page #1.html"
    with BeforeAfterPage(path, title="Album") as page:
        for name, size in SIZES.items():
            page.add(name, *photo(*size), note="start · chroma ×1.2")
        page.add(LONG, *photo(80, 100), note=LONG)
        for name in HOSTILE:
            page.add(name, *photo(80, 100), note=name)
    return path.as_uri()


@pytest.fixture
def opened(page: Page, link: str) -> Iterator[Page]:
    """The page on a desktop; a message on its console fails the test."""
    page.set_viewport_size({"width": 1280, "height": 900})
    said = listen(page)
    page.goto(link)
    yield page
    assert said == []


@pytest.fixture
def phone(browser: BrowserContext, link: str) -> Iterator[Page]:
    """The page on a phone of 360 x 740."""
    context = phone_of(browser)
    page = context.new_page()
    said = listen(page)
    page.goto(link)
    yield page
    context.close()
    assert said == []


def listen(page: Page) -> list[str]:
    """What the page says on its console, its errors and its dialogs."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    return said


def pixels(shown: Locator | Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shown.screenshot())).convert("RGB"), np.int16)


def before_of(pair: Locator) -> float:
    """The share of the picture, from the left, that shows the grey photo, by its pixels."""
    rows = pixels(pair)
    rows = rows[-rows.shape[0] // 5 :]  # below the labels and the grip
    coloured = (np.ptp(rows, axis=2) > 60).mean(axis=0) > 0.5
    share = 1 - coloured.mean()
    assert not coloured[: max(0, int((share - 0.02) * coloured.size))].any()
    assert coloured[int((share + 0.02) * coloured.size) :].all()
    return float(share)


def near(share: float) -> object:
    return pytest.approx(share, abs=0.012)


def pair_of(page: Page, number: int = 0) -> Locator:
    return page.locator(".pair").nth(number)


# -- keys ----------------------------------------------------------------------------------------


def test_keys_move_the_line(opened: Page) -> None:
    pair = pair_of(opened)
    slider = opened.get_by_role("slider", name="Before and after: landscape")
    assert before_of(pair) == near(0.5)
    opened.keyboard.press("Tab")
    assert slider.evaluate("slider => slider === document.activeElement")
    for key, share in (
        ("ArrowRight", 0.52), ("ArrowRight", 0.54), ("ArrowLeft", 0.52), ("PageUp", 0.62),
        ("Home", 0.0), ("ArrowUp", 0.02), ("End", 1.0), ("ArrowDown", 0.98),
    ):  # fmt: skip
        opened.keyboard.press(key)
        assert before_of(pair) == near(share), key
        assert slider.get_attribute("aria-valuetext") == f"{share:.0%} before"
    opened.keyboard.press("Tab")
    opened.keyboard.press("End")
    assert before_of(pair_of(opened, 1)) == near(1.0)
    assert before_of(pair) == near(0.98)


def test_the_focused_photo_has_a_ring_for_keys_only(opened: Page) -> None:
    def ring() -> str:
        slider = opened.get_by_role("slider").first
        return str(slider.evaluate("slider => getComputedStyle(slider).outlineStyle"))

    pair_of(opened).click(position={"x": 300, "y": 100})
    assert ring() == "none"
    opened.keyboard.press("ArrowRight")
    assert ring() == "solid"


# -- mouse ---------------------------------------------------------------------------------------


def test_the_mouse_drags_the_line(opened: Page) -> None:
    pair = pair_of(opened)
    box = pair.bounding_box()
    assert box is not None
    left, top, width = box["x"], box["y"] + 30, box["width"]
    opened.mouse.move(left + 0.5 * width, top)
    opened.mouse.down()
    for share in (0.4, 0.25):
        opened.mouse.move(left + share * width, top, steps=4)
        assert before_of(pair) == near(share)
    opened.mouse.move(left - 200, top + 500, steps=4)  # outside, with the button held
    assert before_of(pair) == near(0.0)
    opened.mouse.move(left + 0.7 * width, top)
    opened.mouse.up()
    opened.mouse.move(left + 0.1 * width, top)  # released
    assert before_of(pair) == near(0.7)
    opened.mouse.click(left + 0.3 * width, top)
    assert before_of(pair) == near(0.3)
    opened.keyboard.press("ArrowRight")  # goes on from where the mouse let go
    assert before_of(pair) == near(0.32)
    opened.mouse.click(left + 0.8 * width, top, button="right")
    assert before_of(pair) == near(0.32)
    assert before_of(pair_of(opened, 1)) == near(0.5)
    assert opened.evaluate("String(getSelection())") == ""


# -- a phone -------------------------------------------------------------------------------------


def swipe(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A finger that goes down, moves in small steps and lifts."""
    session = page.context.new_cdp_session(page)
    for step in range(13):
        x, y = (a + (b - a) * step / 12 for a, b in zip(start, end, strict=True))
        kind = "touchMove" if step else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        page.wait_for_timeout(16)  # a frame
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(100)


def test_a_finger_drags_the_line_and_scrolls_the_page(phone: Page) -> None:
    pair = pair_of(phone)
    box = pair.bounding_box()
    assert box is not None
    left, middle, width = box["x"], box["y"] + box["height"] / 2, box["width"]
    phone.touchscreen.tap(left + 0.8 * width, middle)
    assert before_of(pair) == near(0.8)
    swipe(phone, (left + 0.8 * width, middle), (left + 0.3 * width, middle + 4))
    assert before_of(pair) == near(0.3)
    assert phone.evaluate("scrollY") == 0
    swipe(phone, (left + 0.6 * width, middle + 50), (left + 0.6 * width + 2, middle - 110))
    assert phone.evaluate("scrollY") > 80
    assert before_of(pair) == near(0.3)


@pytest.mark.parametrize("width", [320, 360, 740])
def test_narrow_windows_do_not_scroll_sideways(phone: Page, width: int) -> None:
    phone.set_viewport_size({"width": width, "height": 740 if width < 740 else 360})
    assert phone.evaluate("document.documentElement.scrollWidth") <= width
    for key in ("Home", "End"):  # the grip reaches over the picture's edges
        for slider in phone.get_by_role("slider").all():
            slider.focus()
            phone.keyboard.press(key)
        assert phone.evaluate("document.documentElement.scrollWidth") <= width
    phone.evaluate("scrollTo(1000, 0)")
    assert phone.evaluate("scrollX") == 0
    for pair in phone.locator(".pair").all():
        box = pair.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        images = pair.locator("img").evaluate_all(
            "images => images.map(each => [each.width / each.height,"
            " each.naturalWidth / each.naturalHeight])"
        )
        assert images[0] == images[1]
        assert images[0][0] == pytest.approx(images[0][1], rel=0.05)


def test_a_photo_fits_into_the_window(opened: Page) -> None:
    for number in range(len(SIZES)):
        box = pair_of(opened, number).bounding_box()
        assert box is not None
        assert box["height"] < 900
        assert box["width"] < 1280


# -- safety --------------------------------------------------------------------------------------


def test_names_run_nothing_and_nothing_is_requested(
    opened: Page, requests: list[str], link: str
) -> None:
    made = [each for each in requests if not each.startswith("data:image/jpeg;base64,")]
    assert set(made) == {link}
    names = opened.locator("figcaption bdi").all_text_contents()
    assert names[len(SIZES) + 1 :][:3] == HOSTILE[:3]
    assert len(names) == len(SIZES) + 1 + len(HOSTILE)
    assert opened.locator("script").count() == 1
    widths = opened.locator("img").evaluate_all("images => images.map(each => each.naturalWidth)")
    assert len(widths) == 2 * len(names)
    assert min(widths) > 0


def test_the_policy_stops_what_escaping_would_let_through(page: Page, link: str) -> None:
    """Handlers, scripts, styles and pictures that get into the page all the same."""
    said = listen(page)
    page.goto(link)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1)
        page.evaluate(
            """port => {
                document.body.insertAdjacentHTML("beforeend",
                    `<img src="data:," onerror="window.ran = 1">
                     <img src="http://127.0.0.1:${port}/x.png">
                     <iframe srcdoc="<script>parent.ran = 1</script>"></iframe>
                     <p style="position: fixed">x</p>`);
                const script = document.createElement("script");
                script.textContent = "window.ran = 1";
                document.body.append(script);
            }""",
            server.getsockname()[1],
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert page.evaluate("window.ran") is None
    assert page.locator("p").last.evaluate("p => getComputedStyle(p).position") == "static"
    assert sum("Content Security Policy" in each for each in said) >= 4


# -- light, dark, paper, no script ---------------------------------------------------------------


def luminance(rgb: np.ndarray) -> float:
    """Relative luminance of WCAG 2.2 of sRGB 0..255."""
    v = rgb / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_light_and_dark(opened: Page, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    paper = pixels(opened)[2, 2]
    assert len(set(paper.tolist())) == 1  # neutral, so that the photos' colours look right
    assert (paper[0] > 200) == (scheme == "light")
    for place in ("h1", "header p", ".name", ".note", "footer"):
        colour = opened.locator(place).first.evaluate("each => getComputedStyle(each).color")
        ink = np.array([int(part) for part in colour[4:-1].split(",")])
        dark, light = sorted((luminance(ink), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) > 4.5, place  # WCAG 2.2, 1.4.3


def assert_both_are_shown(page: Page) -> None:
    """Each picture of a pair is seen whole, and no slider is."""
    for number in range(len(SIZES)):
        sides = pair_of(page, number).locator("img")
        grey, coloured = (pixels(sides.nth(side))[-30:-4, 4:-4] for side in range(2))
        assert (np.ptp(grey, axis=2) > 60).mean() < 0.01
        assert (np.ptp(coloured, axis=2) > 60).mean() > 0.95  # but for the label
    assert not page.get_by_role("slider").count()


def test_paper_shows_both_pictures(opened: Page) -> None:
    opened.get_by_role("slider").first.focus()
    opened.keyboard.press("Home")  # the line's place does not matter on paper
    opened.emulate_media(media="print", color_scheme="dark")
    assert_both_are_shown(opened)
    assert (pixels(opened)[2, -3] == 255).all()
    boxes = [pair_of(opened).locator("img").nth(side).bounding_box() for side in range(2)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    assert opened.pdf(format="A4").startswith(b"%PDF")


def test_without_script_both_pictures_are_shown(browser: BrowserContext, link: str) -> None:
    assert browser.browser is not None
    context = browser.browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(link)
    assert_both_are_shown(page)
    context.close()


def test_a_photo_works_while_the_rest_still_loads(page: Page, tmp_path: Path) -> None:
    """Half a page, as a browser has it before a long one is read."""
    path = tmp_path / "p.html"
    with BeforeAfterPage(path) as made:
        made.add("one", *photo(300, 400))
        made.add("two", *photo(300, 400))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"<figure>") + 400])
    page.goto(path.as_uri())
    pair_of(page).click(position={"x": 100, "y": 40})
    assert before_of(pair_of(page)) == near(0.25)
