"""What `cc ui STUDY` opens, seen by a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.studies import Study
from tests.ui.browser import hosts

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.ui.conftest import Outside, Shown


def loaded(images: Locator, count: int) -> list[int]:
    """Widths of so many pictures, once they are there."""
    images.nth(count - 1).wait_for()
    images.page.wait_for_function(
        "images => images.every(image => image.complete && image.naturalWidth > 0)",
        arg=images.element_handles(),
    )
    return [image.evaluate("image => image.naturalWidth") for image in images.all()]


def test_the_page_opens_on_the_trials_their_parameters_and_their_pictures(
    page: Page, shown: Shown, study_store: tuple[str, Study]
) -> None:
    _, study = study_store
    assert urlsplit(shown.link).hostname == "127.0.0.1"
    page.goto(shown.link)

    # All trials, best first, and neither folded away nor beside their parent.
    runs = page.locator(".ag-row a").filter(has_text=study.name)
    runs.nth(len(study.trials) - 1).wait_for()
    by_score = sorted(range(len(study.values)), key=lambda trial: -study.values[trial])
    assert runs.all_inner_texts() == [f"{study.name}-{trial:04d}" for trial in by_score]

    # What was searched against the objective, a line a trial.
    axes = page.locator(".parcoords .dimension text.label")
    axes.first.wait_for()
    # MLflow shortens long names in the middle.
    assert set(axes.all_text_contents()) == {*study.searched, "best/a...lanced"}
    assert page.get_by_text(f"{study.name}: {len(study.trials)} trials").is_visible()

    # The objective's curves.
    page.locator(".js-plotly-plot .scatterlayer .trace").nth(len(study.trials) - 1).wait_for()

    # A picture a trial, at the step that all of them have.
    pictures = page.locator("img[src*='get-artifact']")
    assert len(loaded(pictures, len(study.trials))) == len(study.trials)
    assert page.get_by_text("No image logged at this step").count() == 0


def test_mlflow_lists_the_page_among_its_views(
    page: Page, shown: Shown, study_store: tuple[str, Study]
) -> None:
    _, study = study_store
    page.goto(f"{shown.at}/#/experiments/{study.experiment_id}/runs?workflowType=machine_learning")
    page.get_by_role("button", name="Views").click()
    page.get_by_text(f"study {study.name}").wait_for()


def test_the_table_says_how_each_trial_ended(
    page: Page, shown: Shown, study_store: tuple[str, Study]
) -> None:
    page.goto(shown.link.replace("=CHART", "=TABLE"))
    page.get_by_text("grey: hardly any colour").wait_for()
    for text in ("pruned", "finished", "loss.ab_l1", "0.01"):
        page.get_by_text(text, exact=True).first.wait_for()


def test_the_studys_own_run_shows_curves_pictures_and_plots(
    page: Page, shown: Shown, study_store: tuple[str, Study]
) -> None:
    _, study = study_store
    run = f"{shown.at}/#/experiments/{study.experiment_id}/runs/{study.run_id}"
    page.goto(f"{run}/model-metrics")
    page.get_by_text("best/auc_balanced").first.wait_for()
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    page.goto(f"{run}/artifacts/study/parallel_coordinates.png")
    assert loaded(page.locator("img[alt='study/parallel_coordinates.png']"), 1)


def test_nothing_leaves_this_machine(
    page: Page, shown: Shown, requests: list[str], outside: Outside
) -> None:
    """Last in the file: what all pages asked for, and the server behind them."""
    page.goto(shown.link)
    page.locator(".parcoords").first.wait_for()
    assert len(requests) > 20
    assert hosts(requests) == set()
    assert outside.calls == []
    # The proxy does hear of what wants to leave.
    call = "import urllib.request as u; u.urlopen('http://example.com/hello', timeout=20)"
    subprocess.run(
        [sys.executable, "-c", call], env={**os.environ, **outside.env}, capture_output=True,
        check=False,
    )  # fmt: skip
    assert b"GET http://example.com/hello" in outside.calls[0]
