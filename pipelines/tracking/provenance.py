"""What made a run: versions, the revision of the code around it, and who started it."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from colorcore import __version__

GIT_S = 5.0
"""Seconds that git may take to answer."""


def provenance(folder: Path) -> dict[str, str]:
    """The tags of a run that is started in a folder: MLflow's own names where it has one."""
    tags = {
        "mlflow.source.name": "cc",
        "mlflow.source.type": "LOCAL",
        "colorcore.version": __version__,
    }
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    for package in ("torch", "ray", "mlflow"):
        with contextlib.suppress(PackageNotFoundError):
            tags[f"colorcore.{package}"] = version(package)
    if commit := _git(folder, "rev-parse", "--verify", "HEAD"):
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        tags["mlflow.source.git.commit"] = f"{commit}-dirty" if changed else commit
        if branch := _git(folder, "symbolic-ref", "--short", "HEAD"):
            tags["mlflow.source.git.branch"] = branch
    return tags


def _git(folder: Path, *words: str) -> str:
    """What git says; "" where there is no git, or nothing of its own. It asks nobody anything."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, check=True, timeout=GIT_S, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
