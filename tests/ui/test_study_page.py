"""The page that `cc ui STUDY` opens, in a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from mlflow import MlflowClient

from pipelines.tracking.names import BEST_PICTURE_KEY, BEST_STEP, PICTURE_KEY
from tests.trainings import SPACE, rows_of
from tests.ui.browser import hosts

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.ui.conftest import Outside, Shown
    from tune.study import StudyReport


def loaded(images: Locator, count: int) -> list[int]:
    """The widths of the pictures, once ``count`` of them are loaded."""
    images.nth(count - 1).wait_for()
    images.page.wait_for_function(
        "images => images.every(image => image.complete && image.naturalWidth > 0)",
        arg=images.element_handles(),
    )
    return [image.evaluate("image => image.naturalWidth") for image in images.all()]


def shown_by(images: Locator) -> list[tuple[str, str]]:
    """The run and the artifact path of each picture."""
    queries = (parse_qs(urlsplit(str(each.get_attribute("src"))).query) for each in images.all())
    return [(query["run_uuid"][0], unquote(query["path"][0])) for query in queries]


def thumbnails(study: StudyReport, run_id: str, key: str, step: int) -> list[str]:
    """A run's thumbnails under one key and step, the latest last."""
    files = (unquote(file.path) for file in client_for(study).list_artifacts(run_id, "images"))
    name = f"images/{key.replace('/', '~')}+step+{step}+"
    return sorted(file for file in files if file.startswith(name) and file.endswith(".webp"))


def client_for(study: StudyReport) -> MlflowClient:
    return MlflowClient(study.tracking_uri)


def experiment_of(study: StudyReport) -> str:
    run = client_for(study).get_run(study.run_id)
    return str(run.info.experiment_id)


def test_the_page_opens_on_the_trials_their_parameters_and_their_pictures(
    page: Page, shown: Shown, study: StudyReport
) -> None:
    assert urlsplit(shown.link).hostname == "127.0.0.1"
    page.goto(shown.link)

    # All trials are listed, best first, and the study's own run is not.
    trials = rows_of(study.out)
    runs = page.locator(".ag-row a").filter(has_text=study.name)
    runs.nth(len(trials) - 1).wait_for()
    by_score = sorted(trials, key=lambda row: -float(row["auc_balanced"]))
    names = [f"{study.name}-{int(row['trial']):04d}" for row in by_score]
    assert runs.all_inner_texts() == names

    # Parallel coordinates: the searched settings and the objective.
    axes = page.locator(".parcoords .dimension text.label")
    axes.first.wait_for()
    # MLflow shortens long names in the middle.
    searched = {path for path in SPACE if len({row[path] for row in trials}) > 1}
    assert set(axes.all_text_contents()) == {*searched, "best/a...lanced"}
    assert page.get_by_text(f"{study.name}: {len(trials)} trials").is_visible()

    # The objective has one curve per trial.
    page.locator(".js-plotly-plot .scatterlayer .trace").nth(len(trials) - 1).wait_for()

    # Two pictures per trial: at its best epoch, and at the last epoch that all trials have.
    epoch = min(int(row["epochs"]) for row in trials)
    assert epoch < max(int(row["epochs"]) for row in trials)
    for key, step in ((BEST_PICTURE_KEY, BEST_STEP), (PICTURE_KEY, epoch)):
        pictures = page.locator(f"img[src*='get-artifact?path=images%2F{key.partition('/')[0]}']")
        loaded(pictures, len(trials))
        assert sorted(shown_by(pictures)) == sorted(
            (row["run_id"], thumbnails(study, row["run_id"], key, step)[-1]) for row in trials
        )
        assert page.get_by_text("No image logged at this step").count() == 0
        # Charts are drawn when they scroll into view; the heading below them is always there.
        page.get_by_text("Curves", exact=True).scroll_into_view_if_needed()


def test_mlflow_lists_the_page_among_its_views(
    page: Page, shown: Shown, study: StudyReport
) -> None:
    page.goto(f"{shown.at}/#/experiments/{experiment_of(study)}/runs?workflowType=machine_learning")
    page.get_by_role("button", name="Views").click()
    page.get_by_text(f"study {study.name}").wait_for()


def test_the_table_shows_how_each_trial_ended(page: Page, shown: Shown, study: StudyReport) -> None:
    page.goto(shown.link.replace("=CHART", "=TABLE"))
    stopped = next(row for row in rows_of(study.out) if row["outcome"] == "stopped")
    page.get_by_text(stopped["reason"]).first.wait_for()
    for text in ("stopped", "finished", "optim.lr", "0.001"):
        page.get_by_text(text, exact=True).first.wait_for()


def test_the_studys_own_run_shows_curves_pictures_and_plots(
    page: Page, shown: Shown, study: StudyReport
) -> None:
    run = f"{shown.at}/#/experiments/{experiment_of(study)}/runs/{study.run_id}"
    page.goto(f"{run}/model-metrics")
    page.get_by_text("best/auc_balanced").first.wait_for()
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    page.goto(f"{run}/artifacts/study/importances.png")
    assert loaded(page.locator("img[alt='study/importances.png']"), 1)


def test_nothing_leaves_this_machine(
    page: Page, shown: Shown, requests: list[str], outside: Outside
) -> None:
    """Last in the file, so that it sees the requests of all pages and of the server."""
    page.goto(shown.link)
    page.locator(".parcoords").first.wait_for()
    assert len(requests) > 20
    assert hosts(requests) == set()
    assert outside.calls == []
    # The proxy works: it sees a request that would leave.
    call = "import urllib.request as u; u.urlopen('http://example.com/hello', timeout=20)"
    subprocess.run(
        [sys.executable, "-c", call], env={**os.environ, **outside.env}, capture_output=True,
        check=False,
    )  # fmt: skip
    assert b"GET http://example.com/hello" in outside.calls[0]
