"""Every name that MLflow knows this project by is written down once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipelines.tracking import names

ROOT = Path(__file__).parents[3]
FLOORS = ("cli", "tune", "pipelines", "colorcore")
NAMES = Path(names.__file__)
PREFIXES = ("colorcore.", "mlflow.")
"""What the tags of a run begin with."""
FILE = "mlflow.db"
"""The one text that begins like a tag and is a file's name."""
OTHERS = ("mlflow_internals.py", "onnx_facts.py")
"""Files whose texts begin like a tag: MLflow's own tags, and keys of an ONNX file's metadata."""


def tags_in(path: Path) -> list[str]:
    """Texts in a file that name a tag, also within a filter; docstrings do not count.

    Neither does an object's place, ``module:name``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        f"{path.name}:{node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in prose
        if isinstance(node.value, str)
        if (node.value.startswith(PREFIXES) and node.value != FILE and ":" not in node.value)
        or "tags.`colorcore." in node.value
    ]


def files() -> list[Path]:
    found = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    assert NAMES in found
    return found


def test_tags_are_named_in_one_file() -> None:
    others = [path for path in files() if path != NAMES and path.name not in OTHERS]
    assert [tag for path in others for tag in tags_in(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        'TAG = "colorcore.kind"',
        'tags = {"mlflow.user": user}',
        'f"tags.`colorcore.study` = {name}"',
    ],
)
def test_a_tag_elsewhere_is_found(code: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'"""A docstring of colorcore.kind."""\n{code}\n', encoding="utf-8")
    assert len(tags_in(path)) == 1


def test_no_two_names_are_the_same() -> None:
    values = [value for name, value in vars(names).items() if name.endswith(("_TAG", "_KEY"))]
    assert len(set(values)) == len(values)
