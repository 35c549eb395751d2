"""What ImageNet's weights in the encoder are worth, at equal CPU seconds and equal colourfulness.

    python -m tests.experiments.pretrained --photos DIR --test DIR --out FOLDER --seeds 1 2 3
    python -m tests.experiments.pretrained … --variants keys

The second command tells what the recipe's regularization and augmentation are worth instead.

Each variant trains for the same CPU seconds, on one thread per training and two trainings at a
time, after its speed was measured on a few steps. A paler picture always has the better PSNR, so
models are compared where they are equally colourful, each with the first variant. Seeds give the
spread. Results are kept per variant and seed, and trained only once.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.bins import TEMPERATURE
from colorcore.decoding import Decoding
from colorcore.inference.evaluate import evaluate, score_with_baselines, statistics_for
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.scores.signs import find_signs
from colorcore.scores.spread import spread_of
from colorcore.training.fit import fit, train_step
from colorcore.training.state import Training
from tests.experiments.equal import COLUMNS, Front, equal_table, front_of
from tests.experiments.photos import Photos, arguments, prepare

COMMON = ("train.ema=0.998", "train.precision=fp32")
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lite0": ("lite0", ()),
    "lite0, no weights": ("lite0", ("model.encoder_weights=none",)),
    "lite0-bins": ("lite0-bins", ()),
    "unet-l1": (
        "unet-l1",
        (
            "model.channels=24",
            "optim.lr=1e-3",
            "optim.schedule=cosine",
            "data.batch=16",
            "data.crop=0.6",
        ),
    ),
}
KEYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lite0": ("lite0", ()),
    **{
        setting: ("lite0", (setting,))
        for setting in (
            "model.mixup=0",
            "model.dropout=0",
            "optim.weight_decay=0",
            "data.crop=none",
            "data.jitter=0.1",
            "data.gamma=0.5",
            "train.metric=auc_balanced_equal_cf",
        )
    },
}
"""The recipe, and what it is without one key of its regularization, or with one more."""
SETS = {"pretrained": VARIANTS, "keys": KEYS}
HUES = ("chroma_ratio", "hue_focus", "hue_focus_true", "gain")
WARM, TIMED = 3, 8
"""Steps before the speed is measured, and steps that measure it."""


def recipe_of(name: str, seed: int, epochs: int) -> Recipe:
    """A variant's recipe."""
    recipe, sets = (VARIANTS | KEYS)[name]
    own = [*COMMON, *sets, f"train.epochs={epochs}", f"train.seed={seed}"]
    # About twelve validations, whatever the length: they cost CPU seconds, too.
    return load_recipe(recipe, [*own, f"train.eval_every={max(1, epochs // 12)}"])


def run(name: str, seed: int, photos: Photos, out: Path, cpu_s: float) -> dict[str, Any]:
    """Train one variant for about ``cpu_s``, and sweep its decodings on both sets of photos."""
    title = f"{name}, {seed}, {photos.size} px, {cpu_s:g} s"
    file, folder = out / "pretrained" / f"{title}.json", out / "models" / title
    torch.set_num_threads(1)
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return {**found, "hues": hues_of(folder, photos)}
    data = photos.fit_data()
    per_epoch = cpu_s_per_epoch(recipe_of(name, seed, 1), data)
    epochs = max(2, round(cpu_s / per_epoch))
    started = time.process_time()
    fit(recipe_of(name, seed, epochs), data, folder)
    used = time.process_time() - started
    best = load_checkpoint(folder / "best")
    model = best.model().eval()
    result: dict[str, Any] = {
        "epochs": epochs, "best_epoch": best.epoch, "cpu_s": round(used, 1), "scores": {},
    }  # fmt: skip
    for split, batches in photos.held_out().items():
        known = score_with_baselines(model, batches[:], data.palette, data.mean_ab)
        result["scores"][split] = {
            "grey": known["grey"],
            "constant": known["constant"],
            "model": front_of(model, batches, data.palette),
        }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1))
    return {**result, "hues": hues_of(folder, photos)}


def hues_of(folder: Path, photos: Photos) -> dict[str, dict[str, Any]]:
    """Per set of photos, what the model's signs are found in, and the signs."""
    best = load_checkpoint(folder / "best")
    found = {}
    for split, batches in photos.held_out().items():
        statistics = statistics_for(best.palette, best.mean_ab)
        evaluate(best.model(), batches, best.palette, statistics=statistics)
        values = statistics.compute()
        found[split] = {
            **{name: values[name] for name in HUES},
            "signs": [sign.name for sign in find_signs(values)],
        }
    return found


def cpu_s_per_epoch(recipe: Recipe, data: Any) -> float:
    """CPU seconds of an epoch, from a few steps of a training that is thrown away."""
    training = Training(recipe, data, torch.device("cpu"), None)
    training.begin_epoch()
    started, steps = 0.0, 0
    for steps, batch in enumerate(training.loader.epoch(0)):
        if steps == WARM:
            started = time.process_time()
        if steps == WARM + TIMED:
            break
        train_step(training, batch)
    return (time.process_time() - started) / (steps - WARM) * len(training.loader)


def report(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print mean ± spread per variant: with its own decoding, and at equal colourfulness."""
    for split in ("val", "test"):
        first = next(iter(results.values()))[0]["scores"]
        if split not in first:
            continue
        print(f"\n{split:24s} {'PSNR':>14} {'ΔE2000':>14} {'balanced AuC':>16} {'gap':>12}")
        for name in ("grey", "constant"):
            _line(name, [first[split][name]])
        for name, runs in results.items():
            own = [next(iter(_own(each["scores"][split]["model"]))) for each in runs]
            cpu = np.mean([each["cpu_s"] for each in runs])
            _line(f"{name} ({cpu:.0f} s)", own)
        fronts = {
            name: [each["scores"][split]["model"] for each in runs]
            for name, runs in results.items()
        }
        print("", *equal_table(split, fronts), sep="\n")
        print("", *hue_table(split, results), sep="\n")


def hue_table(split: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[str]:
    """How many hues a model uses, and which signs that shows, in Markdown."""
    yield f"| {split}, own decoding | {' | '.join(HUES)} | signs |"
    yield "|---" * (len(HUES) + 2) + "|"
    for name, runs in results.items():
        rows = [each["hues"][split] for each in runs]
        cells = [spread_of([row[key] for row in rows]).show(3) for key in HUES]
        signs = Counter(sign for row in rows for sign in row["signs"])
        named = ", ".join(f"{sign} ({count} of {len(rows)})" for sign, count in signs.items())
        yield f"| {name} | {' | '.join(cells)} | {named or 'none'} |"


def _own(model: Front) -> Iterable[Mapping[str, float]]:
    own = (str(Decoding()), str(Decoding(TEMPERATURE)))
    return (scores for name, scores in model.items() if name in own)


def _line(name: str, rows: Sequence[Mapping[str, float]]) -> None:
    shown = [*((metric, digits) for metric, (_, digits) in COLUMNS.items()), ("cf_gap", 1)]
    cells = [
        spread_of([row[metric] for row in rows]).show(digits) if metric in rows[0] else ""
        for metric, digits in shown
    ]
    print(f"{name:24s} {cells[0]:>14} {cells[1]:>14} {cells[2]:>16} {cells[3]:>12}")


def main() -> None:
    """Train what is missing, then report."""
    parser = arguments(__doc__)
    parser.add_argument("--cpu-s", type=float, default=480.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", choices=SETS, default="pretrained")
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS, *KEYS])
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    photos = prepare(options.photos, options.test, options.size, options.out)
    with ProcessPoolExecutor(options.at_once, get_context("spawn")) as pool:
        jobs = {
            (name, seed): pool.submit(run, name, seed, photos, options.out, options.cpu_s)
            for seed in options.seeds
            for name in options.only or SETS[options.variants]
        }
        results: dict[str, list[dict[str, Any]]] = {}
        for (name, seed), job in jobs.items():
            results.setdefault(name, []).append(job.result())
            print(f"{name}, seed {seed}: {results[name][-1]['epochs']} epochs", flush=True)
    report(results)


if __name__ == "__main__":
    main()
