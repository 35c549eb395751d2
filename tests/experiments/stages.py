"""Which stages of EfficientNet-Lite0 tell colours: a linear fit on each, scored on unseen photos.

    python -m tests.experiments.stages --photos DIR --test DIR --out FOLDER

The maps of one stage, or of several, at 1/16 of the photo's size, are the inputs of a ridge
regression to (a, b), in closed form: no training, no seed. R² is the share of the variance of ab
that it explains; 0 is the constant mean ab. Each choice of stages has the penalty that is best on
the validation photos.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from colorcore.blocks.efficientnet_lite import EfficientNetLite
from colorcore.color.lab import decode_lab, lightness_to_grey
from colorcore.dataset.loader import val_batches
from tests.experiments.photos import BATCH, Photos, arguments, prepare

CHOICES = ((0,), (1,), (2,), (3,), (4,), (5,), (6,), (2, 4, 5), (2, 4, 5, 6), (0, 1, 2, 4, 5))
PENALTIES = (0.03, 0.1, 0.5, 1.5, 4.0)
"""In units of each input's variance."""
STRIDE = 16


@torch.inference_mode()
def columns(encoder: EfficientNetLite, batches: Iterable[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Inputs per stage (pixels, C), and ab (pixels, 2), of photos and their mirror images."""
    stages: list[list[Tensor]] = [[] for _ in encoder.stages]
    targets = []
    for lab_u8 in batches:
        for lab in (decode_lab(lab_u8), decode_lab(lab_u8).flip(-1)):
            side = lab.shape[-1] // STRIDE
            x = encoder.stem_norm(encoder.stem((lightness_to_grey(lab[:, :1]) * 255 - 127) / 128))
            x = F.relu6(x)
            for found, stage in zip(stages, encoder.stages, strict=True):
                x = stage(x)
                found.append(_pixels(_resized(x, side)))
            targets.append(_pixels(_resized(lab[:, 1:], side)))
    return [torch.cat(found) for found in stages], torch.cat(targets)


def _resized(x: Tensor, side: int) -> Tensor:
    if x.shape[-1] > side:
        return F.adaptive_avg_pool2d(x, side)
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def fit(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Ridge regression of centred y on centred x: weights (C, 2), intercept (2,)."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = (x.T @ x).double()
    gram += penalty * torch.diag(gram.diagonal())
    weights = torch.linalg.solve(gram, (x.T @ y).double()).float()
    return weights, y_mean - x_mean @ weights


def explained(x: Tensor, y: Tensor, fitted: tuple[Tensor, Tensor], mean: Tensor) -> float:
    """R² against the constant mean of the training photos."""
    weights, intercept = fitted
    return float(1 - (x @ weights + intercept - y).square().sum() / (mean - y).square().sum())


def report(photos: Photos, choices: Sequence[Sequence[int]]) -> None:
    """Print R² per choice of stages."""
    encoder = EfficientNetLite("lite0", colors=1)
    encoder.load_imagenet()
    encoder.eval()
    train = columns(encoder, val_batches(photos.fit_data().train, BATCH))
    held_out = {name: columns(encoder, each) for name, each in photos.held_out().items()}
    mean = train[1].mean(0)
    print(f"| stages (first is 1) | {' | '.join(f'R² {name}' for name in held_out)} | penalty |")
    print("|---" * (len(held_out) + 2) + "|")
    for choice in choices:
        x = {"train": torch.cat([train[0][number] for number in choice], 1)}
        for name, (stages, _) in held_out.items():
            x[name] = torch.cat([stages[number] for number in choice], 1)
        tried = {penalty: fit(x["train"], train[1], penalty) for penalty in PENALTIES}
        scores = {
            penalty: {
                name: explained(x[name], y, fitted, mean) for name, (_, y) in held_out.items()
            }
            for penalty, fitted in tried.items()
        }
        best = max(PENALTIES, key=lambda penalty: scores[penalty]["val"])
        cells = [f"{score:.3f}" for score in scores[best].values()]
        named = ", ".join(str(number + 1) for number in choice)
        print(f"| {named} | {' | '.join(cells)} | {best:g} |", flush=True)


def main() -> None:
    """Fit and score."""
    options = arguments(__doc__).parse_args()
    report(prepare(options.photos, options.test, options.size, options.out), CHOICES)


if __name__ == "__main__":
    main()
