"""Measure every recipe, naive and ours, within a time; print one table, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.photos import folder_photos, made_up_photos, write_dataset
from tests.benchmarks.gpu.settings import CPU, FIRST, GPU, Form, settings_of
from tests.benchmarks.gpu.table import Row, part_lines, report, table_of, verdict_lines, verdicts

ROOT = Path(__file__).parents[3]
LIMIT_S = 480.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos; made up if not given")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="instead of all")
    parser.add_argument("--seconds", type=float, default=LIMIT_S, help="limit for the whole suite")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    asked = parser.parse_args(argv)
    import torch

    from colorcore.recipes.recipe import recipe_names

    names = recipe_names()
    if unknown := set(asked.recipes or ()) - set(names):
        parser.error(f"no recipe is named {', '.join(sorted(unknown))}; there are {names}")
    if asked.photos is not None and not asked.photos.is_dir():
        parser.error(f"expected a folder of photos, found none at {asked.photos}")
    form = GPU if torch.cuda.is_available() else CPU
    machine, rate = describe(form)
    order = asked.recipes or [*FIRST, *(name for name in names if name not in FIRST)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="colorcore-suite-") as work:
        dataset = Path(work) / "dataset"
        if asked.photos is None:
            print("no --photos: the photos are made up, which changes no speed", flush=True)
            photos = made_up_photos(form.photos)
        else:
            photos = folder_photos(asked.photos, form.photos)
        info = write_dataset(photos, dataset, size=form.size)
        machine["photos"] = dict(info.counts or {})
        print(f"{machine}\nmatrix products: {rate / 1e12:.3g} TFLOP/s", flush=True)
        for name in order:
            left = started + asked.seconds - time.monotonic()
            if left < form.least_s:
                rows.append(Row(name, note=f"skipped: {max(left, 0):.0f} s left"))
                continue
            # Compiling all recipes would take longer than the suite may.
            compiles = bool(asked.recipes) or name in FIRST
            row = measure(name, dataset, Path(work), form, left, compiles=compiles)
            rows.append(row)
            print(table_of([row], rate).splitlines()[-1], flush=True)
    found = verdicts(rows, rate) if form is GPU else []
    print(f"\n{table_of(rows, rate)}\n\n{part_lines(rows)}\n\n{verdict_lines(found)}")
    took = time.monotonic() - started
    print(f"{took:.0f} s in all")
    if asked.out is not None:
        result = {**report(rows, rate, machine), "targets": found, "seconds": took}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def describe(form: Form) -> tuple[dict[str, Any], float]:
    """The machine, and its operations per second in products of bf16 matrices."""
    import torch

    from colorcore.cpu import has_bf16
    from tests.benchmarks.gpu.naive import matmul_rate

    device = torch.device("cuda" if form is GPU else "cpu")
    dtype = torch.bfloat16 if form is GPU or has_bf16() else torch.float32
    rate = matmul_rate(device, side=8192 if form is GPU else 1024, dtype=dtype)
    card = torch.cuda.get_device_name() if form is GPU else platform.processor() or "CPU"
    machine = {
        "device": card,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul": str(dtype),
        "size": form.size,
        "date": datetime.now(UTC).date().isoformat(),
    }
    return machine, rate


def measure(
    name: str, dataset: Path, work: Path, form: Form, left: float, *, compiles: bool = True
) -> Row:
    """One recipe within ``left`` seconds; what fails is said in the row's note."""
    end = time.monotonic() + left
    try:
        settings, note = settings_of(name, form, work, compiles=compiles)
        row = _naive(name, settings, dataset, form)
    except Exception as error:  # the other recipes are worth measuring
        return Row(name, note=_why(error))
    cache = work / f"cache-{name}"
    cold = _ours(name, settings, dataset, form, cache, form.seconds, end - time.monotonic())
    row = replace(row, cold_s=cold.get("first_step"), note=cold.get("note", note))
    if "step_s" in cold:
        row = replace(
            row,
            in_step=cold["batch"] / cold["step_s"],
            over_epochs=cold["batch"] * cold["steps"] / cold["epoch_s"],
            memory=cold["memory"],
            parts=cold.get("parts"),
        )
    left = end - time.monotonic()
    if form.warms and compiles and "step_s" in cold and left > form.least_s / 2:
        warm = _ours(name, settings, dataset, form, cache, 0.0, left)
        row = replace(row, warm_s=warm.get("first_step"), note=warm.get("note", row.note))
    return row


def _naive(name: str, settings: Sequence[str], dataset: Path, form: Form) -> Row:
    import numpy as np
    import torch

    from colorcore.recipes.recipe import load_recipe
    from tests.benchmarks.gpu.naive import Naive, allow_tf32, flops_per_photo, photos_per_second
    from tests.benchmarks.gpu.photos import open_data

    device = torch.device("cuda" if form is GPU else "cpu")
    recipe = load_recipe(name, settings)
    data = open_data(dataset, recipe.data.batch, form.sizes)
    naive: Naive | None = None
    try:
        naive = Naive(recipe, data.palette, device)
        lab_u8 = data.train.read(np.arange(recipe.data.batch))
        flops = flops_per_photo(naive, lab_u8)
        allow_tf32(False)
        fp32 = photos_per_second(naive, lab_u8)
        tf32 = None
        if form is GPU:
            allow_tf32(True)
            tf32 = photos_per_second(naive, lab_u8)
    finally:
        # Its memory is the next process's.
        naive = None
        if form is GPU:
            torch.cuda.empty_cache()
    channels = recipe.model.options().get("channels")
    return Row(name, channels, recipe.data.batch, naive=fp32, tf32=tf32, flops=flops)


def _ours(
    name: str,
    settings: Sequence[str],
    dataset: Path,
    form: Form,
    cache: Path,
    seconds: float,
    limit: float,
) -> dict[str, Any]:
    """What ``ours`` printed; ``note`` if it did not get to its end within ``limit`` seconds."""
    sizes = (form.sizes.steps, form.sizes.val, form.sizes.bins)
    words = ["--set", *settings, "--sizes", *map(str, sizes), "--seconds", str(seconds)]
    caches = {"COLORCORE_CACHE": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.gpu.ours", str(dataset), name, *words],
            stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env={**os.environ, **caches},
            start_new_session=True,
        )  # fmt: skip
        note = ""
        try:
            printed, _ = process.communicate(timeout=max(limit, 1.0))
        except subprocess.TimeoutExpired:
            # The session, not the process: the compiler's workers belong to it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            note = f"not done within {limit:.0f} s"
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    result: dict[str, Any] = {}
    for line in printed.decode().splitlines():
        if line.startswith("{"):
            result |= json.loads(line)
    if note or process.returncode:
        result["note"] = note or (said[-1] if said else f"exit code {process.returncode}")[:200]
    return result


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"skipped: {lines[0] if lines else type(error).__name__}"[:200]


if __name__ == "__main__":
    sys.exit(main())
