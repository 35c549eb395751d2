"""The exit code of `cc shard` for each way a job can end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli.shard import _exit_code
from pipelines.sharding.job import ShardReport

GOOD = ShardReport(
    dataset="data",
    photos=100,
    kept={"train": 80, "val": 5},
    refused={"greyscale": 5, "truncated": 6, "empty": 4},
    duplicates=0,
    ignored={},
    units=2,
    new_photos=100,
    failed={},
    worker_cpu_s=0.3,
    fingerprint="0123456789abcdef",
)


def test_refused_photos_are_no_failure() -> None:
    assert _exit_code(GOOD, max_damaged_percent=10) == 0


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (replace(GOOD, failed={1: "OSError: full"}), "1 of 2 units failed"),
        (replace(GOOD, kept={"train": 0, "val": 0}), "no photo was kept"),
        (replace(GOOD, refused={"truncated": 7, "empty": 4}), "11 of 100 photos are damaged"),
    ],
)
def test_what_fails_the_command_is_said(
    report: ShardReport, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(report, max_damaged_percent=10) == 1
    assert said in capsys.readouterr().err
