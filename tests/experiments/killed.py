"""`cc colorize` of any folder, killed at random moments and run again: nothing lost, nothing half.

    python -m tests.experiments.killed --photos DIR --out FOLDER --kills 10

After each kill every picture must be whole, and none that was there may have changed. In the end
each file of the folder has its picture, or its reason for none, and a last run has nothing to do.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from colorcore.checkpoints.shipped import START
from colorcore.photos.original.read import read_original
from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.photos.refusal import PhotoLimits

COMMAND = [sys.executable, "-c", "import sys; from cli.main import main; sys.exit(main())"]
KINDS = ("written", "kept", "colored", "refused")
LIMITS = PhotoLimits(min_side=1, max_aspect=float("inf"))


def main() -> None:
    """Kill, run to the end, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    words = [*COMMAND, "colorize", START, str(options.photos), "--out", str(options.out), "--json"]
    moments, seen, killed = random.Random(options.seed), dict[Path, int](), 0
    for _ in range(options.kills):
        run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(pictures(options.out))
        while run.poll() is None and len(pictures(options.out)) == before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 8.0))
        killed += run.poll() is None
        run.kill()
        run.wait()
        seen = check(options.out, seen)
        print(f"killed with {len(seen)} pictures", flush=True)
    last = report_of(words)
    seen = check(options.out, seen)
    again = report_of(words)
    named = [name for kind in KINDS for name in last[kind]]
    leftovers = list(options.out.rglob("*.part"))
    counts = ", ".join(f"{name} {len(last[name])}" for name in KINDS)
    print(
        f"{killed} kills; the last run: {counts}; named twice {len(named) - len(set(named))}; "
        f"pictures {len(seen)}, leftovers {len(leftovers)}; a run after it wrote "
        f"{len(again['written'])}"
    )
    assert sorted(map(str, seen)) == sorted(last["written"] + last["kept"])
    assert again["written"] == []
    assert sorted(again["kept"]) == sorted(map(str, seen))


def report_of(words: list[str]) -> dict[str, Any]:
    """What a run to the end reports."""
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def check(out: Path, seen: dict[Path, int]) -> dict[Path, int]:
    """The pictures with their times; new ones must be whole, old ones unchanged."""
    now = {path: path.stat().st_mtime_ns for path in pictures(out)}
    assert {path: now.get(path) for path in seen} == seen
    for path in now.keys() - seen.keys():
        for page in read_original(path.read_bytes(), limits=LIMITS):
            assert page.pixels.size
    return now


def pictures(out: Path) -> list[Path]:
    """What is there under the names of pictures."""
    found = out.rglob("*") if out.exists() else ()
    return [x for x in found if x.suffix.lower() in PHOTO_SUFFIXES and x.name[0] != "."]


if __name__ == "__main__":
    main()
