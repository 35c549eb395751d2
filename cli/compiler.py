"""The C compiler that is also named `cc`: calls meant for it are handed over.

An activated environment puts our `cc` before the compiler's on PATH. Builds inside it
(`make`, Python extensions, autoconf, CMake) must keep working. So if the first argument is a
source or object file, or a flag that is not ours, the call goes to the next `cc` on PATH.
This module uses the standard library only, because it runs before everything else.
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
"""Folders whose `cc` has already handed over, so that two environments cannot loop."""


def is_compiler_call(arguments: Sequence[str]) -> bool:
    """Whether the first argument is meant for a compiler: `x.c`, `-c`, `-O2`, `@args`, `-`."""
    if not arguments:
        return False
    first = arguments[0]
    if first.startswith("-"):
        return first.partition("=")[0] not in OWN_FLAGS
    return first.startswith("@") or Path(first).suffix.lower() in SOURCE_SUFFIXES


def find_compiler(program: str) -> str | None:
    """The next `cc` on PATH after this one, or None."""
    here = Path(shutil.which(program) or program).absolute().parent
    tried = {*os.environ.get(TRIED, "").split(os.pathsep), str(here)}
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    rest = [folder for folder in folders if str(Path(folder).absolute()) not in tried]
    return shutil.which("cc", path=os.pathsep.join(rest))


def hand_over(program: str, arguments: Sequence[str]) -> int:
    """Replace this process by the compiler; without one, return exit code 127."""
    compiler = find_compiler(program)
    if compiler is None:
        print(
            f"cc: {' '.join(arguments[:3])} looks like a C compiler call, but PATH has no other "
            "cc; install a compiler, or see: colorcore --help",
            file=sys.stderr,
        )
        return 127
    here = str(Path(shutil.which(program) or program).absolute().parent)
    os.environ[TRIED] = os.pathsep.join(filter(None, [os.environ.get(TRIED, ""), here]))
    sys.stdout.flush()
    # argv[0] must be its full path: gcc looks for its parts next to the `cc` named there.
    return os.execv(compiler, [compiler, *arguments])  # noqa: S606 (no shell is wanted)


def compiler_version(program: str) -> str | None:
    """The compiler's answer to --version, which build tools ask `cc` for."""
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
