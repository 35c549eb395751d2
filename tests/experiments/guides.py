"""Measures the claims of the guides: the table of docs/guides.md.

::

    python -m tests.experiments.guides --photos DIR --test DIR --out FOLDER [--only CLAIM ...]

``--photos`` are for training and for choosing the best checkpoint, ``--test`` for scores only.
Sides are compared with their own decoding, and at equal colourfulness, where none gains by being
paler. Each finished training leaves a file in ``FOLDER/results``, and the same command resumes
after it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.experiments.equal import Front, equal_table
from tests.experiments.guides_overfit import ceilings, overfit, palettes
from tests.experiments.guides_run import EPOCHS, Experiment, result_of, run
from tests.experiments.photos import Photos, prepare

SMALL = 32
"""Side of the photos, in pixels, where the many trainings are."""
LITE0 = ("loss_options.perceptual.net=lite0",)
"""For the perceptual term, on the network whose weights are installed; others leave it out."""
EXPERIMENTS: dict[str, Experiment] = {
    "simple": Experiment("simple"),
    "unet-l1": Experiment("unet-l1"),
    "bins": Experiment("bins"),
    "bins-focal": Experiment("bins-focal"),
    "gan": Experiment("gan"),
    "guide": Experiment("guide"),
    "enhanced": Experiment("enhanced"),
    "enhanced-conservative": Experiment("enhanced-conservative"),
    "enhanced-vibrant": Experiment("enhanced-vibrant"),
    "enhanced-maximum": Experiment("enhanced-maximum"),
    "simple, lr / 5": Experiment("simple", lr=1e-5),
    "simple, lr x4": Experiment("simple", lr=2e-4),
    "simple, lr x20": Experiment("simple", lr=1e-3),
    "simple, batch 64": Experiment("simple", ("data.batch=64",)),
    "simple, batch 64, as many steps": Experiment(
        "simple", ("data.batch=64", "train.epochs=32", "train.eval_every=8")
    ),
    "simple, plain MSE": Experiment(
        "simple", ("loss_options.weighted_mse.saturated=1", "loss_options.weighted_mse.grey=1")
    ),
    "simple, Huber": Experiment(
        "simple", ("loss.weighted_mse=0", "loss.ab_huber=1", "loss_options.ab_huber.beta=0.1")
    ),
    "simple, L1": Experiment("simple", ("loss.weighted_mse=0", "loss.ab_l1=1")),
    "simple, 24 channels": Experiment("simple", ("model.channels=24",)),
    "simple, group norm": Experiment("simple", ("model.norm=group",)),
    "simple, no warm-up": Experiment("simple", ("optim.schedule=constant", "optim.warmup=0")),
    "simple, no EMA": Experiment("simple", ("train.ema=0",)),
    "guide, no diversity": Experiment("guide", ("loss.diversity=0",)),
    "guide, no attention": Experiment("guide", ("model.attention=false",)),
    "guide, perceptual": Experiment("guide", ("loss.perceptual=1", *LITE0)),
    "guide, perceptual / 5": Experiment("guide", ("loss.perceptual=0.2", *LITE0)),
    "enhanced, perceptual": Experiment("enhanced", ("loss.perceptual=0.5", *LITE0)),
    "enhanced, no saturation": Experiment("enhanced", ("loss.saturation=0",)),
    "bins, not rebalanced": Experiment("bins", ("loss_options.bins_ce.rebalance=0",)),
    "gan, a fifth of the game": Experiment(
        "gan", ("loss.adversarial=0.01", "loss.feature_matching=0.1")
    ),
    "bins, L1 instead": Experiment("bins", ("loss.bins_ce=0", "loss.residual=0", "loss.ab_l1=1")),
}
"""Every training by name: the recipes as they are, and with one thing changed."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Trainings side by side, on photos of ``size`` pixels; the first is the claim's side."""

    says: str
    sides: tuple[str, ...]
    size: int = SMALL


RECIPES = tuple(name for name, made in EXPERIMENTS.items() if name == made.recipe)
CLAIMS: dict[str, Claim] = {
    "recipes": Claim("Each recipe", RECIPES, 64),
    "lr": Claim(
        "A lower learning rate is better",
        ("simple", "simple, lr / 5", "simple, lr x4", "simple, lr x20"),
    ),
    "batch": Claim(
        "Batches of 16, not 64", ("simple", "simple, batch 64", "simple, batch 64, as many steps")
    ),
    "weighting": Claim("Saturated pixels weigh more", ("simple", "simple, plain MSE")),
    "huber": Claim("Huber, not MSE", ("simple, Huber", "simple, plain MSE", "simple, L1")),
    "capacity": Claim("96 channels, not 64", ("simple, 24 channels", "simple")),
    "norm": Claim("Group norm, not batch norm", ("simple, group norm", "simple")),
    "warmup": Claim("Warm-up and decay", ("simple", "simple, no warm-up")),
    "ema": Claim("Averaged weights", ("simple", "simple, no EMA")),
    "diversity": Claim("A diversity term", ("guide", "guide, no diversity")),
    "perceptual": Claim(
        "A perceptual term, at a fifth of the guide's weight and at its weight",
        ("guide, perceptual", "guide, perceptual / 5", "guide"),
    ),
    "perceptual-enhanced": Claim(
        "A perceptual term at the tuning guide's weight", ("enhanced, perceptual", "enhanced")
    ),
    "attention": Claim("Attention on the skips", ("guide", "guide, no attention")),
    "saturation": Claim("A saturation term", ("enhanced", "enhanced, no saturation")),
    "presets": Claim(
        "More weight on ab and saturation, more colour",
        ("enhanced-maximum", "enhanced-vibrant", "enhanced", "enhanced-conservative"),
    ),
    "bins": Claim("Bins, not regression", ("bins", "bins, L1 instead", "unet-l1"), 64),
    "rebalance": Claim("Rebalanced cross-entropy", ("bins", "bins, not rebalanced"), 64),
    "focal": Claim(
        "Focal loss instead of weights", ("bins-focal", "bins", "bins, not rebalanced"), 64
    ),
    "gan": Claim("A discriminator", ("gan", "gan, a fifth of the game", "bins", "unet-l1"), 64),
}
"""The temperature is swept for every training that answers in bins."""
PARTS = ("palette", "overfit", *CLAIMS)
"""What `--only` takes."""
SHOWN = {
    "psnr": ("PSNR dB", "{:.2f}"),
    "ab_l1": ("ab L1", "{:.2f}"),
    "delta_e2000": ("ΔE2000", "{:.2f}"),
    "cf_gap": ("CF gap", "{:.1f}"),
    "auc": ("AuC", "{:.4f}"),
    "auc_balanced": ("AuC bal.", "{:.4f}"),
}


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--test", type=Path, help="a folder of other photos")
    parser.add_argument("--out", type=Path, default=Path("guides-bench"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, a thread each")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each training")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    out = arguments.out
    only = [CLAIMS[name] for name in arguments.only if name in CLAIMS]
    photos = {
        size: prepare(arguments.photos, arguments.test, size, out)
        for size in sorted({claim.size for claim in only} | {SMALL})
    }
    if "palette" in arguments.only:
        for name, distance in palettes(photos[SMALL]):
            print(f"{name}: held-out colours are {distance:.2f} ab units from their bin (rms)")
    if "overfit" in arguments.only:
        for name, optimum in ceilings(photos[SMALL]).items():
            print(f"the truth itself, {name}: {optimum:.2f} dB")
        for name in RECIPES:
            reached, steps = overfit(name, photos[SMALL])
            print(f"{name}: {reached:.2f} dB after {steps} steps", flush=True)
    wanted = dict.fromkeys((side, claim.size) for claim in only for side in claim.sides)
    epochs = arguments.epochs
    trainings = [(name, photos[size]) for name, size in wanted]
    _train(trainings, arguments.seeds, epochs, out, arguments.jobs)
    splits = ("test", "val") if arguments.test else ("val",)
    for claim in only:
        print(f"\n### {claim.says} ({claim.size} px)\n")
        for split in splits:
            print("\n".join(table(claim, split, epochs, out)), end="\n\n")
            print("\n".join(equal_table(split, fronts(claim, split, epochs, out))), end="\n\n")
    for name, size in wanted:
        print("\n".join(decoding_table(name, size, splits[0], epochs, out)))


def _train(
    wanted: Sequence[tuple[str, Photos]], seeds: int, epochs: int, out: Path, jobs: int
) -> None:
    """Train what has no result, first seeds first, so that what is killed has some of each."""
    missing = []
    for seed in range(seeds):
        for name, photos in wanted:
            recipe = EXPERIMENTS[name].build(seed, epochs)
            if result_of(name, seed, recipe, photos.size, out) is None:
                missing.append((name, seed, recipe, photos))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        running = {pool.submit(run, *one, out): one for one in missing}
        for number, done in enumerate(as_completed(running), start=1):
            name, seed, _, photos = running[done]
            result = done.result()
            scores = next(iter(reversed(result["scores"].values())))["model"]
            print(
                f"[{number}/{len(missing)}] {photos.size} px, {name}, seed {seed}: "
                f"{result['steps']} steps, {result['cpu_s']:.0f} CPU-s, "
                f"AuC balanced {scores['auc_balanced']:.4f}, CF gap {scores['cf_gap']:.1f}",
                flush=True,
            )


def results(name: str, size: int, epochs: int, out: Path) -> list[dict[str, Any]]:
    """What was measured of an experiment, seed by seed."""
    every = (
        result_of(name, seed, EXPERIMENTS[name].build(seed, epochs), size, out)
        for seed in itertools.count()
    )
    return [
        result for result in itertools.takewhile(lambda found: found is not None, every) if result
    ]


def table(claim: Claim, split: str, epochs: int, out: Path) -> Iterator[str]:
    """Mean and spread (largest less smallest) over seeds of each side, in Markdown."""
    heads = " | ".join(head for head, _ in SHOWN.values())
    yield f"| {split} | seeds | {heads} | CF | rises |"
    yield "|---" * (len(SHOWN) + 4) + "|"
    for baseline in ("grey", "constant"):
        for result in results(claim.sides[0], claim.size, epochs, out)[:1]:
            scores = result["scores"][split][baseline]
            yield _row(baseline, "", [scores], "")
    for name in claim.sides:
        found = results(name, claim.size, epochs, out)
        if found:
            rises = statistics.mean(_rises(result["curve"]["loss"]) for result in found)
            scores = [result["scores"][split]["model"] for result in found]
            yield _row(name, str(len(found)), scores, f"{rises:.1f}")


def fronts(claim: Claim, split: str, epochs: int, out: Path) -> dict[str, list[Front]]:
    """The fronts of each side, seed by seed; results of before fronts were kept have none."""
    every = {name: results(name, claim.size, epochs, out) for name in claim.sides}
    return {
        name: [result["front"][split] for result in found if "front" in result]
        for name, found in every.items()
    }


def decoding_table(name: str, size: int, split: str, epochs: int, out: Path) -> Iterator[str]:
    """The answers of a model in bins by temperature; nothing for other models."""
    every = results(name, size, epochs, out)
    found = [result["decoding"][split] for result in every if "decoding" in result]
    if not found:
        return
    yield f"\n### {name}, decoded otherwise ({size} px)\n"
    yield f"| {split} | seeds | {' | '.join(head for head, _ in SHOWN.values())} | CF | |"
    yield "|---" * (len(SHOWN) + 4) + "|"
    for way in found[0]:
        if way != "confidence":
            yield _row(way, str(len(found)), [decoding[way] for decoding in found], "")
    yield "\nConfidence: share of pixels, mean confidence, share right\n"
    for share, stated, right in found[0]["confidence"]:
        yield f"- {share:.1%}: {stated:.2f}, {right:.2f}"


def _row(name: str, seeds: str, scores: Sequence[dict[str, float]], last: str) -> str:
    cells = []
    for metric, (_, form) in SHOWN.items():
        values = [score[metric] for score in scores]
        cell = form.format(statistics.mean(values))
        if len(values) > 1:
            cell += f" ± {form.format((max(values) - min(values)) / 2)}"
        cells.append(cell)
    cells.append(f"{statistics.mean(score['cf'] for score in scores):.1f}")
    return f"| {name} | {seeds} | {' | '.join(cells)} | {last} |"


def _rises(losses: Sequence[float]) -> int:
    """Epochs whose mean loss is above the one before."""
    return sum(later > earlier for earlier, later in itertools.pairwise(losses))


if __name__ == "__main__":
    main()
