"""Exported files on the CPU compared with torch, one photo at a time in one thread.

Predicted before it was built: float32 1.5 times as fast as torch (fused operators, no Python), 8
bits 3 times (four times the arithmetic of VNNI, less the layers that stay in float32), at 0.2 dB;
0.9 CPU-s from the start of a process to the first picture. UNets have random weights: these tell
the speed, and nothing of colours.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks.paired import cpu_ms, measure, row

UNETS = {"unet-l1, base 64": "unet-l1", "bins, 313 bins": "bins"}
SIDE = 128
FIRST = """
import sys, time
import numpy as np
import colorcore
photo = np.random.default_rng(0).integers(0, 256, (600, 800), dtype=np.uint8)
colorcore.load(sys.argv[1]).colorize(photo)
print(time.process_time())
"""


def run(photos: Path, work: Path, *, rounds: int) -> None:
    """Print ratios of CPU time, what 8 bits lose, and the cost of a first photo."""
    from colorcore.checkpoints.checkpoint import load_checkpoint, save_checkpoint
    from colorcore.colorizing.network import NetworkColorizer
    from colorcore.colorizing.onnx_file import load_onnx
    from colorcore.models import build_model
    from colorcore.recipes.recipe import load_recipe
    from pipelines.export.job import ExportSettings, export_model

    folder = work / "export"
    start = load_checkpoint("start")
    places = {"start (lite0)": "start"}
    for title, recipe in UNETS.items():
        read = load_recipe(recipe, []).for_palette(len(start.palette))
        network = build_model(read.model.name, **read.model.options())
        saved = replace(start, recipe=read, weights=network.state_dict(), decoding=start.decoding)
        places[title] = str(folder / recipe)
        save_checkpoint(saved, folder / recipe)
    L = np.random.default_rng(0).uniform(0, 100, (1, 1, SIDE, SIDE)).astype(np.float32)
    for title, place in places.items():
        checkpoint = load_checkpoint(place)
        files = {name: folder / f"{Path(place).name}-{name}.onnx" for name in ("float32", "int8")}
        export_model(place, files["float32"])
        report = export_model(
            place, files["int8"], ExportSettings(data=str(photos), int8=True, photos=32)
        )
        torch_side = NetworkColorizer(checkpoint.model(), SIDE, checkpoint.decoding)
        sides = {"torch": torch_side, **{name: load_onnx(file) for name, file in files.items()}}
        passed = measure(
            {
                name: cpu_ms(partial(each.use_threads(1).predict_ab, L))
                for name, each in sides.items()
            },
            rounds=rounds,
        )
        for name in files:
            row(f"{title}, CPU-ms per photo, {name}: torch", passed[name], passed["torch"])
        lost = {each.name: each for each in report.variants}["int8"]
        print(
            f"{title}: int8 {lost.bytes / 1e6:.1f} MB of {report.variants[0].bytes / 1e6:.1f}, "
            f"ΔE2000 {lost.delta_e:.2f} to torch, {lost.psnr_lost:+.2f} dB lost"
            + ("" if place == "start" else " (random weights)")
        )
    costs = [
        float(
            subprocess.run(
                [sys.executable, "-c", FIRST, str(folder / "start-float32.onnx")],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for _ in range(rounds)
    ]  # fmt: skip
    print(f"load start.onnx and colourize a photo in a new process: {statistics.median(costs):.2f} "
          f"CPU-s ({min(costs):.2f} to {max(costs):.2f})")  # fmt: skip
