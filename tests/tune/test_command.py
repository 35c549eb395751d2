"""`cc tune --dry-run`: what it prints, which starts no trial."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cli.main import main
from cli.options import parse_duration
from colorcore.recipes.recipe import DEFAULT, load_recipe


@pytest.fixture
def dry_run(dataset_with_palette: Path, capsys: pytest.CaptureFixture[str]):
    def call(*options: str) -> str:
        code = main(["colorcore", "tune", str(dataset_with_palette), "--dry-run", *options])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return call


SMALL = ("--recipe", "simple", "--set", "data.batch=4", "--set", "train.epochs=32")


def test_a_dry_run_prints_the_search_and_what_it_leaves_out(dry_run) -> None:
    printed = dry_run(*SMALL, "--trials", "9")
    assert "data.batch is not searched: --set fixes it" in printed
    assert "loss.weighted_mse is not searched: with a single loss term AdamW" in printed
    assert "objective: auc_balanced; 9 trials by tpe, seed 0" in printed
    assert "trial 0 (not sampled): optim.lr 5e-05, model.channels 96" in printed
    assert "trial 1 (not sampled): optim.lr 5e-05, model.channels 128" in printed
    assert "ASHA promotes about one in 4 trials after 2, 8 of 32 epochs" in printed


def test_the_study_table_reaches_the_search(dry_run, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('[study]\nreduction = 2\nstartup = 3\n["optim.lr"]\nlog = [1e-3, 1e-2]\n')
    printed = dry_run(*SMALL, "--space", str(file))
    assert "ASHA promotes about one in 2 trials after 8, 16 of 32 epochs" in printed
    assert "the recipe's own values lie outside the search space" in printed
    shown = json.loads(dry_run(*SMALL, "--space", str(file), "--set", "optim.lr=2e-3", "--json"))
    assert shown["space"] == {"optim.lr": {"log": [1e-3, 1e-2]}}
    assert shown["first"] == [{"optim.lr": 2e-3}]
    assert shown["search"] == {
        "seed": 0, "sampler": "tpe", "startup": 3, "scheduler": "asha", "grace": 8, "reduction": 2,
        "prune_signs": True,
    }  # fmt: skip


@pytest.mark.slow
def test_a_dry_run_tells_how_trials_are_sampled_and_stopped(dry_run, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('["optim.lr"]\nlog = [1e-4, 1e-2]\n["data.flip"]\nchoices = [true, false]\n')
    words = (*SMALL, "--space", str(file))
    grid = dry_run(*words, "--search", "grid", "--scheduler", "none", "--require", "cf_gap<20")
    assert "objective: auc_balanced, cf_gap<20; 10 trials by grid, seed 0" in grid
    assert "not sampled" not in grid
    assert "no trial is stopped for its score" in grid
    few = dry_run(*words, "--search", "grid", "--trials", "3")
    assert "3 trials by grid" in few
    median = dry_run(*words, "--search", "random", "--scheduler", "median", "--grace", "5")
    assert "trials below the median are stopped from epoch 5 of 32" in median
    assert "outside the search space" not in median
    assert "Hyperband stops trials from epoch 2 of 32" in dry_run(*words, "--scheduler=hyperband")
    shown = json.loads(dry_run(*words, "--require", "psnr>=22", "--json"))
    assert shown["require"] == ["psnr>=22"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("8h", 28_800), ("1d12h", 129_600), ("1h30m", 5_400)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text, "--time-budget") == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "-1h", "1y", "h", "1 h", "8hours", "1h30"])
def test_wrong_durations_are_refused(
    text: str, dataset_with_palette: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", str(dataset_with_palette), "--dry-run", *SMALL, f"--time-budget={text}"]
    assert main(["colorcore", *words]) == 2
    assert f"expected a duration such as 90m, 8h or 1d12h, got {text!r}" in _one_line(capsys)


def test_unknown_algorithms_are_refused(
    dataset_with_palette: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["colorcore", "tune", str(dataset_with_palette), "--dry-run", *SMALL]
    assert main([*words, "--search", "bayes"]) == 2
    assert "'bayes' is not one of 'tpe', 'random', 'grid', 'cmaes'" in _one_line(capsys)
    assert main([*words, "--require", "cf_gap=20"]) == 2
    assert "such as 'cf_gap<20', got 'cf_gap=20'" in _one_line(capsys)


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error without the frame and the line breaks of the terminal's width."""
    printed = capsys.readouterr().err
    return " ".join(printed.replace("│", " ").split())


@pytest.mark.slow
def test_the_default_is_the_best_recipe_and_a_space_centred_on_it(dry_run) -> None:
    own = load_recipe(DEFAULT)
    words = ("--json", "--set", "data.batch=4")
    assert dry_run(*words) == dry_run(*words, "--recipe", DEFAULT)
    shown = json.loads(dry_run(*words))
    weights = {f"loss.{name}": weight for name, weight in own.loss.items()}
    assert list(shown["space"]) == ["optim.lr", "model.channels", *weights]
    for path, value in {"optim.lr": own.optim.lr, **weights}.items():
        assert math.sqrt(math.prod(shown["space"][path]["log"])) == pytest.approx(value)
    assert own.model.options()["channels"] in shown["space"]["model.channels"]["choices"]
    assert shown["first"][0] == {
        "optim.lr": own.optim.lr,
        "model.channels": own.model.options()["channels"],
        **weights,
    }
