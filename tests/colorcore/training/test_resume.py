"""A run that is killed, stopped or resumed ends as one that was not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colorcore.checkpoints import writer as writer_module
from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.recipes.recipe import load_recipe
from colorcore.storage.local import LocalStore
from colorcore.training import fit as module
from colorcore.training.events import (
    DecodingEvent,
    TrainingStoppedError,
)
from colorcore.training.fit import fit, train_step
from colorcore.training.state import FitData, Training
from tests.colorcore.training.made_up import (
    CPU,
    EVERYTHING_RANDOM,
    JUDGED,
    Diary,
    Killed,
    Killer,
    Photos,
    bytes_of,
    close,
    data_of,
    recipe_of,
    weights_of,
)

MODES = {
    "fp32": (),
    "gan": JUDGED,
    "bf16": ("train.precision=bf16",),
    "fp16": ("train.precision=fp16",),
}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(data: FitData, tmp_path: Path):
    recipe = recipe_of(*EVERYTHING_RANDOM)
    torch.manual_seed(1)
    fit(recipe, data, tmp_path / "one")
    torch.manual_seed(2)
    fit(recipe, data, tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert len(bytes_of(tmp_path / "one")) == 8  # four files of last, four of best
    fit(recipe_of(*EVERYTHING_RANDOM, "train.seed=1"), data, tmp_path / "other")
    one, other = weights_of(tmp_path / "one/last"), weights_of(tmp_path / "other/last")
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    "setting",
    [
        "model.dropout=0.3",
        "data.crop=0.6",
        "data.flip=false",
        "data.jitter=0.2",
        "data.gamma=0.2",
    ],
)
def test_each_setting_that_is_random_has_an_effect(data: FitData, tmp_path: Path, setting: str):
    """Without which the tests of repetition around this one would prove little."""
    fit(recipe_of("train.epochs=1"), data, tmp_path / "without")
    fit(recipe_of("train.epochs=1", setting), data, tmp_path / "with")
    without, with_ = weights_of(tmp_path / "without/last"), weights_of(tmp_path / "with/last")
    assert not torch.equal(without["head.weight"], with_["head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [7, 14])
@pytest.mark.parametrize("more", MODES.values(), ids=MODES)
def test_a_killed_run_that_is_resumed_ends_as_one_that_never_was(
    data: FitData, tmp_path: Path, killed_at: int, more: tuple[str, ...]
):
    """In the middle of the second or third epoch of three: bit for bit, best and last."""
    recipe = recipe_of(*EVERYTHING_RANDOM, *more)
    whole, parts = Diary(), Diary()
    scores = fit(recipe, data, tmp_path / "whole", run_id="r", observers=[whole])
    with pytest.raises(Killed):
        fit(recipe, data, tmp_path / "parts", run_id="r", observers=[Killer(killed_at)])
    resume = load_checkpoint(tmp_path / "parts/last", training=True)
    resumed = fit(recipe, data, tmp_path / "parts", resume=resume, observers=[parts])
    first = killed_at // 5 * 5
    assert parts.starts == [(15, first)]
    assert [e.step for e in parts.steps] == list(range(first + 1, 16))
    assert [e.loss for e in parts.steps] == [e.loss for e in whole.steps[first:]]
    assert resumed == scores
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_a_run_goes_on_from_the_middle_of_an_epoch(data: FitData, tmp_path: Path):
    recipe = recipe_of(*EVERYTHING_RANDOM)
    whole = Training(recipe, data, CPU, None)
    batches = list(whole.loader.epoch(0))
    for batch in batches[:3]:
        train_step(whole, batch)
    save_checkpoint(whole.checkpoint(), tmp_path / "last")
    resumed = Training(recipe, data, CPU, load_checkpoint(tmp_path / "last", training=True))
    assert (resumed.epoch, resumed.step_in_epoch, resumed.steps_done) == (0, 3, 3)
    rest = list(resumed.loader.epoch(0, start_step=resumed.step_in_epoch))
    assert [batch.step for batch in rest] == [3, 4]
    for training, its in ((whole, batches[3:]), (resumed, rest)):
        for batch in its:
            train_step(training, batch)
    save_checkpoint(whole.checkpoint(), tmp_path / "whole")
    save_checkpoint(resumed.checkpoint(), tmp_path / "resumed")
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "resumed")


def test_restored_moments_have_the_layout_of_their_weights(data: FitData, tmp_path: Path):
    """And the optimizer computes as it does here, not as it did where the checkpoint is from."""
    recipe = recipe_of(*JUDGED)
    first = Training(recipe, data, CPU, None)
    train_step(first, next(iter(first.loader.epoch(0))))
    checkpoint = first.checkpoint()
    for name in ("optimizer", "discriminator_optimizer"):
        checkpoint.optimizer[name][0]["fused"] = True
    save_checkpoint(checkpoint, tmp_path)
    resumed = Training(recipe, data, CPU, load_checkpoint(tmp_path, training=True))
    for optimizer in (resumed.optimizer, resumed.adversary.optimizer):  # type: ignore[union-attr]
        assert not optimizer.param_groups[0]["fused"]
        weights = [each for each in optimizer.state if each.ndim == 4]
        assert any(not each.is_contiguous() for each in weights)
        for each in weights:
            assert optimizer.state[each]["exp_avg"].stride() == each.stride()


@pytest.mark.parametrize("fused", [(False, True), (True, False)])
def test_a_fused_optimizer_goes_on_from_another_and_back(
    data: FitData, tmp_path: Path, fused: tuple[bool, bool]
):
    """As between a GPU and a CPU: the weights are the same but for rounding."""

    def training(fused: bool, resume: Checkpoint | None) -> Training:
        made = Training(recipe_of("optim.lr=1e-2"), data, CPU, resume)
        for group in made.optimizer.param_groups:
            group["fused"] = fused
        return made

    batches = list(training(False, None).loader.epoch(0))
    whole = training(False, None)
    for batch in batches:
        train_step(whole, batch)
    first = training(fused[0], None)
    for batch in batches[:2]:
        train_step(first, batch)
    save_checkpoint(first.checkpoint(), tmp_path)
    second = training(fused[1], load_checkpoint(tmp_path, training=True))
    for batch in batches[2:]:
        train_step(second, batch)
    close(second.model.state_dict(), whole.model.state_dict(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("more", MODES.values(), ids=MODES)
def test_a_run_that_is_stopped_writes_last_at_that_step_and_ends_as_one_that_never_was(
    data: FitData, tmp_path: Path, more: tuple[str, ...]
):
    """Twice, the second time at the last step of an epoch, whose validation is then still due."""
    recipe = recipe_of(*EVERYTHING_RANDOM, *more)
    whole, parts = Diary(), Diary()
    fit(recipe, data, tmp_path / "whole", run_id="r", observers=[whole])
    for wanted, validated in ((7, 1), (10, 1)):
        there = tmp_path / "parts/last"
        resume = load_checkpoint(there, training=True) if there.exists() else None
        first = len(parts.steps)
        with pytest.raises(TrainingStoppedError, match=f"after step {wanted} of 15") as stop:
            fit(
                recipe, data, tmp_path / "parts", run_id="r", observers=[parts], resume=resume,
                stop=lambda first=first, wanted=wanted: len(parts.steps) - first >= 0
                and len(parts.steps) == wanted - 1,
            )  # fmt: skip
        assert (stop.value.step, stop.value.total_steps) == (wanted, 15)
        last = load_checkpoint(there)
        assert (last.epoch, last.step) == ((wanted - 1) // 5, (wanted - 1) % 5 + 1)
        assert len(parts.validations) == validated
    fit(
        recipe, data, tmp_path / "parts", observers=[parts],
        resume=load_checkpoint(there, training=True),
    )  # fmt: skip
    assert parts.starts == [(15, 0), (15, 7), (15, 10)]
    assert parts.stops == [7, 10]
    assert [(e.step, e.loss) for e in parts.steps] == [(e.step, e.loss) for e in whole.steps]
    assert [(e.step, e.signs) for e in parts.validations] == [
        (e.step, e.signs) for e in whole.validations
    ]
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("killed_at", "goes_on"), [(3, 0), (6, 5), (9, 8), (12, 12)])
def test_a_run_that_saves_within_epochs_goes_on_from_there(
    data: FitData, tmp_path: Path, killed_at: int, goes_on: int
):
    """Every fourth step, and after epochs of five, whichever is later before the kill."""
    recipe = recipe_of(*EVERYTHING_RANDOM, "train.save_every=4")
    fit(recipe, data, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(recipe, data, tmp_path / "parts", observers=[Killer(killed_at)])
    there, parts = tmp_path / "parts/last", Diary()
    resume = load_checkpoint(there, training=True) if there.exists() else None
    if killed_at == 12:  # the observers hear of a step before it is saved
        goes_on = 10
    fit(recipe, data, tmp_path / "parts", resume=resume, observers=[parts])
    assert parts.starts == [(15, goes_on)]
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_what_is_saved_within_epochs_changes_nothing_else(data: FitData, tmp_path: Path):
    fit(recipe_of(), data, tmp_path / "without")
    fit(recipe_of("train.save_every=2"), data, tmp_path / "with")
    assert load_recipe("simple").train.save_every is None
    assert recipe_of("train.save_every=none").train.save_every is None
    one, other = weights_of(tmp_path / "with/last"), weights_of(tmp_path / "without/last")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_killed_between_best_and_last_loses_neither(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
):
    recipe = recipe_of("train.metric=psnr", *EVERYTHING_RANDOM)
    fit(recipe, data, tmp_path / "whole")

    def killed_at_last(checkpoint: Checkpoint, folder: LocalStore, **more: Any) -> None:
        if folder.path.name == "last" and checkpoint.epoch == epoch:
            raise Killed
        save_checkpoint(checkpoint, folder, **more)

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "save_checkpoint", killed_at_last)
        with pytest.raises(Killed):
            fit(recipe, data, tmp_path / "parts")
    assert (tmp_path / "parts/last").exists() == (epoch > 1)
    resume = load_checkpoint(tmp_path / "parts/last", training=True) if epoch > 1 else None
    fit(recipe, data, tmp_path / "parts", resume=resume)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_a_finished_run_has_nothing_to_resume(data: FitData, tmp_path: Path):
    scores = fit(recipe_of("train.epochs=1"), data, tmp_path)
    before = bytes_of(tmp_path)
    diary = Diary()
    resume = load_checkpoint(tmp_path / "last", training=True)
    again = fit(recipe_of("train.epochs=1"), data, tmp_path, resume=resume, observers=[diary])
    assert again == scores
    best = load_checkpoint(tmp_path / "best")
    # Told again, so that it is not lost with a kill.
    told = DecodingEvent(5, best.decoding, best.decoded, best.equal_cf)
    assert diary == Diary(starts=[(5, 5)], decodings=[told])
    assert bytes_of(tmp_path) == before


def test_what_does_not_fit_is_not_resumed(data: FitData, tmp_path: Path):
    recipe = recipe_of("train.epochs=1")
    fit(recipe, data, tmp_path)
    last = load_checkpoint(tmp_path / "last", training=True)
    elsewhere = data_of(Photos(8, seed=5), Photos(2, seed=6), "fedcba9876543210")
    with pytest.raises(CheckpointError, match=r"0123456789abcdef, this one is fedcba9876543210"):
        fit(recipe, elsewhere, tmp_path, resume=last)
    repainted = replace(data, palette=elsewhere.palette)
    with pytest.raises(CheckpointError, match=r"with the palette \w+, the dataset's is \w+ now"):
        fit(recipe, repainted, tmp_path, resume=last)
    wider = recipe_of("model.channels=8")
    with pytest.raises(CheckpointError, match="does not fit the recipe's model"):
        fit(wider, data, tmp_path, resume=last)
    with pytest.raises(CheckpointError, match="does not fit the recipe's model"):
        fit(recipe, data, tmp_path, resume=load_checkpoint(tmp_path / "best"))


@pytest.mark.slow
def test_a_run_killed_while_choosing_has_a_decoding_after_all(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: object, **__: object) -> None:
        raise Killed

    recipe = recipe_of("train.epochs=1")
    fit(recipe, data, tmp_path / "whole")
    for name in ("choose_decoding", "save_checkpoint"):
        with monkeypatch.context() as patch:
            if name == "save_checkpoint":
                patch.setattr(module, name, _killed_when_decoded)
            else:
                patch.setattr(module, name, killed)
            with pytest.raises(Killed):
                fit(recipe, data, tmp_path / name)
        assert load_checkpoint(tmp_path / name / "best").decoded == {}
        resume = load_checkpoint(tmp_path / name / "last", training=True)
        fit(recipe, data, tmp_path / name, resume=resume)
        assert bytes_of(tmp_path / name) == bytes_of(tmp_path / "whole")


def _killed_when_decoded(checkpoint: Checkpoint, folder: LocalStore, **more: Any) -> None:
    if checkpoint.decoded:
        raise Killed
    save_checkpoint(checkpoint, folder, **more)


def test_a_run_that_ended_before_there_were_decodings_gets_one(data: FitData, tmp_path: Path):
    fit(recipe_of("train.epochs=1"), data, tmp_path)
    whole = bytes_of(tmp_path)
    for record in (tmp_path / "best/checkpoint.json", tmp_path / "last/checkpoint.json"):
        values = json.loads(record.read_text())
        del values["decoding"], values["decoded"], values["equal_cf"]
        record.write_text(json.dumps(values))
    resume = load_checkpoint(tmp_path / "last", training=True)
    fit(recipe_of("train.epochs=1"), data, tmp_path, resume=resume)
    assert bytes_of(tmp_path)["best/checkpoint.json"] == whole["best/checkpoint.json"]
