"""`cc doctor` from outside: the table, the advice and the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.processes import run_cc


@pytest.mark.slow
def test_a_sound_machine_is_exit_code_0_and_leaves_nothing(tmp_path: Path) -> None:
    answer = run_cc("doctor", "--quick", cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    rows = [line.split() for line in answer.stdout.splitlines()]
    assert ["precursor:", "resume", "ok"] in [row[:3] for row in rows]
    assert answer.stdout.rstrip().endswith(" 0 FAIL")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_failed_check_is_exit_code_1_and_says_what_to_do(dataset: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(dataset, tmp_path / "dataset")
    shutil.rmtree(copied / "palette", ignore_errors=True)
    answer = run_cc("doctor", copied, "--quick", "--json", cwd=tmp_path)
    assert answer.returncode == 1, answer.stderr
    found = json.loads(answer.stdout)
    (line,) = [check for check in found["checks"] if check["verdict"] == "FAIL"]
    assert found["fail"] == 1
    assert line["check"] == "palette"
    assert "cc priors" in line["advice"]
