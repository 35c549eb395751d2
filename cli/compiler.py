"""The C compiler behind the name `cc`: a call that is plainly a compiler's is handed over.

An activated environment puts our `cc` before the compiler's on PATH. Builds inside it
(`make`, Python extensions, autoconf, CMake) must go on working, so a first argument that is a
source or object file, or a flag that is none of ours, goes to the next `cc` on PATH.
Standard library only: this runs before anything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

OWN_FLAGS = frozenset(
    {"--help", "--version", "--debug", "--install-completion", "--show-completion"}
)
# fmt: off
SOURCE_SUFFIXES = frozenset({
    ".c", ".cc", ".cp", ".cpp", ".cxx", ".c++", ".h", ".hh", ".hpp", ".hxx", ".i", ".ii",
    ".m", ".mm", ".s", ".sx", ".o", ".obj", ".a", ".so", ".lo", ".la", ".f", ".f90", ".ld",
})
# fmt: on
TRIED = "COLORCORE_CC_TRIED"
"""Folders whose `cc` handed over already, so that two environments do not call each other."""


def is_compiler_call(arguments: Sequence[str]) -> bool:
    """Whether the first argument is one for a compiler: `x.c`, `-c`, `-O2`, `@args`, `-`."""
    if not arguments:
        return False
    first = arguments[0]
    if first.startswith("-"):
        return first.partition("=")[0] not in OWN_FLAGS
    return first.startswith("@") or Path(first).suffix.lower() in SOURCE_SUFFIXES


def find_compiler(program: str) -> str | None:
    """The next `cc` on PATH that is not this one; None when there is none."""
    here = Path(shutil.which(program) or program).absolute().parent
    tried = {*os.environ.get(TRIED, "").split(os.pathsep), str(here)}
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    rest = [folder for folder in folders if str(Path(folder).absolute()) not in tried]
    return shutil.which("cc", path=os.pathsep.join(rest))


def hand_over(program: str, arguments: Sequence[str]) -> int:
    """Become the compiler; returns only when there is none (exit code 127)."""
    compiler = find_compiler(program)
    if compiler is None:
        print(
            f"cc: {' '.join(arguments[:3])} looks like a call of the C compiler, but there is no "
            "other cc on PATH; install one, or see: colorcore --help",
            file=sys.stderr,
        )
        return 127
    here = str(Path(shutil.which(program) or program).absolute().parent)
    os.environ[TRIED] = os.pathsep.join(filter(None, [os.environ.get(TRIED, ""), here]))
    sys.stdout.flush()
    # By its full path: gcc looks for its parts beside the `cc` that argv[0] names.
    return os.execv(compiler, [compiler, *arguments])  # noqa: S606 (no shell is wanted)


def compiler_version(program: str) -> str | None:
    """What the compiler answers to --version: build tools ask `cc` for it."""
    compiler = find_compiler(program)
    if compiler is None:
        return None
    here = str(Path(shutil.which(program) or program).absolute().parent)
    tried = os.pathsep.join(filter(None, [os.environ.get(TRIED, ""), here]))
    answer = subprocess.run(
        [compiler, "--version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, TRIED: tried},
    )
    return answer.stdout.strip() or None
