"""The search without trainings: made-up score histories, and ASHA worked out by hand."""

from __future__ import annotations

import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colorcore.recipes.recipe import Recipe, load_recipe
from pipelines.errors import JobError, WrongCallError
from tune.search.objective import SIGN_PATIENCE, Ending, Objective, collapsed, objective_of
from tune.search.search import Search, SearchSettings, TrialRecord, default_grace
from tune.search.space import Space, default_space, space_of

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


@pytest.mark.slow
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


def test_a_journal_of_an_earlier_version_is_read(space: Space, tmp_path: Path) -> None:
    """It has an attribute per fact; now all facts of a moment share one."""
    journal, old = tmp_path / "study.log", tmp_path / "old.log"
    search = Search(space, Objective(), SearchSettings(), journal)
    play(search, 3)
    search.note(search.ask().number, run_id="abc")
    lines = []
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        (facts,) = entry.pop("user_attr", {"": {}}).values()
        parts = [{**entry, "user_attr": {name: value}} for name, value in facts.items()]
        lines += parts or [entry]
    old.write_text("".join(f"{json.dumps(entry)}\n" for entry in lines))
    assert '"user_attr": {"outcome": "finished"}' in old.read_text()
    again = Search(space, Objective(), SearchSettings(), old)
    assert again.records() == search.records()
    assert again.ended() == search.ended()


def test_tpe_avoids_collapsed_trials_whatever_their_scores(space: Space) -> None:
    """TPE samples near the best trials, which the collapsed ones must not be."""
    search = Search(
        space, Objective(), SearchSettings(startup=5, scheduler="none", prune_signs=True), None
    )
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
        search = Search(
            space, Objective(), SearchSettings(scheduler="none", prune_signs=prune), None
        )
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
        return 0.9 - 0.1 * math.log10(record.values["optim.lr"]) - 0.3 / epoch

    play(search, 9, by_lr)
    assert search.importances() == {}  # too few trials
    play(search, 40, by_lr)
    shares = search.importances()["auc_balanced"]
    assert math.isclose(sum(shares.values()), 1.0)
    assert shares["optim.lr"] > 0.6


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


# -- other samplers, schedulers and requirements -------------------------------------------------


def test_random_search_samples_every_value_by_the_seed_alone(space: Space) -> None:
    settings = SearchSettings(sampler="random", scheduler="none", seed=3)
    scores = [lambda record, _: 0.5, score]
    drawn = []
    for scored in scores:
        search = Search(space, Objective(), settings, None)
        play(search, 20, scored)
        drawn.append([record.values for record in search.records()])
    assert drawn[0] == drawn[1]  # whatever the scores were
    assert len({str(values) for values in drawn[0]}) == 20


@pytest.mark.slow
def test_a_grid_holds_every_combination_once_and_then_ends(tmp_path: Path) -> None:
    tables = {
        "data.batch": {"choices": [8, 16]},
        "model.depth": {"uniform": [2, 4]},
        "optim.lr": {"log": [1e-4, 1e-2]},
    }
    space, journal = space_of(tables, load_recipe("unet-l1")), tmp_path / "study.log"
    settings = SearchSettings(sampler="grid", scheduler="none", seed=1)
    search = Search(space, Objective(), settings, journal)
    assert (search.most(7), search.most(50)) == (7, 2 * 3 * 5)
    play(search, 11)
    play(Search(space, Objective(), settings, journal), 30)
    drawn = [
        tuple(r.values.values()) for r in Search(space, Objective(), settings, journal).records()
    ]
    rates = [1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2]
    assert {(b, d, round(math.log10(lr), 6)) for b, d, lr in drawn} == {
        (b, d, round(math.log10(lr), 6)) for b in (8, 16) for d in (2, 3, 4) for lr in rates
    }
    assert len(drawn) == 30
    other = Search(space, Objective(), replace(settings, seed=2), None)
    play(other, 30)
    assert [r.values for r in other.records()] != [r.values for r in search.records()]
    large = {f"loss_options.ab_huber.{name}": {"log": [0.1, 1]} for name in ("beta",)}
    many = {**tables, **large, "optim.weight_decay": {"log": [1e-6, 1e-1]}}
    many |= {f"loss.{name}": {"log": [0.1, 1.0]} for name in ("ab_l1", "ab_huber", "rgb_l1")}
    many |= {"model.dropout": {"uniform": [0.0, 0.4]}, "train.ema": {"uniform": [0.9, 0.99]}}
    with pytest.raises(
        WrongCallError, match=r"at most 100,000 combinations, got [\d,]+; search few"
    ):
        Search(space_of(many, load_recipe("unet-l1")), Objective(), settings, None)


@pytest.mark.slow
def test_cma_es_closes_in_and_resumes_as_if_never_interrupted(tmp_path: Path) -> None:
    """Its state is in the journal, where only the state of CMA-ES is unpickled."""
    space = space_of(
        {"optim.lr": {"log": [1e-6, 1e-1]}, "model.dropout": {"uniform": [0.0, 0.5]}},
        load_recipe("unet-l1"),
    )
    settings = SearchSettings(sampler="cmaes", scheduler="none", seed=4)

    def bowl(record: TrialRecord, _: int) -> float:
        rate, dropout = math.log10(record.values["optim.lr"]), record.values["model.dropout"]
        return 1.0 - 0.1 * (rate + 4.5) ** 2 - (dropout - 0.1) ** 2

    whole = Search(space, Objective(), settings, None)
    play(whole, 60, bowl)
    journal = tmp_path / "study.log"
    for trials in (13, 14, 40, 60):
        play(Search(space, Objective(), settings, journal), trials, bowl)
    parts = Search(space, Objective(), settings, journal)
    assert parts.records() == whole.records()
    reached = [bowl(record, 0) for record in whole.records()]
    assert np.mean(reached[-10:]) > 0.96 > np.mean(reached[:10])  # the best possible is 1

    evil = pickle.dumps(Evil()).hex()
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    states = [
        line["system_attr"] for line in lines if "cma:optimizer:0" in line.get("system_attr", {})
    ]
    assert states
    for state in states:
        state["cma:optimizer:0"] = evil
        state |= {key: "" for key in state if key != "cma:optimizer:0"}
    for line in lines:
        for key in line.get("system_attr", {}):
            if key.startswith("cma:optimizer:") and key != "cma:optimizer:0":
                line["system_attr"][key] = ""
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(JobError, match=r"expected the state of CMA-ES .* found \w+\.mkdir;"):
        Search(space, Objective(), settings, journal).ask()


class Evil:
    """Its pickle runs a command when it is read."""

    def __reduce__(self):
        return os.mkdir, ("/nonexistent/evil",)


def test_the_median_rule_stops_what_is_below_the_median_of_the_finished(space: Space) -> None:
    search = Search(space, Objective(), SearchSettings(scheduler="median", grace=2), None)
    given = [0.5, 0.6, 0.7, 0.8, 0.64, 0.66]
    play(search, len(given), lambda record, _: given[record.number])
    ended = [(record.outcome, record.epochs) for record in search.records()]
    # Four finish in any case. Their median is 0.65: 0.64 ends at epoch 2, 0.66 does not.
    assert ended == [("finished", EPOCHS)] * 4 + [("stopped", 2), ("finished", EPOCHS)]


def test_hyperband_spreads_trials_over_brackets_with_different_first_rungs(space: Space) -> None:
    settings = SearchSettings(scheduler="hyperband", grace=1, reduction=3)
    search = Search(space, Objective(), settings, None, epochs=EPOCHS)
    # Each trial is worse than all before it.
    play(search, 30, lambda record, _: 0.9 - record.number / 100)
    stopped = {record.epochs for record in search.records() if record.outcome == "stopped"}
    assert stopped == {1, 3}  # the third bracket stops none
    unstopped = [record for record in search.records() if record.outcome == "finished"]
    assert len(unstopped) > 3


def test_a_requirement_ranks_what_keeps_it_first(space: Space) -> None:
    objective = objective_of(["auc_balanced"], ["cf_gap<20", "psnr >= 21.5"])
    search = Search(space, objective, SearchSettings(), None)
    given = [(0.90, 30.0, 22.0), (0.85, 19.0, 22.0), (0.80, 10.0, 22.0), (0.88, 21.0, 21.0)]
    for auc, gap, psnr in given:
        record = search.ask()
        scores = {"auc_balanced": auc, "cf_gap": gap, "psnr": psnr}
        search.report(record.number, 1, scores)
        end(search, record, None, scores)
    # 1 and 2 keep both; 3 misses by 1/20 + 0.5/21.5, 0 by 10/20.
    assert [record.number for record in search.ranked()] == [1, 2, 3, 0]
    assert objective.missed(search.record(3).scores) == pytest.approx(1 / 20 + 0.5 / 21.5)
    for wrong in ("cf_gap", "cf_gap<", "cf_gap<x", "cf_gap=20", "<20", "cf_gap<inf", "cf_gap<nan"):
        with pytest.raises(
            WrongCallError, match=r"expected a metric and a bound such as 'cf_gap<20'"
        ):
            objective_of([], [wrong])
    with pytest.raises(WrongCallError, match=r"unknown metric 'gap'; did you mean cf_gap\?"):
        objective_of([], ["gap<20"])


def test_tpe_searches_within_a_requirement(space: Space) -> None:
    """Scores rise with the learning rate, and so does the gap, which may not exceed 20."""
    objective = objective_of([], ["cf_gap<20"])
    found = {}
    for name, bound in (("free", objective_of([])), ("bounded", objective)):
        search = Search(space, bound, SearchSettings(startup=8, scheduler="none", seed=1), None)
        for _ in range(60):
            record = search.ask()
            rate = math.log10(record.values["optim.lr"]) + 5  # 0 to 2
            scores = {"auc_balanced": 0.5 + 0.2 * rate, "cf_gap": 10 + 20 * rate}
            search.report(record.number, 1, scores)
            end(search, record, None, scores)
        late = search.records()[30:]
        found[name] = sum(record.scores["cf_gap"] < 20 for record in late)
        best = search.ranked()[0].scores
    assert best["cf_gap"] < 20
    assert best["auc_balanced"] > 0.57  # the bound allows up to 0.6
    assert found["free"] <= 5
    assert found["bounded"] >= 15
