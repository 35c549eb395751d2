"""The model card that is written next to a model (after Mitchell et al. 2019).

It says what the model was made of and from, how it scores next to the baselines that need no model,
and which hues it gets right, so that whoever finds the folder need not guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from colorcore.blocks.efficientnet_lite import VARIANTS
from colorcore.comparison.hue_errors import HUES, NAMES, NEUTRAL, HueErrors
from colorcore.dataset.loader import val_batches
from colorcore.inference.evaluate import baselines, score_with_baselines

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from colorcore.checkpoints.checkpoint import Checkpoint
    from colorcore.dataset.samples import Samples

PHOTOS = 200
"""Validation photos that are scored at most, spread evenly over the split."""
FEW = 0.01
"""Share of the pixels below which a hue is left out: a handful of photos decide its error."""
_COLUMNS = {
    "psnr": ("PSNR dB ↑", 2),
    "delta_e2000": ("ΔE2000 ↓", 2),
    "auc_balanced": ("AuC balanced ↑", 4),
    "cf_gap": ("CF gap ↓", 1),
}
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's scores on validation photos, for its card.

    photos  how many were scored
    scores  by row ("grey", "constant", "model"), then by metric
    hues    by sector: share of the pixels, and ΔE2000 of the model and of the constant
    """

    photos: int
    scores: Mapping[str, Mapping[str, float]]
    hues: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


class _ByHue:
    """The errors by hue of the model and of the constant mean colour, in one pass."""

    def __init__(self, mean_ab: tuple[float, float]) -> None:
        self._constant = baselines(mean_ab)["constant"]
        self.model, self.constant = HueErrors(), HueErrors()

    def update(self, lab_pred: Tensor, lab_true: Tensor, _: Tensor | None = None, /) -> None:
        self.model.update(lab_pred, lab_true)
        self.constant.update(self._constant(lab_true), lab_true)

    def rows(self) -> dict[str, tuple[float, float, float]]:
        found = {}
        constant = self.constant.compute()
        for name, row in self.model.compute().items():
            mine, theirs = row["delta_e2000"], constant[name]["delta_e2000"]
            if mine is not None and theirs is not None:
                found[name] = (row["share"] or 0.0, mine, theirs)
        return found


def measure(
    checkpoint: Checkpoint,
    network: nn.Module,
    val: Samples,
    *,
    device: torch.device | str = "cpu",
) -> Measured:
    """Score the network of a checkpoint with the checkpoint's decoding, and both baselines.

    In one process, on at most ``PHOTOS`` photos of the validation split.
    """
    stride = -(-len(val) // PHOTOS)
    by_hue = _ByHue(checkpoint.mean_ab)
    scores = score_with_baselines(
        network,
        val_batches(val, _BATCH, world=stride),
        checkpoint.palette,
        checkpoint.mean_ab,
        device=device,
        decoding=checkpoint.decoding,
        statistics=by_hue,
    )
    return Measured(int(scores["model"]["photos"]), scores, by_hue.rows())


def model_card(checkpoint: Checkpoint, counts: tuple[int, int], measured: Measured) -> str:
    """The card as Markdown.

    Args:
        checkpoint: the model and its training.
        counts: photos that it was trained and validated on.
        measured: its scores, from :func:`measure`.
    """
    return "\n".join(_lines(checkpoint, counts, measured)) + "\n"


def _lines(checkpoint: Checkpoint, counts: tuple[int, int], measured: Measured) -> Iterator[str]:
    recipe = checkpoint.recipe
    weights = sum(value.numel() for value in checkpoint.weights.values())
    train, val = counts
    yield from (
        "# Model card",
        "",
        "A colorizer of photos: `cc colorize FOLDER photo.jpg`, where FOLDER holds this file.",
        "",
        "## What it is",
        "",
        f"- **Model**: `{recipe.model.name}`, {weights:,} weights, which see photos at "
        f"{checkpoint.size} px.",
        f"- **Recipe**: {recipe.about}"
        if recipe.about
        else "- **Recipe**: at the end of this card.",
        f"- **Trained on** {train:,} photos and validated on {val:,} others: dataset "
        f"`{checkpoint.dataset}`.",
        f"- **Training**: as it was after {checkpoint.epoch} of {recipe.train.epochs} epochs, its "
        f"best by `{recipe.train.metric}`; seed {recipe.train.seed}.",
        f"- **Start weights**: {'; '.join(start_weights(checkpoint))}.",
        f"- **Decoding**: {checkpoint.decoding}, chosen on the validation photos.",
        "",
        "## Scores",
        "",
        f"On {measured.photos:,} validation photos, which chose the epoch and the decoding but "
        "trained nothing:",
        "",
        "| | " + " | ".join(title for title, _ in _COLUMNS.values()) + " |",
        "|---" * (1 + len(_COLUMNS)) + "|",
    )
    rows = {"grey": "grey", "constant": "constant mean colour", "model": "this model"}
    for key, title in rows.items():
        yield _row(title, measured.scores[key])
    if checkpoint.equal_cf:
        yield _row("this model, as vivid as 75% of the photos' colours", checkpoint.equal_cf)
    yield from ("", _verdict(measured.scores))
    for sign in checkpoint.signs:
        yield from ("", f"**Sign of bad colour**: {sign['name']}.")
    yield from ("", "## What it is good and bad at", "", *_hues(measured.hues))
    yield from ("", "## Recipe", "", "```toml", checkpoint.recipe.to_toml().rstrip(), "```")


def _row(title: str, scores: Mapping[str, float]) -> str:
    cells = [
        f"{scores[metric]:.{digits}f}" if metric in scores else "–"
        for metric, (_, digits) in _COLUMNS.items()
    ]
    return f"| {title} | " + " | ".join(cells) + " |"


def start_weights(checkpoint: Checkpoint) -> Iterator[str]:
    """What the training began with, and under which licence that may be passed on."""
    if checkpoint.origin:
        yield f"{checkpoint.origin}; its licence holds for this model, too"
    options = checkpoint.recipe.model.options()
    given = options.get("encoder_weights")
    if given == "imagenet":
        package = VARIANTS[options["encoder"]].package.replace("_", "-")
        yield (
            f"an encoder trained on ImageNet, from the Python package `{package}` "
            "(Apache License 2.0)"
        )
    elif given and given != "none":
        yield "a file of encoder weights that the recipe names; look up its licence"
    elif not checkpoint.origin:
        yield "none: all weights were learned from the photos above"


def _verdict(scores: Mapping[str, Mapping[str, float]]) -> str:
    model, constant = scores["model"], scores["constant"]
    better = [
        title.split()[0]
        for metric, (title, _) in _COLUMNS.items()
        if (model[metric] > constant[metric]) == title.endswith("↑")
        and model[metric] != constant[metric]
    ]
    worse = [title.split()[0] for title, _ in _COLUMNS.values() if title.split()[0] not in better]
    if not better:
        return "It is no better than one constant colour: it has learned nothing of use."
    if not worse:
        return "It is better than one constant colour in all of these."
    return (
        f"It is better than one constant colour in {', '.join(better)}, but not in "
        f"{', '.join(worse)}."
    )


def _hues(hues: Mapping[str, tuple[float, float, float]]) -> Iterator[str]:
    """A table of the hues, the best first, by how much smaller the error is than the constant's."""
    known = {name: row for name, row in hues.items() if row[0] >= FEW and row[2] > 0.0}
    if not known:
        yield "The validation photos have too few colours to tell."
        return
    yield from (
        "Mean ΔE2000 over the pixels of each hue of the photos, best first:",
        "",
        "| hue | share of pixels | this model | constant | better by |",
        "|---|---|---|---|---|",
    )
    names = dict(zip(NAMES, (*HUES, NEUTRAL), strict=True))
    for name, (share, mine, constant) in sorted(
        known.items(), key=lambda item: item[1][1] / item[1][2]
    ):
        gain = 1.0 - mine / constant
        yield f"| {names[name]} | {share:.0%} | {mine:.1f} | {constant:.1f} | {gain:.0%} |"
    yield from (
        "",
        f"Hues below {FEW:.0%} of the pixels are left out. The colour of a car or a shirt cannot",
        "be known from its lightness: expect a mean of what such things had in the photos above.",
    )
