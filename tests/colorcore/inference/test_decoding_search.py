"""Sweep and choice, on answers whose best setting is known."""

import io
import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from colorcore.color.lab import decode_lab
from colorcore.color.palette import Palette
from colorcore.decoding import Decoding
from colorcore.drawing.front_plot import draw_front
from colorcore.inference import decoding_search as module
from colorcore.inference.decoding_search import (
    CHROMAS,
    COLOR,
    FIDELITY,
    TEMPERATURES,
    WIDER,
    choose,
    choose_decoding,
    grid,
    scoring,
    sweep,
    undominated,
)
from colorcore.inference.evaluate import baselines, evaluate, evaluation_for
from colorcore.inference.predict import predict_lab
from colorcore.models import build_model
from colorcore.models.decoding import own_decoding
from tests.colorcore.inference.made_up import Knows, Photos, stored_photos


class KnowsInBins(nn.Module):
    """Sure of the wrong bin by a little: only a mean over all bins is right."""

    def __init__(self, stored: Tensor, best: float) -> None:
        super().__init__()
        self.knows, self.best = Knows(stored, 1.0), best

    def use_palette(self, palette: Palette) -> None: ...

    def forward(self, L_norm: Tensor) -> dict[str, Tensor]:
        truth = self.knows(L_norm)["ab"]
        return {
            "ab": self._at(truth, 0.38),
            "logits": truth,
            "residual": truth,
            "confidence": truth,
        }

    def _at(self, truth: Tensor, temperature: float) -> Tensor:
        return truth + 60 * abs(temperature - self.best)

    def decode(self, logits, residual, confidence, *, size=None, temperature=0.38) -> Tensor:
        return self._at(logits, temperature)


# The sweep


def test_a_sweep_is_separate_evaluations_with_one_look_of_the_network(palette: Palette):
    stored = stored_photos()
    torch.manual_seed(0)
    model = build_model("resnet-unet", channels=4, bins=6)
    model.use_palette(palette)
    nn.init.normal_(model.bins.weight, std=1.0)
    model.eval()
    looks = []
    model.register_forward_hook(lambda *_: looks.append(1))
    settings = [Decoding(t, c) for t, c in product((0.2, 1.0), (0.8, 1.7))]
    swept = sweep(model, stored.split(4), palette, settings)
    assert len(looks) == 3
    assert list(swept) == settings
    seen = set()
    for decoding, evaluation in swept.items():
        alone = evaluation_for(palette)
        lab = decode_lab(stored)
        alone.update(predict_lab(model, lab, decoding), lab)
        assert evaluation.compute() == pytest.approx(alone.compute(), rel=1e-5)
        seen.add(round(evaluation.compute()["psnr"], 6))
    assert len(seen) == len(settings)
    own = sweep(model, [stored], palette, [own_decoding(model)])[own_decoding(model)].compute()
    validated = evaluate(model, [stored], palette)[0].compute()
    assert {name: validated[name] for name in own} == pytest.approx(own)


def test_the_grid_of_a_model(palette: Palette):
    bins, regression = (
        build_model("resnet-unet", channels=4, bins=6),
        build_model("unet", channels=4),
    )
    chromas = sorted((*CHROMAS, *WIDER))
    assert grid(bins) == [Decoding(t, c) for t in TEMPERATURES for c in chromas]
    assert grid(regression) == [Decoding(None, c) for c in chromas]
    for model in (bins, regression):
        assert own_decoding(model) in grid(model)
    odd = grid(bins, [Decoding(0.5, 1.5), Decoding(chroma=3.0), Decoding(1.0, 1.0)])
    assert set(odd) - set(grid(bins)) == {Decoding(0.5, 1.5), Decoding(0.38, 3.0)}
    temperatures = [setting.temperature for setting in odd]
    assert temperatures == sorted(temperatures)  # neighbours share what is decoded


# The choice


@pytest.mark.parametrize(
    "metric", ["auc_balanced", "auc", "psnr", "ab_l1", "delta_e2000", "cf_gap"]
)
@pytest.mark.parametrize(
    ("faded", "found"), [(1 / 1.4, 1.4), (1 / 2.0, 2.0), (1.25, 0.8), (1.0, 1.0)]
)
def test_faded_colours_are_restored(palette: Palette, metric: str, faded: float, found: float):
    photos = Photos(stored_photos())
    chosen, scores, _ = choose_decoding(Knows(photos.lab_u8, faded), photos, palette, metric)
    assert chosen == Decoding(None, found)
    assert scores["ab_l1"] < 1e-4


@pytest.mark.parametrize("best", [0.2, 0.38, 1.0])
def test_the_temperature_is_found(palette: Palette, best: float):
    photos = Photos(stored_photos())
    chosen, scores, _ = choose_decoding(KnowsInBins(photos.lab_u8, best), photos, palette, "psnr")
    assert chosen == Decoding(best, 1.0)
    assert scores["psnr"] == 100.0


def test_wrong_colours_are_made_paler_and_not_more_vivid(palette: Palette):
    """Of the opposite hue: balanced AuC wants less of them, the colourfulness gap more."""
    photos = Photos(stored_photos())
    model = Knows(photos.lab_u8, 0.5, hue=math.pi)
    assert choose_decoding(model, photos, palette, "auc_balanced")[0] == Decoding(None, 0.8)
    # Chroma scales that only serve comparisons would give an even smaller gap.
    assert choose_decoding(model, photos, palette, "cf_gap")[0] == Decoding(None, 2.0)


def rows(**scores: float) -> dict[Decoding, dict[str, float]]:
    """T 0.38 with the chroma that a name gives in tenths: c8=…, c10=…"""
    return {Decoding(0.38, int(k[1:]) / 10): {"auc": v, "cf_gap": v} for k, v in scores.items()}


OWN = Decoding(0.38, 1.0)


@pytest.mark.parametrize(
    ("scores", "grey", "chosen"),
    [
        (rows(c8=0.90, c10=0.80, c12=0.70), 0.5, 0.8),
        (rows(c8=0.90, c10=0.90, c12=0.90), 0.5, 1.0),
        (rows(c8=0.90, c10=0.885, c12=0.70), 0.5, 1.0),  # 96% of the gain of 0.4
        (rows(c8=0.90, c10=0.875, c12=0.70), 0.5, 0.8),  # 94%
        (rows(c8=0.70, c10=0.60, c12=0.89, c14=0.90), 0.5, 1.2),
        (rows(c8=0.42, c10=0.41, c12=0.40), 0.5, 0.8),  # all worse than grey: the best
        (rows(c8=math.nan, c10=0.80, c12=0.90), 0.5, 1.2),
        (rows(c8=math.nan, c10=math.nan), 0.5, 1.0),
    ],
)
def test_the_nearest_that_is_about_as_good_is_chosen(scores, grey: float, chosen: float):
    assert choose(scores, "auc", OWN, grey) == Decoding(0.38, chosen)


def test_a_metric_of_which_less_is_better():
    assert choose(rows(c8=20.0, c10=30.0, c12=10.0), COLOR, OWN, 40.0) == Decoding(0.38, 1.2)
    assert choose(rows(c10=30.0, c12=29.0), COLOR, OWN, 60.0) == OWN


def test_the_choice_goes_by_photos_from_all_over_and_is_scored_on_all(
    palette: Palette, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PHOTOS", 4)
    photos = Photos(stored_photos(9))
    _, scores, equal = choose_decoding(Knows(photos.lab_u8, 0.5), photos, palette, "psnr")
    assert equal is not None
    assert equal.scores["photos"] == 3  # those that chose
    assert photos.asked == [0, 3, 6, *range(9)]
    assert scores["photos"] == 9
    for world in (2, 3):
        parts = []
        for rank in range(world):
            share = Photos(photos.lab_u8)
            list(module.val_batches(share, 32, rank=rank * 3, world=world * 3))
            parts += share.asked
        assert sorted(parts) == [0, 3, 6]


# The front


def test_the_undominated_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    metrics = (*FIDELITY, COLOR)
    scores = {
        Decoding(None, 1 + n / 100): dict(zip(metrics, rng.integers(0, 6, 4).tolist(), strict=True))
        for n in range(60)
    }
    better = {"psnr": 1, "delta_e2000": -1, "auc_balanced": 1, "cf_gap": -1}
    expected = []
    for one, mine in scores.items():
        gains = [[better[m] * (other[m] - mine[m]) for m in metrics] for other in scores.values()]
        if not any(min(gain) >= 0 and max(gain) > 0 for gain in gains):
            expected.append(one)
    assert undominated(scores, metrics) == expected
    assert 0 < len(expected) < 60


def test_answers_are_scored_as_the_photos_pass(palette: Palette):
    stored = stored_photos()
    grey = evaluation_for(palette)
    passed = list(scoring(stored.split(4), grey, baselines((0.0, 0.0))["grey"], "cpu"))
    assert torch.equal(torch.cat(passed), stored)
    assert grey.compute()["photos"] == len(stored)
    assert grey.compute()["cf"] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("temperatures", [(None,), (0.2, 0.38, 1.0)])
def test_the_plot_is_a_picture_that_repeats_itself(temperatures):
    rng = np.random.default_rng(0)

    def row() -> dict[str, float]:
        return dict(zip((*FIDELITY, COLOR), rng.uniform(10, 30, 4).tolist(), strict=True))

    scores = {Decoding(t, c): row() for t in temperatures for c in (0.8, 1.0, 1.4)}
    marked = {"default": Decoding(temperatures[0], 1.0), "stored": Decoding(temperatures[-1], 1.4)}
    beside = {"grey": row(), "constant": row()}
    png = draw_front(scores, beside, marked, "a title")
    assert png == draw_front(scores, beside, marked, "a title")
    assert png != draw_front(scores, beside, {"default": marked["default"]}, "a title")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (1800, 720)
        assert np.asarray(picture.convert("L")).std() > 5
