"""Seconds per trial of `cc tune` beyond its epochs: this tree, and one of an earlier commit.

The default commit is the last one whose trials ran on an executor of our own instead of Ray Tune.
Both run as their users would, in turn, each in a process of its own: six trials of two short
epochs, one at a time, with one and with two workers.

Predicted before the first measurement, for this tree against that one, from prototypes: 2.0 s per
trial against 2.9 s with one worker, 3.0 against 5.4 with two; a further trial in warm processes
0.3 s.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.paired import head, row
from tests.mlflow_store import new_store
from tests.trainings import TINY

ROOT = Path(__file__).parents[2]
BEFORE = "0b389f5"
TRIALS = 6


def run(dataset: Path, work: Path, *, rounds: int, before: str = BEFORE) -> None:
    """Print the mean overhead per trial, and that of the trials after the first."""
    with _tree_of(before, work) as other:
        for workers in (1, 2):
            pairs = [
                [overheads(tree, dataset, work, workers) for tree in (ROOT, other)]
                for _ in range(rounds)
            ]
            name = f"tune, s per trial beyond epochs, {workers} worker{'s' * (workers > 1)}"
            row(f"{name}: {before}", *_sides(pairs, lambda each: sum(each) / len(each)))
            row(
                f"{name}, warm: {before}", *_sides(pairs, lambda each: sum(each[1:]) / (TRIALS - 1))
            )


def _sides(pairs: list[list[list[float]]], figure) -> Iterator[list[float]]:
    return ([figure(pair[side]) for pair in pairs] for side in (0, 1))


def overheads(tree: Path, dataset: Path, work: Path, workers: int) -> list[float]:
    """Seconds beyond its epochs of each trial of a study by the code of ``tree``."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        (Path(folder) / "space.toml").write_text('["optim.lr"]\nlog = [1e-4, 1e-2]\n')
        never = ["--scheduler", "none"] if (tree / "tune/trials").exists() else ["--grace", "0"]
        command = [
            sys.executable, "-m", "cli.main", "tune", str(dataset), "--recipe", "unet-l1",
            *(word for each in TINY for word in ("--set", each)), "--space", "space.toml", *never,
            "--trials", str(TRIALS), "--concurrent", "1", "--workers", str(workers),
            "--tracking-uri", new_store(Path(folder)), "--out", "study",
        ]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        with (Path(folder) / "study/trials.csv").open(newline="") as table:
            return [
                float(trial["seconds"]) - float(trial["seconds_in_epochs"])
                for trial in csv.DictReader(table)
            ]


@contextmanager
def _tree_of(commit: str, work: Path) -> Iterator[Path]:
    tree = work / f"tree-{commit}"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(tree), commit], check=True, capture_output=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


def main() -> None:
    """Measure on a dataset with a palette."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", default=BEFORE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="colorcore-bench-") as folder:
        head()
        run(
            arguments.dataset.absolute(), Path(folder),
            rounds=arguments.rounds, before=arguments.before,
        )  # fmt: skip


if __name__ == "__main__":
    main()
