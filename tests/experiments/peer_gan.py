"""Compares a recipe with a pix2pix colorizer, at equal CPU time.

::

    python -m tests.experiments.peer_gan --photos DIR --test DIR --out FOLDER [--seeds 0 1 2]

The peer is what public colorization code mostly is: pix2pix (Isola et al. 2017) in LAB, a U-Net of
stride-2 convolutions against a 70×70 PatchGAN, L1 times 100, Adam at 2e-4 with betas .5 and .999,
batches of 16, flips. It is written here from the paper (§3.2, appendix 6.1) and shares only the
stored photos and the scores with ours. Our small regression recipe trains first; the peer then
trains for the same number of CPU seconds, on one thread. The peer is the livelier of the two, which
costs it fidelity, so both are also compared at equal colourfulness. ``--photos`` are for training
and for choosing (checkpoints, chroma scales), ``--test`` for scores only.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.lab import AB_NORM, decode_lab, normalize_L
from colorcore.decoding import Decoding
from colorcore.inference.decoding_search import FIDELITY, sweep
from colorcore.inference.evaluate import score_with_baselines
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.scores.metrics import HIGHER_IS_BETTER
from colorcore.scores.spread import spread_of
from colorcore.training.fit import fit
from colorcore.training.state import FitData
from tests.experiments.equal import Front, equal_table, front_of
from tests.experiments.photos import Photos, prepare

SIZE = 64
BATCH = 16
L1_WEIGHT = 100.0
CHROMAS = tuple(round(1.0 + 0.1 * step, 1) for step in range(21))
OURS = (
    "model.channels=24",
    "model.dropout=0.2",
    "optim.lr=1e-3",
    "optim.schedule=onecycle",
    "optim.warmup=0.1",
    "data.batch=16",
    "data.crop=0.6",
    "train.eval_every=4",
    "train.ema=0.995",
    "train.precision=bf16",
)
SHOWN = {
    "psnr": 2,
    "ssim": 4,
    "ab_l1": 2,
    "delta_e2000": 2,
    "cf_gap": 1,
    "auc": 4,
    "auc_balanced": 4,
}
"""Scores in the tables, with their digits."""


class PeerUNet(nn.Module):
    """L_norm (B, 1, 64, 64) -> {"ab": (B, 2, 64, 64) in ab units}, by six strides of 2 and back."""

    def __init__(self, channels: int = 32, downs: int = 6) -> None:
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(downs)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            before = 1 if level == 0 else widths[level - 1]
            parts: list[nn.Module] = [] if level == 0 else [nn.LeakyReLU(0.2)]
            parts.append(nn.Conv2d(before, width, 4, 2, 1))
            if 0 < level < downs - 1:
                parts.append(nn.BatchNorm2d(width))
            self.down.append(nn.Sequential(*parts))
        for level in reversed(range(downs)):
            before = widths[level] * (1 if level == downs - 1 else 2)
            after = 2 if level == 0 else widths[level - 1]
            parts = [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
            if level > 0:
                parts.append(nn.BatchNorm2d(after))
            if 1 < level < downs - 1:
                parts.append(nn.Dropout(0.5))
            self.up.append(nn.Sequential(*parts, *([nn.Tanh()] if level == 0 else [])))
        self.apply(_start)

    def forward(self, L_norm: Tensor) -> dict[str, Tensor]:
        kept = [L_norm]
        for down in self.down:
            kept.append(down(kept[-1]))
        x = kept.pop()
        for up in self.up:
            x = up(x)
            skip = kept.pop()
            if kept:
                x = torch.cat([x, skip], dim=1)
        return {"ab": x * AB_NORM}


def patchgan(channels: int = 32) -> nn.Sequential:
    """(B, 3, H, W) of L and ab -> logits of overlapping patches of 70×70."""
    made: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    for level, stride in ((1, 2), (2, 2), (3, 1)):
        before, after = channels * 2 ** (level - 1), channels * 2**level
        made += [nn.Conv2d(before, after, 4, stride, 1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    judge = nn.Sequential(*made, nn.Conv2d(channels * 8, 1, 4, 1, 1))
    judge.apply(_start)
    return judge


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def train_peer(data: FitData, seconds: float, seed: int) -> Iterator[tuple[int, float, nn.Module]]:
    """After each epoch: its number, CPU seconds so far, and the model; the last one is late."""
    torch.manual_seed(seed)
    model, judge = PeerUNet(), patchgan()
    betas = (0.5, 0.999)
    colors = torch.optim.Adam(model.parameters(), 2e-4, betas)
    judging = torch.optim.Adam(judge.parameters(), 2e-4, betas)
    photos = data.train.read(torch.arange(len(data.train)).numpy())
    spent = 0.0
    for epoch in count(1):
        started = time.process_time()
        model.train()
        for rows in torch.randperm(len(photos)).split(BATCH)[: len(photos) // BATCH]:
            lab = decode_lab(photos[rows])
            lab = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, lab.flip(-1), lab)
            grey, truth = normalize_L(lab[:, :1]), lab[:, 1:] / AB_NORM
            made = model(grey)["ab"] / AB_NORM
            real, fake = (judge(torch.cat([grey, ab], dim=1)) for ab in (truth, made.detach()))
            loss = 0.5 * (_bce(real, 1.0) + _bce(fake, 0.0))
            judging.zero_grad()
            loss.backward()
            judging.step()
            judge.requires_grad_(False)
            fooled = _bce(judge(torch.cat([grey, made], dim=1)), 1.0)
            colors.zero_grad()
            (fooled + L1_WEIGHT * F.l1_loss(made, truth)).backward()
            colors.step()
            judge.requires_grad_(True)
        spent += time.process_time() - started
        yield epoch, spent, model.eval()
        if spent >= seconds:
            return


def _bce(logits: Tensor, answer: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, answer))


def ours(epochs: int, seed: int) -> Recipe:
    """The recipe, small."""
    return load_recipe("unet-l1", [*OURS, f"train.epochs={epochs}", f"train.seed={seed}"])


def most_colorful(model: nn.Module, val: list[Tensor], data: FitData) -> Decoding:
    """The chroma scale with the smallest colourfulness gap that is ahead of the constant, on
    validation photos, in every score of fidelity; 1 if there is none.
    """
    constant = score_with_baselines(model, val, data.palette, data.mean_ab)["constant"]
    settings = [Decoding(chroma=chroma) for chroma in CHROMAS]
    swept = {at: made.compute() for at, made in sweep(model, val, data.palette, settings).items()}

    def ahead(scores: dict[str, float]) -> bool:
        return all((scores[name] > constant[name]) == HIGHER_IS_BETTER[name] for name in FIDELITY)

    good = [at for at, scores in swept.items() if ahead(scores)]
    return min(good, key=lambda at: swept[at]["cf_gap"], default=Decoding())


@dataclass(frozen=True, slots=True)
class Measured:
    """One seed: scores by split and row, and fronts by split and side."""

    scores: dict[str, dict[str, dict[str, float]]]
    fronts: dict[str, dict[str, Front]]


def measure(seed: int, epochs: int, photos: Photos, out: Path) -> Measured:
    """Train both with one seed, and score them on all held-out photos."""
    data, held_out = photos.fit_data(), photos.held_out()
    folder = out / f"ours-{epochs}-seed-{seed}"
    started = time.process_time()
    fit(ours(epochs, seed), data, folder)
    seconds = time.process_time() - started
    model = load_checkpoint(folder / "best").model()
    chosen = most_colorful(model, held_out["val"], data)
    print(f"ours: {_parameters(model):,} parameters, {seconds:.0f} CPU s", flush=True)

    best, best_score = None, 0.0
    for epoch, spent, peer in train_peer(data, seconds, seed):
        if epoch % 4:
            continue
        scores = score_with_baselines(peer, held_out["val"], data.palette, data.mean_ab)["model"]
        line = ", ".join(f"{name} {scores[name]:.{digits}f}" for name, digits in SHOWN.items())
        print(f"peer, epoch {epoch}, {spent:.0f} CPU s, val: {line}", flush=True)
        if scores["auc_balanced"] > best_score:
            best, best_score = copy.deepcopy(peer), scores["auc_balanced"]
    print(f"peer: {_parameters(peer):,} parameters, {spent:.0f} CPU s, {epoch} epochs")

    peers = {"peer, last epoch": peer, "peer, its best by val": best or peer}
    sides = {
        **{name: (each, Decoding()) for name, each in peers.items()},
        "ours": (model, Decoding()),
        "ours, most colourful ahead of the constant": (model, chosen),
    }
    measured = Measured({}, {})
    for split, batches in held_out.items():
        rows: dict[str, dict[str, float]] = {}
        for name, (each, decoding) in sides.items():
            three = score_with_baselines(
                each, batches, data.palette, data.mean_ab, decoding=decoding
            )
            rows |= {"grey": three["grey"], "constant": three["constant"], name: three["model"]}
        measured.scores[split] = rows
        measured.fronts[split] = {
            name: front_of(each, batches, data.palette)
            for name, each in {"ours": model, **peers}.items()
        }
    return measured


def report(results: Sequence[Measured]) -> None:
    """Print mean ± standard deviation over seeds: as decoded, and at equal colourfulness."""
    for split, first in results[0].scores.items():
        print(f"\n| {split} | {' | '.join(SHOWN)} |\n{'|---' * (len(SHOWN) + 1)}|")
        for name in first:
            rows = [each.scores[split][name] for each in results]
            cells = (
                spread_of([row[key] for row in rows]).show(digits) for key, digits in SHOWN.items()
            )
            print(f"| {name} | {' | '.join(cells)} |")
        sides = results[0].fronts[split]
        fronts = {name: [each.fronts[split][name] for each in results] for name in sides}
        print("", *equal_table(split, fronts), sep="\n")


def main() -> None:
    """Train both with each seed, print the tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--test", type=Path, required=True, help="a folder of other photos")
    parser.add_argument("--out", type=Path, default=Path("peer-bench"))
    parser.add_argument("--epochs", type=int, default=80, help="of ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    photos = prepare(arguments.photos, arguments.test, SIZE, arguments.out)
    results = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        results.append(measure(seed, arguments.epochs, photos, arguments.out))
    report(results)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
