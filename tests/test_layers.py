"""Imports go down only: cli -> tune -> pipelines -> colorcore; and colorcore stays clean."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["cli", "tune", "pipelines", "colorcore"]
FORBIDDEN_IN_COLORCORE = {"ray", "mlflow", "typer", "rich"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_itself_and_lower_ones(layer: str) -> None:
    above = set(LAYERS[: LAYERS.index(layer)]) | {"tests"}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(layer)
        for name in imported(path)
        if name in above
    }
    assert not wrong


def test_colorcore_knows_nothing_of_ray_mlflow_and_the_command_line() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("colorcore")
        for name in imported(path)
        if name in FORBIDDEN_IN_COLORCORE
    }
    assert not wrong


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def f():\n    from ray.train import report\n    import mlflow.entities\n")
    assert set(imported(module)) == {"ray", "mlflow"}


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("colorcore.training.fit", {"cv2", "PIL", "sklearn", "matplotlib", "webdataset"}),
        ("colorcore.dataset.unit", {"torch", "kornia", "sklearn", "matplotlib"}),
        ("colorcore.color.palette", {"torch", "cv2", "sklearn", "matplotlib"}),
        ("pipelines.training.board", {"torch", "numpy", "ray", "mlflow"}),
        ("tune.desk", {"torch", "numpy", "ray", "mlflow", "optuna"}),
    ],
)
def test_a_process_loads_no_library_that_it_has_no_use_for(module: str, unneeded: set[str]) -> None:
    code = (
        f"import sys, {module}\nloaded = {unneeded!r} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert answer.returncode == 0, answer.stderr


def test_every_package_is_typed_and_shipped() -> None:
    packages = [name for name in LAYERS if (ROOT / name).is_dir()]
    shipped = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in packages:
        assert (ROOT / package / "py.typed").is_file()
        assert f'"{package}"' in shipped
