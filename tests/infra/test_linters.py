"""shellcheck and hadolint find nothing; every script is executable and strict."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.infra.files import INFRA, ROOT, run, tool

SCRIPTS = [
    *sorted(INFRA.rglob("*.sh")),
    *sorted(INFRA.rglob("*.sbatch")),
    ROOT / ".ci" / "run",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    answer = run(tool("shellcheck"), "--shell=bash", script)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run_and_stop_at_unset_variables(script: Path) -> None:
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text or "set -uo pipefail" in text


def test_hadolint_finds_nothing() -> None:
    answer = run(tool("hadolint"), INFRA / "docker" / "Dockerfile")
    assert answer.returncode == 0, answer.stdout


def test_the_linters_do_find_faults(tmp_path: Path) -> None:
    script = tmp_path / "bad.sh"
    script.write_text("#!/bin/bash\nrm -rf $1/*\n")
    assert "SC2086" in run(tool("shellcheck"), script).stdout
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM debian:latest\nRUN cd /tmp\n")
    assert "DL3007" in run(tool("hadolint"), dockerfile).stdout
