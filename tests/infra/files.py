"""Helpers for the tests of infra/: paths, versions, and tools that check files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SCHEMAS = Path(__file__).parent / "schemas"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|PRIVATE|CREDENTIAL", re.IGNORECASE)
"""Matches variable names that could hold a secret."""
NAMES_A_FILE = re.compile(r"(_FILE|_PATH|PASSFILE)$")


def tool(name: str) -> str:
    """The path of a program next to this Python or on PATH; skips the test if there is none."""
    here = Path(sys.executable).with_name(name)
    found = str(here) if here.exists() else shutil.which(name)
    if found is None:  # from .[dev], or from a system package
        pytest.skip(f"{name} is not installed (make setup, or the system's packages)")
    return found


def documents(path: Path) -> list[dict[str, Any]]:
    """The non-empty documents of a YAML file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


@cache
def constraints() -> dict[str, str]:
    """Package versions from constraints.txt, by lower-case name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.strip() for name, _, version in pairs}


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def validator(schema: str, definition: str | None = None) -> jsonschema.protocols.Validator:
    """A validator for a file in schemas/, or for one definition in it."""
    registry: Registry[Any] = Registry().with_resources(
        (path.name, Resource.from_contents(json.loads(path.read_text()), DRAFT202012))
        for path in SCHEMAS.glob("*.json")
    )
    reference = schema + (f"#/definitions/{definition}" if definition else "")
    return jsonschema.Draft202012Validator({"$ref": reference}, registry=registry)


def faults(check: jsonschema.protocols.Validator, document: Any) -> list[str]:
    """All validation errors, each as ``place: reason``."""
    return [f"{error.json_path}: {error.message}" for error in check.iter_errors(document)]


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar below a YAML node, with its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def run(
    *words: str | Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    seconds: int = 60,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False,
        env=env, cwd=cwd, timeout=seconds, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def program(path: Path, text: str) -> Path:
    """Writes an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@cache
def ray_start_options() -> frozenset[str]:
    """The options that the installed `ray start` accepts."""
    from ray.scripts.scripts import start

    return frozenset(option for each in start.params for option in each.opts)


def options_of(words: list[str]) -> set[str]:
    """The long options among a command's words."""
    return {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
