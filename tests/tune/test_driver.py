"""The driver of a study, without trainings: the order in which events may arrive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tune.driver import StudyDriver
from tune.objective import ValidationReport


def test_a_report_read_after_its_trial_was_given_up_changes_nothing(tmp_path: Path) -> None:
    """A killed rank's last report may still be in the mailbox when its trial has failed."""
    reported: list[int] = []
    search: Any = SimpleNamespace(report=lambda number, *_, **__: reported.append(number))
    none: Any = None
    driver = StudyDriver(
        none, none, tmp_path, search, none, "study", 1, 1, 1, print, print, print
    )  # fmt: skip
    report = ValidationReport(0, 2, 2, {"psnr": 20.0}, (), is_last=False, seconds=1.0)
    assert driver._on_report(report) is None
    assert not reported
