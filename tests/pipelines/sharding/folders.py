"""Helpers: run `cc shard` in a separate process, and compare the files of datasets."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import jpeg, scene
from tests.servers.child import ROOT

OPTIONS = {"size": 32, "photos_per_unit": 4, "val_percent": 30}
"""Settings of the datasets, as ``build_dataset`` takes them."""

Files = dict[str, tuple[int, int, bytes]]


def command(*places: object, hooks: str = "") -> list[str]:
    """The command line; ``hooks`` is Python code to run in its process first."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    call = ["shard", *map(str, places), *options]
    if not hooks:
        return [sys.executable, "-m", "cli.main", *call]
    run = "import sys\nfrom cli.main import main\nsys.exit(main(['colorcore', *sys.argv[1:]]))"
    return [sys.executable, "-c", f"{hooks}\n{run}", *call]


def run(
    *places: object, hooks: str = "", code: int = 0, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end and assert its exit code."""
    done = subprocess.run(
        command(*places, hooks=hooks),
        capture_output=True, text=True, check=False, timeout=timeout, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def photos(folder: Path, count: int, *, first: int = 0, side: int = 72) -> Path:
    """Create a folder of colourful photos, the same for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(scene(number, side, side)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {name: data for name, (_, _, data) in files(folder).items()}


def files(folder: Path) -> Files:
    """All files below a folder with their modification time, inode and content."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.read_bytes(),
        )
        for path in found
    }


def units(names: Sequence[str] | Files | dict[str, bytes]) -> list[int]:
    """The units that have an index."""
    return sorted(int(Path(name).stem) for name in names if name.startswith("index/"))


def of_units(there: Files, done: Sequence[int]) -> Files:
    """The files of these units."""
    stems = {f"{unit:06d}" for unit in done}
    return {
        name: file
        for name, file in there.items()
        if not name.startswith(("units/", ".unit-")) and Path(name).stem.partition("-")[0] in stems
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders below a folder."""
    found = [*folder.rglob(".*"), *folder.rglob("*.part")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def wait(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = 180) -> None:
    """Wait until a condition holds, while the process runs."""
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
