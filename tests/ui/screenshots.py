"""The screenshots of docs/comparing.md, from a real study of small trainings.

    python -m tests.ui.screenshots --out docs/images [--folder KEPT]

Cuts the photographs that come with scikit-image and scikit-learn into tiles, runs `cc tune` on
them, opens `cc ui STUDY` in Chromium and takes screenshots. With --folder, the study is kept there
and used again by the next call. Takes ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipelines.demo import installed_photos
from pipelines.tracking.names import PICTURE_KEY
from tests.ui.browser import chromium, close_assistant

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

ROOT = Path(__file__).parents[2]
STUDY = "vivid"
TRIALS = 16
SPACE = """\
["optim.lr"]
log = [3e-4, 3e-2]

["model.channels"]
choices = [4, 8, 12, 16]

["loss.saturation"]
log = [0.01, 1.0]
"""
SETTINGS = (
    "model.depth=3", "model.norm=group", "model.channels=12", "loss.saturation=0.1",
    "data.batch=8", "optim.lr=3e-3", "train.epochs=30", "train.ema=0.98",
)  # fmt: skip
MOST_BYTES = 300_000


def make_study(folder: Path) -> None:
    """Make photos, dataset, palette and study, each with its command."""
    installed_photos(folder / "photos", folder / "photographs")
    (folder / "space.toml").write_text(SPACE)
    _cc(folder, "shard", "photos", "dataset", "--size", 64, "--val-percent", 10)
    _cc(folder, "priors", "dataset", "--bins", 64)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    _cc(
        folder, "tune", "dataset", "--recipe", "unet-l1", *settings, "--space", "space.toml",
        "--trials", TRIALS, "--name", STUDY, "--out", "study",
    )  # fmt: skip


def _cc(folder: Path, *words: object) -> None:
    command = [sys.executable, "-m", "cli.main", *map(str, words)]
    subprocess.run(command, cwd=folder, env=_env(), check=True)


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """Run `cc ui STUDY`; yields the link that it prints."""
    command = [sys.executable, "-m", "cli.main", "ui", STUDY, "--no-open"]
    with subprocess.Popen(
        command, cwd=folder, env=_env(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def take(browser: BrowserContext, link: str, out: Path) -> None:
    """Take pictures of the study's page, its table, and the study's own run."""
    page = browser.new_page()
    page.goto(link)
    close_assistant(page)
    page.locator(".parcoords").first.wait_for()
    page.locator("img[src*='get-artifact']").nth(9).wait_for()
    _save(page, out / "ui-study.png")
    page.get_by_text("Curves", exact=True).evaluate("it => it.scrollIntoView({block: 'center'})")
    page.get_by_text(PICTURE_KEY, exact=True).wait_for()
    _save(page, out / "ui-pictures.png")
    page.goto(link.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
    page.get_by_text("finished", exact=True).first.wait_for()
    _save(page, out / "ui-table.png")
    at, _, rest = link.partition("/runs?")
    run = rest.rpartition("viewStateShareKey=colorcore-")[2]
    page.goto(f"{at}/runs/{run}/model-metrics?workflowType=machine_learning")
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    _save(page, out / "ui-run.png")


def _save(page: Page, path: Path) -> None:
    """Save a screenshot with as many colours as fit into :data:`MOST_BYTES`."""
    page.wait_for_timeout(3000)  # wait for the charts to settle
    page.screenshot(path=path)
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    for colors in (256, 128, 64, 32):
        rgb.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        if not (folder / "study").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make_study(folder)
        with pages(folder) as link, chromium(1600, 1250) as browser:
            take(browser, link, out)


if __name__ == "__main__":
    main()
