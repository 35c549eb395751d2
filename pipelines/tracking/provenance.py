"""What made a run: versions, the revision of the code around it, and who started it."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from colorcore import __version__
from pipelines.tracking.names import (
    BRANCH_TAG,
    COMMIT_TAG,
    PACKAGE_TAG,
    SOURCE_TAG,
    SOURCE_TYPE_TAG,
    USER_TAG,
    VERSION_TAG,
)

GIT_S = 5.0
"""Seconds that git may take to answer."""


def provenance(folder: Path) -> dict[str, str]:
    """The tags of a run that is started in a folder, under MLflow's own names where it has one."""
    tags = {SOURCE_TAG: "cc", SOURCE_TYPE_TAG: "LOCAL", VERSION_TAG: __version__}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags[USER_TAG] = getpass.getuser()
    for package in ("torch", "ray", "mlflow"):
        with contextlib.suppress(PackageNotFoundError):
            tags[PACKAGE_TAG + package] = version(package)
    if commit := _git(folder, "rev-parse", "--verify", "HEAD"):
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        tags[COMMIT_TAG] = f"{commit}-dirty" if changed else commit
        if branch := _git(folder, "symbolic-ref", "--short", "HEAD"):
            tags[BRANCH_TAG] = branch
    return tags


def _git(folder: Path, *words: str) -> str:
    """The output of git, or "" if there is no git or no repository; git never prompts."""
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
