"""The Dockerfile's steps without Docker: build the wheel, install it, run it."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.infra.files import ROOT, program, pyproject, run

PACKAGES = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the working tree as .dockerignore admits it to a build."""
    if importlib.util.find_spec("hatchling") is None:  # build backend, only in .[dev]
        pytest.skip("hatchling is not installed (make setup)")
    folder = tmp_path_factory.mktemp("wheel")
    answer = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--wheel-dir", folder, ROOT, seconds=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    (built,) = folder.glob("colorcore-*.whl")
    return built


def test_it_holds_every_module_and_data_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert held == source
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert "colorcore/recipes/simple.toml" in held


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed alone and with an extra, as in the Dockerfile."""
    site = tmp_path_factory.mktemp("site")
    answer = run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site,
        "--disable-pip-version-check", f"{wheel}[server]", seconds=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return site


@pytest.mark.parametrize("command", ["cc", "colorcore"])
def test_its_commands_run(installed: Path, command: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    where = run(sys.executable, "-c", "import cli; print(cli.__file__)", env=env, cwd=tmp_path)
    assert where.stdout.startswith(str(installed))
    version = run(installed / "bin" / command, "--version", env=env, cwd=tmp_path)
    assert version.stdout.splitlines()[0] == f"colorcore {pyproject()['project']['version']}"
    recipes = run(installed / "bin" / command, "recipes", env=env, cwd=tmp_path)
    assert recipes.returncode == 0, recipes.stderr
    assert "simple" in recipes.stdout


def test_the_entry_point_runs_the_command_that_the_image_runs_by_itself(
    installed: Path, tmp_path: Path
) -> None:
    """CMD ["cc", "--help"] behind ENTRYPOINT, with PATH set as in the image."""
    entry = program(
        tmp_path / "colorcore-entrypoint", (ROOT / "infra/docker/entrypoint.sh").read_text()
    )
    path = f"{installed / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(installed), "TMPDIR": str(tmp_path)}
    answer = run(entry, "cc", "--help", env=env, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "colorize" in answer.stdout
