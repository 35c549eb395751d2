"""The page of `cc serve` in a real browser: photos in, colours, sliders, downloads, errors."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.conftest import jpeg, scene
from tests.ui.browser import hosts, phone_of, why_no_browser
from tests.ui.test_before_after_page import listen, near, pixels, swipe

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page, Response

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def grey(seed: int, height: int = 400, width: int = 600) -> bytes:
    """A grey JPEG with a description, of a quality of its own."""
    exif = Image.Exif()
    exif[0x010E] = f"photo {seed}"
    out = io.BytesIO()
    picture = Image.fromarray(scene(seed, height, width)).convert("L")
    picture.save(out, "JPEG", quality=88, exif=exif)
    return out.getvalue()


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := why_no_browser():
        pytest.skip(reason)
    command = [sys.executable, "-m", "cli.main", "serve", "start", "--max-bytes", "3000000"]
    process = subprocess.Popen(
        command, env=ENV, cwd=tmp_path_factory.mktemp("elsewhere"), stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process, process.stdout:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[str]]:
    def write(**named: bytes) -> list[str]:
        for name, data in named.items():
            (tmp_path / name.replace("_", ".")).write_bytes(data)
        return [str(tmp_path / name.replace("_", ".")) for name in named]

    return write


def card(page: Page, name: str) -> Locator:
    return page.locator("figure", has=page.get_by_text(name, exact=True))


def wait_for(page: Page, name: str) -> Locator:
    """The slider of a photo, once the photo is colourized."""
    figure = card(page, name)
    figure.get_by_role("button", name="Download").wait_for()
    page.locator("figure.busy").wait_for(state="detached")
    return figure.locator(".pair")


@contextlib.contextmanager
def recoloured(page: Page, name: str, **knobs: str) -> Iterator[None]:
    """Move controls; when the block ends, the photo has the colours that they ask for.

    The server's answer to exactly these controls is waited for: an earlier answer, or a state that
    lasts a few milliseconds, would say nothing.
    """

    def answers(response: Response) -> bool:
        url = urlsplit(response.url)
        return url.path == "/preview" and dict(parse_qsl(url.query)) == knobs

    with page.expect_response(answers):
        yield
    wait_for(page, name)


def colourfulness(shown: Locator) -> np.ndarray:
    """How far each column of what is on the screen is from grey, below the labels."""
    rows = pixels(shown)
    return np.ptp(rows[rows.shape[0] // 3 :], axis=2).mean(axis=0)


def grey_share(pair: Locator) -> float:
    """The share of the picture, from the left, that shows the photo as it was."""
    split = pair.evaluate("pair => getComputedStyle(pair).getPropertyValue('--split')")
    share = float(split.rstrip("%")) / 100
    columns = colourfulness(pair)
    line = share * columns.size
    assert (columns[: max(0, int(line) - 30)] < 1.5).all()  # but for the grip
    right = columns[int(line) + 30 :]
    assert right.size < 60 or right.max() > 3
    return share


def colorize(photo: str, out: Path, *words: str) -> bytes:
    """What `cc colorize` writes."""
    command = [sys.executable, "-m", "cli.main", "colorize", "start", photo, "--out", str(out)]
    subprocess.run([*command, *words], env=ENV, check=True, capture_output=True)
    return (out / Path(photo).name).read_bytes()


def download(page: Page, name: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        card(page, name).get_by_role("button", name="Download").click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_a_photo_is_colourized_compared_changed_and_downloaded(
    page: Page, link: str, files, requests: list[str], tmp_path: Path
) -> None:
    said = listen(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(link)
    assert page.title() == "Colourize photos"
    (photo,) = files(garden_jpg=grey(0))
    page.locator("#files").set_input_files(photo)
    pair = wait_for(page, "garden.jpg")

    slider = page.get_by_role("slider", name="Before and after: garden.jpg")
    assert grey_share(pair) == near(0.5)
    slider.focus()
    for key, share in (("Home", 0.0), ("End", 1.0), ("PageDown", 0.9)):
        page.keyboard.press(key)
        assert grey_share(pair) == near(share)
    box = pair.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 210, steps=5)
    page.mouse.up()
    assert grey_share(pair) == near(0.2)

    name, data = download(page, "garden.jpg")
    assert name == "garden-colorized.jpg"
    assert data == colorize(photo, tmp_path / "plain")
    assert Image.open(io.BytesIO(data)).getexif()[0x010E] == "photo 0"

    vivid = colourfulness(pair).max()
    page.get_by_label("Strength").focus()
    with recoloured(page, "garden.jpg", strength="0.5"):
        for _ in range(10):
            page.keyboard.press("ArrowLeft")
        assert "50%" in page.locator("#knobs").inner_text()
    assert 0.3 * vivid < colourfulness(pair).max() < 0.8 * vivid
    assert grey_share(pair) == near(0.2)  # the line stays where it was
    _, data = download(page, "garden.jpg")
    assert data == colorize(photo, tmp_path / "half", "--strength", "0.5")

    with recoloured(page, "garden.jpg", strength="0.5", chroma="2.5"):
        page.get_by_label("Chroma").fill("2.5")
    _, data = download(page, "garden.jpg")
    both = ("--strength", "0.5", "--chroma", "2.5")
    assert data == colorize(photo, tmp_path / "chroma", *both)

    with recoloured(page, "garden.jpg"):
        page.get_by_role("button", name="Reset").click()
    assert "100%" in page.locator("#knobs").inner_text()
    assert colourfulness(pair).max() == pytest.approx(vivid, rel=0.01)
    assert not page.get_by_label("Temperature").is_visible()  # the model predicts no bins
    assert said == []
    assert hosts(requests) == set()


def test_several_photos_at_once_and_files_that_are_none(page: Page, link: str, files) -> None:
    page.goto(link)
    photos = files(**{f"p{seed}_jpg": grey(seed, 200, 300) for seed in range(6)})
    others = files(
        notes_jpg=b"hello", cut_jpg=grey(7)[:3000], empty_png=b"", huge_tif=bytes(3_000_001),
        colour_jpg=jpeg(scene(8)),
    )  # fmt: skip
    page.locator("#files").set_input_files([*others, *photos])
    for seed in range(6):
        wait_for(page, f"p{seed}.jpg")
    for name, words in {
        "notes.jpg": "not a photo", "cut.jpg": "damaged", "empty.png": "empty",
        "huge.tif": "too large", "colour.jpg": "has colours already",
    }.items():  # fmt: skip
        problem = card(page, name).get_by_role("alert")
        problem.wait_for()
        assert words in problem.inner_text()
        assert not card(page, name).locator(".pair").is_visible()
        assert not re.search(r"force=|b'|expected a", card(page, name).inner_text())
    card(page, "colour.jpg").get_by_role("button", name="Colourize anyway").click()
    wait_for(page, "colour.jpg")
    card(page, "notes.jpg").get_by_role("button", name="Remove").click()
    assert card(page, "notes.jpg").count() == 0
    assert page.locator("figure").count() == 10


def test_photos_are_dropped_and_pasted(page: Page, link: str) -> None:
    page.goto(link)
    for name, event in (("dropped.jpg", "drop"), ("pasted.jpg", "paste")):
        page.evaluate(
            """([bytes, name, event]) => {
                const held = new DataTransfer();
                held.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
                const how = {bubbles: true, cancelable: true};
                document.body.dispatchEvent(event === "drop"
                    ? new DragEvent("drop", {...how, dataTransfer: held})
                    : new ClipboardEvent("paste", {...how, clipboardData: held}));
            }""",
            [list(grey(1, 100, 150)), name, event],
        )
        wait_for(page, name)


def test_formats_that_the_browser_does_not_know(page: Page, link: str, files, tmp_path) -> None:
    out = io.BytesIO()
    Image.fromarray(scene(2, 200, 300)).convert("L").save(out, "TIFF", compression="tiff_lzw")
    (photo,) = files(scan_tif=out.getvalue())
    page.goto(link)
    page.locator("#files").set_input_files(photo)
    assert grey_share(wait_for(page, "scan.tif")) == near(0.5)
    name, data = download(page, "scan.tif")
    assert name == "scan-colorized.tif"
    assert data == colorize(photo, tmp_path / "out")


def test_a_server_that_has_gone(page: Page, link: str, files) -> None:
    page.goto(link)
    (photo,) = files(p_jpg=grey(3, 100, 150))
    page.route("**/preview*", lambda route: route.abort())
    page.locator("#files").set_input_files(photo)
    problem = card(page, "p.jpg").get_by_role("alert")
    problem.wait_for()
    assert "cannot be reached" in problem.inner_text()
    page.unroute("**/preview*")
    card(page, "p.jpg").get_by_role("button", name="Try again").click()
    wait_for(page, "p.jpg")


def test_a_phone(browser: BrowserContext, link: str, files) -> None:
    context = phone_of(browser)
    page = context.new_page()
    page.goto(link)
    page.locator("#files").set_input_files(files(p_jpg=grey(4), notes_jpg=b"x"))
    pair = wait_for(page, "p.jpg")
    card(page, "notes.jpg").get_by_role("alert").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = pair.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.touchscreen.tap(box["x"] + 0.8 * box["width"], middle)
    assert grey_share(pair) == near(0.8)
    swipe(
        page, (box["x"] + 0.8 * box["width"], middle), (box["x"] + 0.3 * box["width"], middle + 4)
    )
    assert grey_share(pair) == near(0.3)
    for button in page.locator("button").all():
        if button.is_visible():
            shown = button.bounding_box()
            assert shown is not None
            assert shown["height"] >= 24  # WCAG 2.2, 2.5.8
    context.close()


def test_nothing_delays_the_first_paint(page: Page, link: str) -> None:
    """Little to fetch, all of it from here; how long it takes is what bench_serve measures."""
    sizes: dict[str, int] = {}
    page.on("response", lambda response: sizes.update({response.url: len(response.body())}))
    page.goto(link)
    page.wait_for_load_state("networkidle")
    assert len(sizes) == 4  # the page, its style, and two scripts
    assert all(url.startswith(link) for url in sizes)
    assert sum(sizes.values()) < 64_000
    paint = "performance.getEntriesByName('first-contentful-paint').length"
    assert page.evaluate(paint) == 1
