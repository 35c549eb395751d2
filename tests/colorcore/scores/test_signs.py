"""Signs on constructed answers, on models that are trained to collapse, and on healthy ones."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import circmean, circvar
from torch import Tensor

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.lab import lab_to_rgb
from colorcore.inference.evaluate import evaluate, score_with_baselines, statistics_for
from colorcore.losses import steady_loss
from colorcore.recipes.recipe import load_recipe
from colorcore.scores.color_statistics import VIVID, ColorStatistics
from colorcore.scores.loss_history import BLOCK, COURSE, FEW, RECENT, LossHistory
from colorcore.scores.signs import find_signs, is_red_green, without_excused
from colorcore.training.events import ValidationEvent
from colorcore.training.fit import fit
from colorcore.training.state import FitData
from tests.colorcore.training.made_up import Diary, Killed, Killer, Photos, data_of

SIDE = 16
EVEN = torch.ones(256, 256)


def colors(chroma: float = 20.0, *, seed: int = 0, photos: int = 8) -> Tensor:
    """ab (photos, 2, SIDE, SIDE) of all hues, of chroma 0.5 to 1.5 times the given one."""
    generator = torch.Generator().manual_seed(seed)
    hue = torch.rand(photos, SIDE, SIDE, generator=generator) * 2 * math.pi
    C = chroma * (0.5 + torch.rand(photos, SIDE, SIDE, generator=generator))
    return torch.stack([C * hue.cos(), C * hue.sin()], dim=1)


def of_hue(degrees: Tensor | float, chroma: Tensor) -> Tensor:
    """ab (B, 2, H, W) of one hue, or of a hue a pixel, with chroma (B, H, W)."""
    radians = torch.deg2rad(torch.as_tensor(degrees)).expand_as(chroma)
    return torch.stack([chroma * radians.cos(), chroma * radians.sin()], dim=1)


def lab_of(ab: Tensor, L: float = 50.0) -> Tensor:
    return torch.cat([torch.full_like(ab[:, :1], L), ab], dim=1)


def measure(
    pred: Tensor, true: Tensor, rgb: Tensor | None = None, mean_ab: tuple[float, float] = (0.0, 0.0)
) -> dict[str, float]:
    statistics = ColorStatistics(mean_ab, EVEN)
    statistics.update(lab_of(pred), lab_of(true), rgb)
    return statistics.compute()


def names(statistics: dict[str, float], **options: bool) -> list[str]:
    return [sign.name for sign in find_signs(statistics, **options)]


# Statistics


def test_statistics_of_two_pixels_worked_out_by_hand():
    """Of (3, 4) and (0, -10) where the truth is (30, 0) and (0, 40)."""
    pred = torch.tensor([[3.0, 0.0], [4.0, -10.0]]).reshape(1, 2, 1, 2)
    true = torch.tensor([[30.0, 0.0], [0.0, 40.0]]).reshape(1, 2, 1, 2)
    found = measure(pred, true)
    assert found["chroma_ratio"] == pytest.approx(15 / 70)
    assert found["chroma_true"] == pytest.approx(35)
    assert found["hue_focus"] == pytest.approx(math.hypot(3, -6) / 15)
    assert found["hue"] == pytest.approx(math.degrees(math.atan2(-6, 3)) + 360)
    # Doubled angles: 5 e^(2iθ) of (3, 4) is ((9 - 16)/5, 24/5), 10 e^(2iθ) of (0, -10) is (-10, 0).
    assert found["axis_focus"] == pytest.approx(math.hypot(-1.4 - 10, 4.8) / 15)
    assert found["axis"] == pytest.approx(math.degrees(math.atan2(4.8, -11.4)) / 2)
    # Both true colours are beyond the chroma that counts, so each has the same weight.
    assert found["hue_focus_true"] == pytest.approx(math.sqrt(2) / 2)
    assert found["axis_focus_true"] == pytest.approx(0, abs=1e-7)
    # Means (1.5, -3) and (15, 20).
    assert found["cast"] == pytest.approx(math.hypot(-13.5, -23))
    assert found["cast_hue"] == pytest.approx(math.degrees(math.atan2(-23, -13.5)) + 360)
    assert found["purple"] == 0.0  # the answers are purple (297°), but the cast is blue (240°)


def test_focus_is_that_of_directional_statistics():
    """SciPy's circular variance is 1 - the mean resultant length, of angles of equal weight."""
    hue = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1)) * 200 + 40
    radians = np.deg2rad(hue.numpy().ravel())
    found = measure(of_hue(hue, torch.full_like(hue, 11.0)), colors(photos=1)[..., :8, :8])
    assert found["hue_focus"] == pytest.approx(1 - circvar(radians), abs=1e-5)
    assert found["hue"] == pytest.approx(math.degrees(circmean(radians)), abs=1e-3)
    assert found["axis_focus"] == pytest.approx(1 - circvar(2 * radians), abs=1e-5)
    assert found["axis"] == pytest.approx(math.degrees(circmean(2 * radians)) / 2, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.floats(-180, 180), st.floats(0.05, 1.2), st.integers(0, 5))
def test_turning_and_fading_colours_turns_hues_and_keeps_their_focus(turn, fade, seed):
    true = colors(12.0, seed=seed, photos=1)
    true = true + torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1)
    true = true * (VIVID / 1.2 / torch.linalg.vector_norm(true, dim=1).max())
    rotate = torch.view_as_complex(true.permute(0, 2, 3, 1).contiguous()) * fade
    turned = torch.view_as_real(rotate * torch.polar(torch.ones(1), torch.tensor([turn]).deg2rad()))
    plain, found = measure(true, true), measure(turned.permute(0, 3, 1, 2), true)
    assert found["chroma_ratio"] == pytest.approx(fade, rel=1e-4)
    assert found["hue_focus"] == pytest.approx(plain["hue_focus_true"], abs=1e-4)
    assert found["axis_focus"] == pytest.approx(plain["axis_focus_true"], abs=1e-4)
    difference = (found["hue"] - plain["hue"] - turn + 180) % 360 - 180
    assert difference == pytest.approx(0, abs=0.1)


def test_batches_and_ranks_add_up():
    pred, true = colors(seed=1), colors(seed=2)
    rgb = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    whole = measure(pred, true, rgb, (4.0, 9.0))
    parts = [ColorStatistics((4.0, 9.0), EVEN) for _ in range(2)]
    for rows, part in ((slice(0, 3), 0), (slice(3, 4), 1), (slice(4, 8), 1)):
        parts[part].update(lab_of(pred[rows]), lab_of(true[rows]), rgb[rows])
    together = ColorStatistics((4.0, 9.0), EVEN)
    together.add_state(parts[0].state() + parts[1].state())
    assert together.compute() == pytest.approx(whole, rel=1e-5)
    assert ColorStatistics((0.0, 0.0), EVEN).compute() == {}
    with pytest.raises(ValueError, match="expected 23 sums, got shape"):
        together.add_state(torch.zeros(3))


def test_gain_is_the_models_balanced_auc_less_the_constants(tmp_path: Path):
    data = data_of(Photos(12, seed=0, size=SIDE), Photos(9, seed=1, size=SIDE))
    small = ["model.channels=4", "model.depth=2", "train.epochs=1", "data.batch=4"]
    fit(load_recipe("simple", small), data, tmp_path)
    model = load_checkpoint(tmp_path / "last").model()
    batches = data.val.lab_u8.split(4)  # type: ignore[attr-defined]
    both = [statistics_for(data.palette, data.mean_ab) for _ in range(2)]
    scores = score_with_baselines(model, batches, data.palette, data.mean_ab, statistics=both[0])
    expected = scores["model"]["auc_balanced"] - scores["constant"]["auc_balanced"]
    assert both[0].compute()["gain"] == pytest.approx(expected, abs=1e-6)
    evaluate(model, batches, data.palette, statistics=both[1])
    assert both[1].compute() == pytest.approx(both[0].compute(), rel=1e-5)


# Signs of constructed answers


def test_the_truth_has_no_signs_and_neither_has_an_answer_near_it():
    true = colors()
    assert names(measure(true, true)) == []
    assert names(measure(true + colors(15.0, seed=5), true)) == []
    assert names(measure(0.7 * true, true)) == []


@pytest.mark.parametrize(
    ("factor", "sign"), [(0.05, "grey"), (0.3, "washed_out"), (1.2, None), (1.8, "over_saturated")]
)
def test_chroma_is_compared_with_the_photos(factor: float, sign: str | None):
    found = find_signs(measure(factor * colors(), colors()))
    assert [each.name for each in found] == ([sign] if sign else [])
    for each in found:
        assert each.value == pytest.approx(factor, rel=1e-5)
        assert f"{factor:.0%}" in each.meaning


@pytest.mark.parametrize(("hue", "word"), [(75.0, "brown"), (215.0, "blue-green"), (15.0, "pink")])
def test_one_hue_is_sepia(hue: float, word: str):
    true = colors()
    hues = hue + 12 * torch.randn(true[:, 0].shape, generator=torch.Generator().manual_seed(0))
    (sign,) = find_signs(measure(of_hue(hues, torch.full_like(hues, 14.0)), true))
    assert (sign.name, word in sign.meaning) == ("sepia", True)
    assert sign.hue == pytest.approx(hue, abs=2)


def test_a_few_glaring_specks_do_not_hide_sepia():
    """What a heavy diversity term was seen to make: brown photos with red and green dots."""
    true, pred = colors(), of_hue(80.0, torch.full((8, SIDE, SIDE), 8.0))
    pred[:, :, ::10, ::10] = torch.tensor([90.0, 0.0]).reshape(1, 2, 1, 1)
    pred[:, :, ::10, 3::10] = torch.tensor([-90.0, 0.0]).reshape(1, 2, 1, 1)
    assert "sepia" in names(measure(pred, true))


@pytest.mark.parametrize(
    ("axis", "words"), [(0.0, "red and green"), (165.0, "red and green"), (95.0, "blue and yellow")]
)
def test_two_opposite_hues_are_two_tone(axis: float, words: str):
    true = colors()
    side = torch.where(torch.arange(SIDE) % 3 == 0, axis + 180.0, axis).expand(8, SIDE, SIDE)
    (sign,) = find_signs(measure(of_hue(side, torch.full((8, SIDE, SIDE), 15.0)), true))
    assert (sign.name, words in sign.meaning) == ("two_tone", True)
    assert (sign.hue or 0.0) % 180 == pytest.approx(axis, abs=0.1)
    assert is_red_green(axis) == (words == "red and green")


def test_a_hue_and_another_that_is_not_opposite_are_no_sign():
    side = torch.where(torch.arange(SIDE) % 2 == 0, 20.0, 130.0).expand(8, SIDE, SIDE)
    assert names(measure(of_hue(side, torch.full((8, SIDE, SIDE), 15.0)), colors())) == []


def test_photos_of_few_hues_are_no_symptom_of_the_model():
    """Brown photos: answers as brown are right; sepia is narrower than even these."""
    chroma = torch.full((8, SIDE, SIDE), 18.0)
    noise = torch.randn(chroma.shape, generator=torch.Generator().manual_seed(0))
    brown = of_hue(75.0 + 28.0 * noise, chroma)
    found = measure(brown, brown)
    assert found["hue_focus"] > 0.88
    assert names(found) == []
    assert names(measure(of_hue(75.0, chroma), brown)) == ["sepia"]
    purple = of_hue(315.0 + 28.0 * noise, chroma)
    assert names(measure(purple, purple)) == []


def test_purple_beyond_what_the_photos_are():
    true = colors(14.0)
    pushed = true + torch.tensor([9.0, -9.0]).reshape(1, 2, 1, 1)
    (sign,) = find_signs(measure(pushed, true))
    assert (sign.name, sign.value) == ("purple_cast", pytest.approx(math.hypot(9, 9), abs=0.8))
    assert sign.hue == pytest.approx(315, abs=1)
    # Blue, pink and green are casts, but no purple; nor is grey among green photos.
    for a, b in ((0.0, -12.0), (12.0, 2.0), (-12.0, 6.0)):
        tinted = true + torch.tensor([a, b]).reshape(1, 2, 1, 1)
        assert "purple_cast" not in names(measure(tinted, true))
    greens = true + torch.tensor([-9.0, 9.0]).reshape(1, 2, 1, 1)
    assert names(measure(0.0 * greens, greens)) == ["grey"]


@pytest.mark.parametrize(
    ("L", "word"), [(70.0, "too bright"), (25.0, "too dark"), (None, "uneven"), (54.0, None)]
)
def test_brightness_of_an_rgb_head(L: float | None, word: str | None):
    """The photos have L = 50; the answer's own L is what counts, and the joined one does not."""
    true = colors(8.0)
    lab = lab_of(true, L or 50.0)
    if L is None:
        lab[:, :1, ::2], lab[:, :1, 1::2] = 70.0, 30.0
    found = find_signs(measure(true, true, lab_to_rgb(lab)))
    assert [(each.name, each.meaning.split(": ")[1]) for each in found] == (
        [("wrong_brightness", word)] if word else []
    )
    if L and word:
        assert found[0].value == pytest.approx(abs(L - 50), abs=1.0)


def test_photos_without_colour_say_nothing_about_a_models_colours():
    assert names(measure(colors(20.0), colors(1.0))) == []


def test_an_answer_that_is_no_number_has_diverged():
    pred = colors()
    pred[0, 0, 0, 0] = math.nan
    found = find_signs(measure(pred, colors()), young=True)
    assert [each.name for each in found] == ["diverged"]
    assert "is not finite" in found[0].meaning


def test_a_young_model_may_be_grey_and_unsteady_but_not_diverge():
    grey = {**measure(0.0 * colors(), colors()), "loss_swing": 0.5}
    assert names(grey) == ["grey", "oscillating"]
    assert names(grey, young=True) == []
    assert names({**grey, "loss_rise": 3.0}, young=True) == ["diverged"]


# The course of the loss


def history(losses: list[float], batch: int = BLOCK, lr: float = 1.0) -> LossHistory:
    kept = LossHistory(batch)
    for loss in losses:
        kept.add(loss, lr)
    return kept


def test_the_guides_example_of_a_bad_training_oscillates_and_that_of_a_good_one_does_not():
    bad, good = [0.12, 0.15, 0.09, 0.13] * 3, [0.12, 0.1, 0.08, 0.06, 0.04, 0.035, 0.03, 0.028]
    found = history(bad).compute()
    rises, falls = [0.03, 0.04] * 3, [0.06] * 3 + [0.01] * 2
    assert sum(rises) < sum(falls) + 0.011
    swing = 2 * min(sum(rises), sum(falls)) / (11 * np.mean(bad))
    assert found["loss_swing"] == pytest.approx(swing)
    assert names(found) == ["oscillating"]
    assert history(good).compute()["loss_swing"] == 0.0
    assert names(history(good).compute()) == []


def test_the_noise_of_batches_is_no_oscillation():
    """Batches of 16 whose loss has a standard deviation of 30%, as a squared error's was seen."""
    rng = np.random.default_rng(0)
    found = history(list(0.02 * (1 + 0.3 * rng.standard_normal(3000))), batch=16).compute()
    assert 0.02 < found["loss_swing"] < 0.08
    assert names(found) == []


def test_a_loss_that_leaves_its_start_has_diverged():
    up = history([1.0] * 4 + [1.2, 1.6, 2.4, 3.2, 4.8]).compute()
    assert up["loss_rise"] == pytest.approx(4.0)
    assert names(up) == ["diverged"]
    assert names(history([0.3] + [1.0] * 10).compute()) == ["diverged"]  # from the first step
    assert names(history([1.0] * 4 + [0.3, 0.3, 0.4, 0.4, 0.4]).compute()) == []


def test_flat_is_a_plateau_only_if_a_constant_would_do():
    flat = history([0.11] * 40).compute()
    assert flat["loss_fall"] == pytest.approx(0.0)
    (sign,) = find_signs({**flat, "gain": -0.004})
    assert (sign.name, sign.value) == ("plateaued", -0.004)
    assert names({**flat, "gain": 0.004}) == []
    falling = history(list(np.geomspace(1.0, 0.3, 40))).compute()
    # The mean of the last ten is less than that of the ten before by the ratio of ten steps.
    assert falling["loss_fall"] == pytest.approx(1 - 0.3 ** (10 / 39))
    assert names({**falling, "gain": -0.004}) == []


def test_a_few_steps_are_no_course():
    assert history([1.0, 9.0] * 100, batch=16).compute() == {}
    assert history([1.0] * (FEW - 1)).compute() == {}
    assert history([1.0] * FEW).compute().keys() == {"loss_swing", "loss_rise"}


def test_blocks_are_means_of_enough_photos_or_of_a_few_epochs():
    rng = np.random.default_rng(1)
    losses = rng.uniform(1, 2, 640)
    kept = history(list(losses), batch=60)  # blocks of 9 steps: 540 photos
    assert kept.blocks == 71
    blocks = losses[: 71 * 9].reshape(71, 9).mean(1)[-RECENT:]
    steps = np.diff(blocks)
    swing = 2 * min(steps[steps > 0].sum(), -steps[steps < 0].sum()) / (31 * blocks.mean())
    assert kept.compute()["loss_swing"] == pytest.approx(swing)
    assert LossHistory(16, steps_per_epoch=2)._steps_per_block == 8


def test_the_whole_course_is_kept_in_bounded_space():
    """Halved in resolution whenever it is full; a mean stays a mean."""
    losses = np.linspace(5.0, 1.0, 1000)
    kept = history(list(losses))
    assert len(kept.state()) == len(LossHistory(16).state())
    parts = np.array(kept._course)
    assert COURSE / 2 <= len(parts) < COURSE
    width = kept._blocks_per_part
    assert parts == pytest.approx(losses[: width * len(parts)].reshape(-1, width).mean(1))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 299), st.sampled_from([16, 200, 600]))
def test_a_history_that_is_resumed_is_the_same_bit_for_bit(steps, cut, batch):
    losses = list(np.random.default_rng(steps).uniform(0.1, 1.0, steps))
    whole, first = history(losses, batch), history(losses[:cut], batch)
    resumed = LossHistory()
    resumed.load_state(json.loads(json.dumps(first.state())))
    for loss in losses[cut:]:
        resumed.add(loss, 1.0)
    assert resumed.state() == whole.state()
    assert resumed.compute() == whole.compute()


def test_ranks_keep_the_mean_of_their_losses():
    rng = np.random.default_rng(2)
    ranks = rng.uniform(0.5, 1.5, (3, 50))
    states = torch.tensor([history(list(losses), 256).state() for losses in ranks])
    merged = LossHistory()
    merged.load_state((states / 3).sum(0).tolist())
    assert merged.compute() == pytest.approx(history(list(ranks.mean(0)), 256).compute())
    before = merged.state()
    merged.load_state([1.0, 2.0])  # of another version
    assert merged.state() == before


def test_a_training_is_young_while_its_rate_rises_and_for_a_few_blocks():
    kept = LossHistory(128)
    youth = []
    for step in range(40):
        kept.add(1.0, min(step + 1, 25) / 25)
        youth.append(kept.young)
    assert youth == [True] * 25 + [False] * 15
    constant = LossHistory(128)
    youth = []
    for _ in range(40):
        constant.add(1.0, 1.0)
        youth.append(constant.young)
    assert youth == [True] * 15 + [False] * 25


def test_what_a_judge_says_is_not_part_of_the_course():
    terms = {"bins_ce": 3.0, "adversarial": -40.0, "feature_matching": 7.0, "residual": 0.5}
    assert steady_loss(terms, dict.fromkeys(terms, 2.0)) == 7.0


# Models that are trained to collapse


class Painted(Photos):
    """Photos whose (a, b) are what a function makes of them: lab (B, 3, H, W) CIELAB -> ab."""

    def __init__(self, photos: int, paint, *, seed: int, size: int = SIDE) -> None:
        super().__init__(photos, seed=seed, size=size)
        lab = self.lab_u8.float()
        lab[:, 1:] -= 128.0
        lab[:, 1:] = paint(lab)
        self.lab_u8[:, 1:] = (lab[:, 1:] + 128.0).round().clamp(0, 255).byte()


def unforeseeable(lab: Tensor) -> Tensor:
    """All hues, and lightness says nothing of them: another photo's."""
    return lab[:, 1:].roll(1, 0)


def brownish(lab: Tensor) -> Tensor:
    """The same around a brown: as photos are."""
    return 0.6 * unforeseeable(lab) + torch.tensor([5.0, 14.0]).reshape(1, 2, 1, 1)


def by_lightness(lab: Tensor) -> Tensor:
    """Red where it is dark and green where it is light; blue or yellow, who knows."""
    dark = lab[:, 0] < lab[:, 0].median()
    return torch.stack([torch.where(dark, 35.0, -35.0), unforeseeable(lab)[:, 1]], dim=1)


def data_for(train: Photos, val: Photos) -> FitData:
    """With the mean colour of the photos that are trained on."""
    a, b = (train.lab_u8[:, 1:].float() - 128.0).mean((0, 2, 3)).tolist()
    return replace(data_of(train, val), mean_ab=(a, b))


def train(tmp_path: Path, data: FitData, *overrides: str) -> ValidationEvent:
    """The last validation of a small training."""
    small = ["model.channels=8", "model.depth=2", "data.batch=16", "train.ema=0.9"]
    diary = Diary()
    recipe = load_recipe("simple", [*small, *overrides])
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"eval_every": recipe.train.epochs})}
    )
    fit(recipe, data, tmp_path, observers=[diary])
    (validation,) = diary.validations
    return validation


def seen(validation: ValidationEvent) -> list[str]:
    return [sign.name for sign in validation.signs]


@pytest.fixture(scope="module")
def brown() -> FitData:
    return data_for(Painted(64, brownish, seed=0), Painted(24, brownish, seed=1))


MSE = "loss_options={weighted_mse = {grey = 1.0, saturated = 1.0}}"


@pytest.mark.slow
def test_plain_mse_at_a_tenfold_rate_is_sepia(brown: FitData, tmp_path: Path):
    validation = train(tmp_path, brown, MSE, "optim.lr=1e-2", "train.epochs=12")
    assert "sepia" in seen(validation)
    (sign,) = [sign for sign in validation.signs if sign.name == "sepia"]
    assert 40 < (sign.hue or 0) < 95
    assert validation.statistics["hue_focus_true"] < 0.8


def test_plain_mse_on_photos_of_all_hues_is_grey(tmp_path: Path):
    """Their mean colour is grey."""
    data = data_for(Painted(64, unforeseeable, seed=0), Painted(24, unforeseeable, seed=1))
    assert "grey" in seen(train(tmp_path, data, MSE, "optim.lr=1e-3", "train.epochs=12"))


@pytest.mark.parametrize(("diversity", "collapsed"), [(0, True), (100, False)])
def test_a_diversity_of_nothing_is_sepia_and_one_of_100_is_wild(
    brown: FitData, tmp_path: Path, diversity: int, collapsed: bool
):
    loss = f"loss={{ab_huber = 2.0, diversity = {diversity}.0}}"
    validation = train(tmp_path, brown, loss, "optim.lr=3e-3", "train.epochs=12")
    assert ("sepia" in seen(validation)) == collapsed
    if not collapsed:
        assert validation.statistics["chroma_ratio"] > 0.5
        assert validation.statistics["gain"] < 0.0


def test_nothing_but_saturation_is_vivid_and_of_one_hue(brown: FitData, tmp_path: Path):
    loss = "loss={ab_l1 = 1.0, saturation = 100.0}"
    validation = train(tmp_path, brown, loss, "optim.lr=3e-3", "train.epochs=12")
    assert seen(validation)[0] == "sepia"
    assert validation.statistics["chroma_ratio"] > 0.7


@pytest.mark.slow
def test_an_rgb_head_without_a_luminance_term_has_the_wrong_brightness(
    brown: FitData, tmp_path: Path
):
    """Of dark photos, as it starts with a middle grey."""
    dark = [copy.copy(photos) for photos in (brown.train, brown.val)]
    for photos in dark:
        photos.lab_u8 = photos.lab_u8 // torch.tensor([3, 1, 1]).reshape(1, 3, 1, 1)  # type: ignore[attr-defined]
    loss, head = "loss={ab_l1 = 1.0}", "model.head=rgb"
    without = train(tmp_path / "1", data_for(*dark), loss, head, "optim.lr=1e-2", "train.epochs=20")
    assert "wrong_brightness" in seen(without)
    more = "loss={ab_l1 = 1.0, luminance = 3.0}"
    with_term = train(
        tmp_path / "2", data_for(*dark), more, head, "optim.lr=1e-2", "train.epochs=30"
    )
    assert "wrong_brightness" not in seen(with_term)
    assert with_term.statistics["lightness_error"] < without.statistics["lightness_error"] / 2


def test_photos_with_a_purple_cast_teach_one(brown: FitData, tmp_path: Path):
    purple = Painted(64, lambda lab: brownish(lab) + torch.tensor([[[14.0]], [[-30.0]]]), seed=0)
    data = replace(brown, train=purple)
    validation = train(tmp_path, data, "optim.lr=3e-3", "train.epochs=15")
    assert "purple_cast" in seen(validation)


@pytest.mark.slow
def test_what_knows_only_red_from_green_is_two_tone(tmp_path: Path):
    data = data_for(Painted(64, by_lightness, seed=0), Painted(24, by_lightness, seed=1))
    loss = "loss={ab_l1 = 1.0}"
    validation = train(tmp_path, data, loss, "optim.lr=1e-2", "train.epochs=25")
    (sign,) = [sign for sign in validation.signs if sign.name == "two_tone"]
    assert "red and green" in sign.meaning
    # It does well, so it is no collapse; had it gained nothing, it would be one.
    assert validation.statistics["gain"] > 0.005
    assert sign not in without_excused(validation.signs, validation.statistics)
    assert sign in without_excused(validation.signs, {**validation.statistics, "gain": 0.004})


@pytest.mark.slow
def test_a_model_of_gaudier_photos_is_over_saturated(tmp_path: Path):
    data = data_for(
        Painted(64, lambda lab: 1.5 * by_lightness(lab), seed=0),
        Painted(24, lambda lab: 0.5 * by_lightness(lab), seed=1),
    )
    validation = train(tmp_path, data, "optim.lr=3e-3", "train.epochs=20")
    assert "over_saturated" in seen(validation)


@pytest.mark.slow
def test_a_model_that_learned_its_photos_has_no_signs(tmp_path: Path):
    photos = Photos(8, seed=0, size=SIDE)
    validation = train(
        tmp_path, data_for(photos, photos), "model.channels=16", "data.batch=8", "data.flip=false",
        "optim.lr=1e-2", "train.epochs=150",
    )  # fmt: skip
    assert seen(validation) == []
    assert validation.statistics["gain"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "oscillates"), [("5e-2", True), ("2e-3", False)])
def test_a_rate_that_is_too_high_to_settle_oscillates(tmp_path: Path, lr: str, oscillates: bool):
    """Eight photos by heart, without a schedule that would calm down by itself."""
    data = data_for(Photos(8, seed=0, size=SIDE), Photos(4, seed=1, size=SIDE))
    constant = ("data.batch=8", "optim.schedule=constant", "data.flip=false", "train.epochs=250")
    validation = train(tmp_path, data, *constant, f"optim.lr={lr}")
    assert ("oscillating" in seen(validation)) == oscillates


@pytest.mark.slow
def test_a_rate_that_is_far_too_high_diverges(brown: FitData, tmp_path: Path):
    validation = train(
        tmp_path, brown, "optim.lr=9", "optim.clip=none", "optim.schedule=constant",
        "train.epochs=40",
    )  # fmt: skip
    assert "diverged" in seen(validation)


@pytest.mark.slow
def test_a_rate_that_is_far_too_low_is_a_plateau(brown: FitData, tmp_path: Path):
    validation = train(tmp_path, brown, "optim.lr=1e-8", "train.epochs=70", "model.channels=2")
    assert seen(validation) == ["grey", "plateaued"]


# In the training loop


@pytest.mark.slow
def test_signs_wait_for_the_warm_up_and_speak_at_the_end(brown: FitData, tmp_path: Path):
    overrides = ["model.channels=2", "model.depth=2", "data.batch=16", "optim.lr=1e-8"]
    recipe = load_recipe("simple", [*overrides, "train.epochs=24", "train.eval_every=8"])
    diary = Diary()
    fit(recipe, brown, tmp_path, observers=[diary])
    # Four steps per epoch, so a block has 16, four epochs; the first four blocks are youth.
    assert [seen(event) for event in diary.validations] == [[], ["grey"], ["grey"]]
    for event in diary.validations:
        assert {"chroma_ratio", "hue_focus", "gain", "cast"} <= event.statistics.keys()
    diary = Diary()
    short = load_recipe("simple", [*overrides, "train.epochs=2"])
    fit(short, brown, tmp_path / "short", observers=[diary])
    assert [seen(event) for event in diary.validations] == [[], ["grey"]]


@pytest.mark.slow
def test_a_resumed_run_finds_the_signs_of_one_that_never_stopped(brown: FitData, tmp_path: Path):
    recipe = load_recipe(
        "simple",
        ["model.channels=2", "model.depth=2", "data.batch=16", "optim.lr=0.3", "train.epochs=40",
         "optim.schedule=constant", "train.eval_every=10"],
    )  # fmt: skip
    whole, parts = Diary(), Diary()
    fit(recipe, brown, tmp_path / "whole", observers=[whole])
    with pytest.raises(Killed):
        fit(recipe, brown, tmp_path / "parts", observers=[parts, Killer(90)])
    resume = load_checkpoint(tmp_path / "parts/last", training=True)
    assert resume.history
    fit(recipe, brown, tmp_path / "parts", resume=resume, observers=[parts])
    for event, again in zip(whole.validations, parts.validations, strict=True):
        assert (event.statistics, event.signs) == (again.statistics, again.signs)
    assert "loss_swing" in whole.validations[-1].statistics
    ends = [load_checkpoint(tmp_path / name / "last").history for name in ("whole", "parts")]
    assert ends[0] == ends[1]


def test_checkpoints_of_before_are_resumed_without_a_history(brown: FitData, tmp_path: Path):
    recipe = load_recipe("simple", ["model.channels=2", "model.depth=2", "train.epochs=1"])
    fit(recipe, brown, tmp_path)
    file = tmp_path / "last" / "checkpoint.json"
    record = json.loads(file.read_text())
    del record["history"]
    file.write_text(json.dumps(record))
    assert load_checkpoint(tmp_path / "last", training=True).history == []


@pytest.mark.slow
def test_the_loss_of_steps_is_what_the_history_has_seen(brown: FitData, tmp_path: Path):
    diary = Diary()
    recipe = load_recipe(
        "simple",
        [
            "model.channels=2",
            "model.depth=2",
            "data.batch=16",
            "train.epochs=32",
            "train.eval_every=32",
        ],
    )
    fit(recipe, brown, tmp_path, observers=[diary])
    losses = np.array([event.loss for event in diary.steps])
    assert len(losses) == 128
    blocks = losses.reshape(8, 16).mean(1)
    statistics = diary.validations[-1].statistics
    assert statistics["loss_rise"] == pytest.approx(blocks[-2:].mean() / blocks[0], rel=1e-5)
    rises = sum(after - before for before, after in pairwise(blocks) if after > before)
    falls = sum(before - after for before, after in pairwise(blocks) if after < before)
    swing = 2 * min(rises, falls) / (7 * blocks.mean())
    assert statistics["loss_swing"] == pytest.approx(swing, rel=1e-4, abs=1e-9)
