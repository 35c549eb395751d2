"""The Dockerfile: base image, user, installed packages, and build context."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.infra.files import INFRA, NAMES_A_FILE, ROOT, SECRET, constraints, documents, pyproject

TEXT = (INFRA / "docker" / "Dockerfile").read_text()
LOGICAL = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE))


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name}\s+(.+)$", LOGICAL, flags=re.MULTILINE)


def test_it_builds_from_one_image_of_a_full_version_as_the_constraints_were_tested_with() -> None:
    assert set(re.findall(r"^FROM (\S+)", LOGICAL, flags=re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    (default,) = (arg for arg in instructions("ARG") if arg.startswith("PYTHON_IMAGE="))
    image, _, tag = default.removeprefix("PYTHON_IMAGE=").partition(":")
    assert image == "python"
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", tag)
    tested = re.search(r"Python (3\.\d+)", (ROOT / "constraints.txt").read_text())
    assert tested is not None
    assert tag.startswith(tested[1] + ".")


def test_what_runs_is_no_root_and_gets_signals_through_an_init() -> None:
    last = LOGICAL[LOGICAL.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.+)$", last, flags=re.MULTILINE) == ["1000"]
    assert instructions("ENTRYPOINT") == ['["tini", "--", "colorcore-entrypoint"]']
    assert 'CMD ["colorcore-entrypoint", "health"]' in last
    assert not instructions("EXPOSE")


def test_no_argument_and_no_variable_can_hold_a_secret() -> None:
    pairs = [pair for line in instructions("ENV") for pair in line.split()] + instructions("ARG")
    names = [pair.partition("=")[0] for pair in pairs]
    assert len(names) > 10
    assert not [name for name in names if SECRET.search(name) and not NAMES_A_FILE.search(name)]
    assert "RAY_AUTH_MODE=token" in pairs


def test_everything_is_installed_by_the_constraints_and_torch_is_among_them() -> None:
    installs = re.findall(r"pip install [^;&]+", LOGICAL)
    assert len(installs) == 3
    from_cpu_index = [each for each in installs if "--index-url" in each]
    assert len(from_cpu_index) == 1
    assert "--no-deps" in from_cpu_index[0]
    assert all(
        "--constraint /tmp/constraints.txt" in each
        for each in installs
        if each not in from_cpu_index
    )
    assert constraints()["torch"]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", TEXT, flags=re.MULTILINE)
    assert extras in pyproject()["project"]["optional-dependencies"]


def test_login_shells_find_the_commands_too() -> None:
    """Ray's launcher and KubeRay start login shells, in which Debian's /etc/profile resets PATH."""
    assert "/etc/profile.d/" in LOGICAL
    assert "export PATH=/opt/colorcore/bin:\\$PATH" in LOGICAL


@pytest.mark.parametrize("needed", ["openssh-client", "rsync", "tini", "wget"])
def test_programs_that_launchers_call_are_in_it(needed: str) -> None:
    assert needed in LOGICAL


def allowed() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return [rule[1:] for rule in rules if rule.startswith("!")]


def test_the_context_has_the_packages_and_what_is_copied() -> None:
    packages = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = [
        "pyproject.toml",
        pyproject()["project"]["readme"],
        *pyproject()["project"]["license-files"],
    ]
    copied = [
        word
        for line in instructions("COPY")
        if "--from=" not in line
        for word in line.split()[:-1]
        if not word.startswith("--") and word != "."
    ]
    assert set(packages) | set(files) | set(copied) <= set(allowed())
    assert len(copied) == 3


def test_the_context_has_nothing_else_that_is_tracked() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if not tracked:  # in an unpacked archive, nothing tells which files are tracked
        pytest.skip("not a git checkout")
    tops = {Path(each).parts[0] for each in tracked}
    assert {"tests", "docs", ".ci"} & tops
    assert not {"tests", "docs", ".ci", ".git", "infra"} & set(allowed())
    assert "tune" in allowed() or not (ROOT / "tune").exists()


def test_images_are_named_by_this_version_everywhere() -> None:
    version = pyproject()["project"]["version"]
    named = {
        f"{path.relative_to(ROOT)}: {tag}"
        for path in [*INFRA.rglob("*"), *(ROOT / "docs").rglob("*.md")]
        if path.is_file() and "secrets" not in path.parts
        for tag in re.findall(r"colorcore:(\d+\.[\w.]*)", path.read_text())
        if tag != version
    }
    assert not named


def test_ray_is_the_same_version_in_manifests_and_constraints() -> None:
    kinds = 0
    for path in (INFRA / "kubernetes").rglob("*.yaml"):
        for document in documents(path):
            spec = document.get("spec", {})
            for cluster in (spec, spec.get("rayClusterSpec", {})):
                if "rayVersion" in cluster:
                    kinds += 1
                    assert cluster["rayVersion"] == constraints()["ray"], path
    assert kinds == 2


def test_no_image_is_taken_as_latest() -> None:
    images = [
        (path, image)
        for path in INFRA.rglob("*.yaml")
        for image in re.findall(
            r"^\s*(?:- )?image: (?:&\w+ )?(\S+)", path.read_text(), flags=re.MULTILINE
        )
    ]
    assert len(images) > 8
    for path, image in images:
        bare = path.parent.name == "base" and image in ("colorcore-cpu", "colorcore-cuda")
        assert bare or ":" in image, (path, image)
        assert not image.endswith(":latest"), (path, image)
