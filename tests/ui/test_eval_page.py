"""The report of `cc eval --html` in a real browser: its numbers, its looks, and what it loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from cli.main import main
from tests.conftest import jpeg, scene
from tests.pipelines.evaluation.test_comparison import checkpoint_of
from tests.ui.browser import chromium

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import BrowserContext, Page

FLAT = {"red": (200, 60, 50), "green": (70, 160, 80), "blue": (60, 90, 190)}
SECTIONS = [
    "Scores",
    "Differences",
    "Scores at equal colourfulness",
    "Worst, median and best photos",
    "Error by hue",
    "Colourfulness",
    "Does confidence mean what it says?",
    "Size stability",
    "Other tools' pictures",
    "How it was measured",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A report on three photos of one colour each: a model of bins, their greys, and copies."""
    from colorcore.checkpoints.checkpoint import load_checkpoint, save_checkpoint

    top = tmp_path_factory.mktemp("report")
    for folder in ("in", "greys", "<b>copies"):
        (top / folder).mkdir()
    for name, color in FLAT.items():
        flat = np.broadcast_to(np.array(color, np.uint8), (80, 80, 3))
        Image.fromarray(flat).save(top / "in" / f"{name}.png")
        Image.fromarray(flat).save(top / "<b>copies" / f"{name}.png")
        grey = np.full((80, 80, 3), Image.fromarray(flat).convert("L").getpixel((0, 0)), np.uint8)
        Image.fromarray(grey).save(top / "greys" / f"{name}.png")
    (top / "greys" / "strange.jpg").write_bytes(jpeg(scene(1)))
    bins = len(load_checkpoint("start").palette)
    parts = {"name": "resnet-unet", "channels": 4, "bins": bins}
    save_checkpoint(checkpoint_of(64, 0, **parts), top / "bins")
    words = ["cc", "eval", str(top / "bins"), str(top / "in"), f"--html={top / 'r.html'}", "--json"]
    folders = [f"--against={top / 'greys'}", f"--against={top / '<b>copies'}"]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("cli.show.as_json", lambda result: said.append(json.dumps(result)))
        assert main([*words, *folders]) == 0
    return top / "r.html", json.loads(said[0])


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    with chromium(1200, 900) as context:
        yield context


@pytest.fixture
def opened(context: BrowserContext, report: tuple[Path, dict]) -> Iterator[Page]:
    """The page; fails if it says anything in the console, or loads anything but itself."""
    page, said, loaded = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: loaded.append(request.url))
    page.goto(report[0].as_uri())
    yield page
    page.close()
    assert said == []
    assert [url for url in loaded if not url.startswith("data:image/webp;")] == [report[0].as_uri()]


def section(page: Page, title: str) -> str:
    """The text between a section's title and the next one's."""
    text: str = page.evaluate(
        """title => {
            let at = [...document.querySelectorAll('h2')].find(h => h.textContent === title);
            let text = '';
            while ((at = at.nextElementSibling) && at.tagName !== 'H2')
                text += at.innerText + '\\n';
            return text;
        }""",
        title,
    )
    return text


def test_all_sections_are_there_and_names_are_text(opened: Page, report) -> None:
    assert opened.locator("h2").all_inner_texts() == SECTIONS
    assert opened.locator("li b", has_text="<b>copies").first.is_visible()
    assert opened.locator("script, link, iframe, [onclick]").count() == 0
    assert "3 photos at 64 px" in opened.locator("p").first.inner_text()


def test_the_scores_are_those_of_the_json(opened: Page, report) -> None:
    table = opened.locator("table").first
    heads = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    assert heads[1:4] == ["PSNR, dB", "SSIM", "ΔE2000"]
    for row in table.locator("tbody tr").all():
        name = row.locator("th").inner_text().strip()
        scores = report[1]["scores"][name]
        cells = [cell.split("\n")[0] for cell in row.locator("td").all_inner_texts()]
        assert cells[0] == f"{scores['psnr']:.2f}"
    copies = table.locator("tbody tr", has_text="copies")
    assert copies.locator("td").first.inner_text().startswith("100.00")
    assert copies.locator("td.best").count() >= 5
    low, high = report[1]["intervals"]["greys"]["delta_e2000"]
    greys = table.locator("tbody tr", has_text="greys").locator("td").nth(2).inner_text()
    assert greys.split("\n")[1] == f"{low:.2f} to {high:.2f}"


def test_the_error_of_each_hue_is_scikit_images(opened: Page) -> None:
    """Each photo has one colour, so a sector's error is that photo's."""
    text = section(opened, "Error by hue").replace("\n", " ")
    for color in FLAT.values():
        lab = rgb2lab(np.array(color, np.uint8)[None, None])[0, 0]
        grey = rgb2lab(np.full((1, 1, 3), _luma(color), np.uint8))[0, 0]
        hue = np.degrees(np.arctan2(lab[2], lab[1])) % 360
        sector = int(hue // 30) * 30
        error = float(deltaE_ciede2000(grey, lab))
        line = text.partition(f"{sector}–{sector + 30}°, 33.3%")[2].split()[:4]
        # Grey with the photo's own L, the model, the tool's greys with theirs, the copies.
        assert float(line[2]) == pytest.approx(error, abs=0.4)
        assert line[3] == "0.0"
    assert "neutral 0.0%" in text


def _luma(color: tuple[int, int, int]) -> int:
    return int(Image.new("RGB", (1, 1), color).convert("L").getpixel((0, 0)))


def test_the_scatter_has_a_dot_per_photo_and_copies_lie_on_the_line(opened: Page, report) -> None:
    charts = opened.locator(".charts figure")
    assert charts.count() == 3
    for number in range(3):
        assert charts.nth(number).locator("circle").count() == len(FLAT)
    for circle in charts.nth(2).locator("circle").all():
        x, y = (float(str(circle.get_attribute(name))) for name in ("cx", "cy"))
        # Equal values on both axes: as far from the left end as from the lower one.
        assert (x - 44) / 346 == pytest.approx((360 - y) / 350, abs=1e-3)
    true = {photo["name"]: photo["cf_true"] for photo in report[1]["details"]["photos"]}
    for name, (red, green, blue) in FLAT.items():  # σ is 0, so CF is 0.3 μ
        cf = 0.3 * np.hypot(red - green, (red + green) / 2 - blue)
        assert true[f"{name}.png"] == pytest.approx(cf, rel=0.03)


def test_worst_median_and_best_photos_with_all_sides(opened: Page, report) -> None:
    photos = opened.locator(".photo")
    assert photos.locator("> figcaption b").all_inner_texts() == ["worst", "median", "best"]
    errors = [each["scores"]["bins"]["delta_e2000"] for each in report[1]["details"]["shown"]]
    assert errors == sorted(errors, reverse=True)
    images = photos.first.locator("img")
    assert images.count() == 5  # truth, grey, and three sides
    assert images.first.evaluate("image => image.naturalWidth") == 80
    name = report[1]["details"]["shown"][0]["name"]
    color = images.first.evaluate(
        """image => {
            const canvas = document.createElement('canvas');
            canvas.getContext('2d').drawImage(image, 0, 0);
            return [...canvas.getContext('2d').getImageData(40, 40, 1, 1).data].slice(0, 3);
        }"""
    )
    assert color == pytest.approx(FLAT[name.removesuffix(".png")], abs=6)


def test_confidence_size_stability_and_what_was_in_the_folders(opened: Page, report) -> None:
    text = section(opened, "Does confidence mean what it says?")
    details = report[1]["details"]
    for tenth in details["reliability"]["bins"]:
        if tenth["right"] is not None:
            assert f"{tenth['share']:.1%} of pixels\n{tenth['right']:.0%}" in text
    stability = details["size_stability"]
    assert stability["photos"] == 3
    row = section(opened, "Size stability")
    assert f"{stability['sides']['bins']['0.5']:.2f}" in row
    folders = section(opened, "Other tools' pictures")
    assert "greys: matched by name: 3; outputs of no photo: 1" in folders


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_overflows_and_both_schemes_are_legible(
    opened: Page, width: int, scheme: str
) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    opened.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    ink, page = (
        opened.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    assert contrast(ink, page) > 10
    small = opened.locator("td small").first.evaluate("e => getComputedStyle(e).color")
    assert contrast(small, page) > 4.5
    # A row's name stays readable beside its numbers.
    assert opened.locator("tbody th").first.evaluate("e => e.clientWidth") >= 80


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours such as "rgb(1, 2, 3)" (WCAG 2.2, 1.4.3)."""

    def luminance(text: str) -> float:
        values = np.array([float(part) for part in text[4:-1].split(",")]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_an_earlier_report_is_replaced_and_nothing_else(report, tmp_path: Path, capsys) -> None:
    path, _ = report
    call = ["cc", "eval", str(path.with_name("bins")), str(path.with_name("in"))]
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html>\n<p>mine")
    assert main([*call, f"--html={mine}"]) == 2
    assert "which cc has not written" in capsys.readouterr().err
    assert main([*call, f"--html={tmp_path / 'r.png'}"]) == 2
    assert main([*call, f"--html={mine}", "--overwrite"]) == 0
    first = mine.read_bytes()
    assert main([*call, f"--html={mine}"]) == 0
    assert mine.read_bytes() == first  # and the same bytes again
    assert f"report: {mine}" in capsys.readouterr().out
