"""The search without trainings: made-up score histories, and ASHA worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from colorcore.recipes.recipe import Recipe, load_recipe
from pipelines.errors import WrongCallError
from tune.objective import SIGN_PATIENCE, Ending, Objective, collapsed, objective_of
from tune.search import Search, SearchSettings, TrialRecord, default_grace
from tune.space import Space, default_space, space_of

EPOCHS = 9


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("bins")


@pytest.fixture(scope="module")
def space(recipe: Recipe) -> Space:
    return default_space(recipe)


def score(record: TrialRecord, epoch: int) -> float:
    """A score that rises to the end; best at lr 2e-4, batch 16; other values have no effect."""
    miss = abs(math.log10(record.values["optim.lr"] / 2e-4))
    miss += 0.3 * abs(math.log2(record.values["data.batch"] / 16))
    return 0.9 - 0.1 * miss - 0.3 / epoch


def play(search: Search, trials: int, scored=score) -> None:
    """Run trials as the driver does, with made-up scores in place of trainings."""
    while len(search.records()) < trials:
        train(search, search.ask(), scored)


def train(search: Search, record: TrialRecord, scored=score, start: int = 1) -> None:
    ending, scores = None, {}
    for epoch in range(start, EPOCHS + 1):
        scores = {"auc_balanced": scored(record, epoch)}
        ending = search.report(record.number, epoch, scores, is_last=epoch == EPOCHS)
        if ending is not None:
            break
    end(search, record, ending, scores, epoch)


def end(
    search: Search, record: TrialRecord, ending: Ending | None, scores: dict, epoch: int = 0
) -> None:
    outcome, reason = (ending.outcome, ending.reason) if ending else ("finished", "")
    search.tell(replace(record, outcome=outcome, reason=reason, scores=scores, epochs=epoch))


def test_asha_keeps_the_best_third_at_each_rung(space: Space) -> None:
    """Trials one after the other; scores are constant, so rung 1 and 3 see the same values."""
    search = Search(space, Objective(), SearchSettings(grace=1, reduction=3), None)
    given = [0.5, 0.4, 0.6, 0.55, 0.3, 0.7, 0.65, 0.2, 0.1]
    # At rung 1, with n values seen, the best max(1, n // 3) continue: 0.5 (first); 0.4 no; 0.6 best
    # of 3; 0.55 of 4 no; 0.3 no; 0.7 of 6, top 2; 0.65 of 7, top 2 are .7 .65; the rest no. At
    # rung 3 come 0.5 (first), 0.6 best of 2, 0.7 best of 3, 0.65 of 4: the best alone is 0.7.
    play(search, len(given), lambda record, _: given[record.number])
    ended = [(record.outcome, record.epochs) for record in search.records()]
    whole, first = ("finished", EPOCHS), ("stopped", 1)
    assert ended == [whole, first, whole, first, first, whole, ("stopped", 3), first, first]
    assert search.records()[6].reason == "behind other trials: auc_balanced 0.6500 after epoch 3"


def test_asha_compares_best_scores_so_far(space: Space) -> None:
    """The second is worse at the rung, but was better than the first before it."""
    search = Search(space, Objective(), SearchSettings(grace=3), None)
    histories = [[0.5] * 9, [0.4, 0.6, *[0.3] * 7]]
    play(search, 2, lambda record, epoch: histories[record.number][epoch - 1])
    assert [record.outcome for record in search.records()] == ["finished", "finished"]


@pytest.mark.parametrize(("name", "sign"), [("auc_balanced", 1.0), ("delta_e2000", -1.0)])
def test_no_trial_is_stopped_for_being_behind_a_collapsed_one(
    space: Space, tmp_path: Path, name: str, sign: float
) -> None:
    """The first one is far ahead until its colours collapse; the journal remembers it."""
    journal = tmp_path / "study.log"
    search = Search(space, Objective((name,)), SearchSettings(grace=1, reduction=3), journal)

    def reached(record: TrialRecord, epochs: int, score: float, *signs: str) -> Ending | None:
        endings = [
            search.report(record.number, epoch, {name: sign * score}, signs)
            for epoch in range(1, epochs + 1)
        ]
        assert endings[:-1] == [None] * (epochs - 1)
        return endings[-1]

    first, second, third = (search.ask() for _ in range(3))
    pruned = reached(first, SIGN_PATIENCE, 0.9, "sepia")
    assert pruned is not None
    assert pruned.outcome == "pruned"
    behind = reached(second, 1, 0.8)  # the first is still training
    assert behind is not None
    assert behind.outcome == "stopped"
    end(search, first, pruned, {name: sign * 0.9})
    end(search, second, behind, {name: sign * 0.8})
    search = Search(space, Objective((name,)), SearchSettings(grace=1, reduction=3), journal)
    assert reached(third, EPOCHS, 0.85) is None


def test_tpe_finds_what_random_values_miss(space: Space) -> None:
    def best(startup: int, seed: int) -> float:
        search = Search(space, Objective(), SearchSettings(seed=seed, startup=startup), None)
        play(search, 60)
        return search.ranked()[0].scores["auc_balanced"]

    found = [best(8, seed) for seed in range(5)]
    at_random = [best(1000, seed) for seed in range(5)]
    assert sum(one > other for one, other in zip(found, at_random, strict=True)) >= 4


def test_the_same_seed_is_the_same_study_also_across_interruptions(
    space: Space, tmp_path: Path
) -> None:
    whole, other = (Search(space, Objective(), SearchSettings(seed=seed), None) for seed in (5, 6))
    play(whole, 30)
    play(other, 30)
    journal = tmp_path / "study.log"
    for trials in (7, 8, 21, 30):
        parts = Search(space, Objective(), SearchSettings(seed=5), journal)
        play(parts, trials)
    assert parts.records() == whole.records()
    assert [r.values for r in other.records()] != [r.values for r in whole.records()]


def test_a_killed_study_has_its_unfinished_trials_despite_an_incomplete_last_line(
    space: Space, tmp_path: Path
) -> None:
    journal = tmp_path / "study.log"
    search = Search(space, Objective(), SearchSettings(), journal)
    play(search, 3)
    started = search.ask()
    search.note(started.number, run_id="abc")
    assert search.report(started.number, 1, {"auc_balanced": 0.99}) is None
    with journal.open("ab") as file:
        file.write(b'{"op_code": 8, "wor')
    (tmp_path / "study.log.lock").symlink_to(journal)  # of a process that is gone
    again = Search(space, Objective(), SearchSettings(), journal)
    (unfinished,) = again.unfinished()
    assert unfinished == replace(started, run_id="abc", epochs=1)
    assert (
        again.report(started.number, 1, {"auc_balanced": 0.1}) is None
    )  # reported twice, kept once
    train(again, unfinished, lambda *_: 0.99, start=2)
    third = Search(space, Objective(), SearchSettings(), journal)
    assert third.records() == again.records()
    assert third.ranked()[0].number == started.number


def test_tpe_avoids_collapsed_trials_whatever_their_scores(space: Space) -> None:
    """TPE samples near the best trials, which the collapsed ones must not be."""
    search = Search(space, Objective(), SearchSettings(startup=5, grace=0, prune_signs=True), None)
    for _ in range(30):
        record = search.ask()
        high = record.values["optim.lr"] > 1e-4
        # The trials that collapse have the best scores.
        scores = {"auc_balanced": 0.9 if high else 0.5}
        for epoch in (1, 2, 3):
            signs = ("grey",) if high else ()
            ending = search.report(record.number, epoch, scores, signs)
        end(search, record, ending, scores, 3)
    outcomes = {record.outcome for record in search.records()}
    assert outcomes == {"pruned", "finished"}
    late = search.records()[15:]
    assert sum(record.values["optim.lr"] > 1e-4 for record in late) <= 3
    assert "grey" in next(r.reason for r in search.records() if r.outcome == "pruned")


def test_a_collapse_is_a_sign_in_three_consecutive_validations() -> None:
    grey, pale = ("grey", "washed_out"), ("washed_out",)
    assert collapsed([grey, grey]) is None
    assert collapsed([grey, grey, grey]) == "grey"
    assert collapsed([grey, grey, pale]) is None
    assert collapsed([pale, pale, pale]) is None
    assert collapsed([("sepia",), grey, ("sepia",)]) is None
    assert collapsed([(), grey, grey, ("diverged", "grey")]) == "grey"


def test_signs_prune_unless_turned_off(space: Space) -> None:
    for prune, outcome in ((True, "pruned"), (False, None)):
        search = Search(space, Objective(), SearchSettings(grace=0, prune_signs=prune), None)
        number = search.ask().number
        endings = [search.report(number, e, {"auc_balanced": 0.8}, ("sepia",)) for e in (1, 2, 3)]
        assert endings[:2] == [None, None]
        assert (endings[2] and endings[2].outcome) == outcome


def test_a_nan_score_fails_the_trial(space: Space) -> None:
    search = Search(space, Objective(), SearchSettings(), None)
    ending = search.report(search.ask().number, 1, {"auc_balanced": math.nan})
    assert ending == Ending("failed", "auc_balanced is nan on the validation photos")


def test_two_metrics_have_a_front(space: Space) -> None:
    objective = objective_of(["psnr", "cf_gap"])  # one up, one down
    search = Search(space, objective, SearchSettings(startup=3), None)
    given = [(22.0, 30.0), (21.0, 20.0), (20.5, 25.0), (22.0, 35.0), (19.0, 15.0), (18.0, 15.0)]
    for psnr, gap in given:
        record, scores = search.ask(), {"psnr": psnr, "cf_gap": gap}
        assert search.report(record.number, 1, scores) is None
        end(search, record, None, scores)
    assert [record.number for record in search.front()] == [0, 1, 4]
    failed = search.ask()
    end(search, failed, Ending("failed", "an error"), {})
    assert [record.number for record in search.front()] == [0, 1, 4]


def test_the_setting_that_decides_has_the_importance(space: Space) -> None:
    search = Search(space, Objective(), SearchSettings(), None)

    def by_lr(record: TrialRecord, epoch: int) -> float:
        return 0.9 - 0.1 * abs(math.log10(record.values["optim.lr"] / 2e-4)) - 0.3 / epoch

    play(search, 9, by_lr)
    assert search.importances() == {}  # too few trials
    play(search, 40, by_lr)
    shares = search.importances()["auc_balanced"]
    assert math.isclose(sum(shares.values()), 1.0)
    assert shares["optim.lr"] > 0.8


def test_wrong_metrics_are_refused() -> None:
    assert objective_of([]).metrics == ("auc_balanced",)
    with pytest.raises(WrongCallError, match=r"unknown metric 'pnsr'; did you mean psnr\?"):
        objective_of(["pnsr"])
    with pytest.raises(WrongCallError, match="two different ones"):
        objective_of(["psnr", "psnr"])
    with pytest.raises(WrongCallError, match="one metric, or two"):
        objective_of(["psnr", "ssim", "auc"])


@pytest.mark.parametrize(
    ("epochs", "eval_every", "grace"), [(9, 1, 1), (100, 1, 6), (100, 5, 10), (3, 1, 1), (8, 4, 4)]
)
def test_the_default_grace_has_two_rungs_and_ends_at_a_validation(
    epochs: int, eval_every: int, grace: int
) -> None:
    assert default_grace(epochs, eval_every) == grace


def test_integers_stay_integers_through_the_journal(tmp_path: Path, recipe: Recipe) -> None:
    tables = {"model.channels": {"uniform": [4, 64]}, "data.flip": {"choices": [True, False]}}
    space = space_of(tables, load_recipe("simple"))
    sampled = Search(space, Objective(), SearchSettings(), tmp_path / "j").ask().values
    read = Search(space, Objective(), SearchSettings(), tmp_path / "j").record(0).values
    assert read == sampled
    assert type(read["model.channels"]) is int
    assert type(read["data.flip"]) is bool
