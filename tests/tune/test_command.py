"""`cc tune --dry-run`: what it prints, which starts no trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import main


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
