"""Numbers of a step that are read after the next step, as on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.training import state as state_module
from colorcore.training import steps as steps_module
from colorcore.training.events import TrainingDivergedError, TrainingStoppedError
from colorcore.training.fit import fit
from colorcore.training.state import FitData
from tests.colorcore.training.made_up import (
    EVERYTHING_RANDOM,
    Diary,
    bytes_of,
    diverging,
    recipe_of,
    small_data,
    weights_of,
)


@pytest.fixture(scope="module")
def data() -> FitData:
    return small_data()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "steps_late", lambda _: 1)


@pytest.mark.slow
@pytest.mark.usefixtures("late")
def test_late_numbers_change_nothing_but_when_they_are_read(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = recipe_of(*EVERYTHING_RANDOM, "train.save_every=3")
    fit(recipe, data, tmp_path / "late", observers=[late := Diary()])
    monkeypatch.undo()
    fit(recipe, data, tmp_path / "soon", observers=[soon := Diary()])
    assert [(e.epoch, e.step, e.loss, e.lr, e.terms, e.grad_norm) for e in late.steps] == [
        (e.epoch, e.step, e.loss, e.lr, e.terms, e.grad_norm) for e in soon.steps
    ]
    assert bytes_of(tmp_path / "late") == bytes_of(tmp_path / "soon")


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("step", [3, 7, 10])
def test_a_stop_is_after_the_step_that_it_was_asked_in(data: FitData, tmp_path: Path, step: int):
    """Also at the end of an epoch; all steps until then are reported."""
    diary, asked = Diary(), iter(range(1, 99))
    with pytest.raises(TrainingStoppedError, match=f"after step {step} of 15"):
        fit(recipe_of(), data, tmp_path, observers=[diary], stop=lambda: next(asked) == step)
    assert [event.step for event in diary.steps] == list(range(1, step + 1))
    assert diary.stops == [step]
    last = load_checkpoint(tmp_path / "last")
    assert last.epoch * 5 + last.step == step


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(("step", "saved"), [(8, 1), (10, 1), (11, 2)])
def test_a_loss_that_is_no_number_never_gets_into_a_checkpoint(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, saved: int
):
    """In the middle of an epoch, in its last step and in the first; the message names its step."""
    monkeypatch.setattr(
        state_module, "build_terms", diverging(step, lambda ab: ab.mean() * float("nan"))
    )
    diary = Diary()
    with pytest.raises(TrainingDivergedError, match=f"the loss is nan .* at step {step};"):
        fit(recipe_of(), data, tmp_path, observers=[diary])
    assert [event.step for event in diary.steps] == list(range(1, step))
    assert load_checkpoint(tmp_path / "last").epoch == saved
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "last").values())
