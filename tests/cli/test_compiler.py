from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.compiler import find_compiler, is_compiler_call

COMPILER = find_compiler(sys.executable)


@pytest.mark.parametrize(
    "arguments",
    [["hello.c"], ["-c", "x.c"], ["-O2"], ["main.o", "-o", "main"], ["@flags"], ["-"], ["-v"],
     ["-dumpversion"], ["-E"], ["a.CPP"], ["x.S"], ["libfoo.a"], ["--sysroot=/x", "a.c"]],
)  # fmt: skip
def test_what_is_plainly_a_compilers_goes_to_the_compiler(arguments: list[str]) -> None:
    assert is_compiler_call(arguments)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--version"], ["--debug", "train"], ["shard", "photos.c"], ["colorize", "-o"],
     ["--install-completion"], ["priors"]],
)  # fmt: skip
def test_our_own_calls_stay(arguments: list[str]) -> None:
    assert not is_compiler_call(arguments)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """PATH of an activated environment: our `cc` comes first, in a separate folder."""
    return {**os.environ, "PATH": os.pathsep.join([str(fake_env(tmp_path / "env")), os.defpath])}


def fake_env(folder: Path) -> Path:
    folder.mkdir()
    script = folder / "cc"
    root = Path(__file__).parent.parent.parent
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        "from cli.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return folder


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler on PATH")
def test_a_program_compiles_in_the_activated_environment(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "hello.c").write_text(
        '#include <stdio.h>\nint main(void){puts("hello");return 0;}\n'
    )
    subprocess.run(
        ["cc", "hello.c", "-o", "hello"], cwd=tmp_path, env=environment, check=True, timeout=60
    )
    answer = subprocess.run([tmp_path / "hello"], capture_output=True, text=True, check=True)
    assert answer.stdout == "hello\n"


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler on PATH")
def test_version_is_ours_and_the_compilers(environment: dict[str, str]) -> None:
    answer = subprocess.run(
        ["cc", "--version"], env=environment, capture_output=True, text=True, check=True
    )
    ours, _, theirs = answer.stdout.partition("\n")
    assert ours.startswith("colorcore ")
    assert (
        theirs.strip()
        == subprocess.run(
            [COMPILER, "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )


def test_two_environments_do_not_call_each_other_for_ever(tmp_path: Path) -> None:
    folders = [fake_env(tmp_path / name) for name in ("one", "two")]
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, folders))}
    answer = subprocess.run(
        [folders[0] / "cc", "hello.c"],
        env=environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert answer.returncode == 127
    assert "PATH has no other cc" in answer.stderr


def test_the_other_name_never_hands_over() -> None:
    colorcore = shutil.which("colorcore", path=str(Path(sys.executable).parent))
    assert colorcore, "colorcore is not installed: make setup"
    answer = subprocess.run([colorcore, "hello.c"], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "No such command" in answer.stderr
