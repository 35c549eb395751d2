"""Fronts read at equal colourfulness: by hand, and of models that differ in their chroma only."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.color.lab import decode_lab
from colorcore.color.palette import Palette
from colorcore.decoding import Decoding
from colorcore.inference.decoding_search import CHROMAS, WIDER, choose_decoding, grid, sweep
from colorcore.inference.equal_colorfulness import (
    EQUAL,
    SHARE,
    SHARES,
    SMALL,
    EqualColorfulness,
    Reading,
    read_at,
    read_at_shares,
)
from tests.colorcore.inference.made_up import Knows, Photos, stored_photos

Front = dict[Decoding, dict[str, float]]


def front(*rows: tuple[float, float, float], temperature: float | None = None) -> Front:
    """Settings of (chroma, cf, psnr); balanced AuC is a hundredth of PSNR, the photos' CF 40."""
    return {
        Decoding(temperature, chroma): {
            "cf": cf,
            "cf_true": 40.0,
            "cf_gap": abs(cf - 40.0),
            "psnr": psnr,
            "auc_balanced": psnr / 100,
        }
        for chroma, cf, psnr in rows
    }


# By hand


def test_between_two_settings():
    reading = read_at(front((1.0, 10.0, 24.0), (2.0, 20.0, 22.0)), 12.5)
    assert reading is not None
    assert reading.decoding == Decoding(None, 1.25)
    assert reading.scores == pytest.approx(
        {"cf": 12.5, "cf_true": 40.0, "cf_gap": 27.5, "psnr": 23.5, "auc_balanced": 0.235}
    )


@pytest.mark.parametrize(("cf", "psnr"), [(10.0, 24.0), (20.0, 22.0), (28.0, 18.0)])
def test_at_a_setting_it_is_that_setting(cf: float, psnr: float):
    reading = read_at(front((1.0, 10.0, 24.0), (2.0, 20.0, 22.0), (2.8, 28.0, 18.0)), cf)
    assert reading is not None
    assert reading.scores["psnr"] == pytest.approx(psnr)


@pytest.mark.parametrize("cf", [9.99, 28.01, 1000.0])
def test_nothing_is_extrapolated(cf: float):
    assert read_at(front((1.0, 10.0, 24.0), (2.8, 28.0, 18.0)), cf) is None


def test_a_single_setting_is_read_only_where_it_is():
    one = front((1.0, 10.0, 24.0))
    assert read_at(one, 10.0) == Reading(Decoding(None, 1.0), one[Decoding(None, 1.0)])
    assert read_at(one, 10.1) is None


def test_beyond_the_most_vivid_setting_nothing_counts():
    """Colours at the edge of sRGB cannot grow; what they lose there is nobody's choice."""
    bent = front((1.0, 10.0, 24.0), (2.0, 30.0, 20.0), (2.8, 20.0, 5.0), (3.0, 40.0, 1.0))
    reading = read_at(bent, 20.0)
    assert reading is not None
    assert reading.decoding == Decoding(None, 1.5)
    assert reading.scores["psnr"] == pytest.approx(22.0)
    assert read_at(bent, 31.0) is None


def test_a_gap_that_falls_and_grows_again_is_no_matter():
    """The gap of 5 belongs to two settings, CF 35 and 45; the CF to one."""
    found = front((1.0, 35.0, 24.0), (1.2, 40.0, 23.0), (1.4, 45.0, 21.0))
    readings = [read_at(found, cf) for cf in (35.0, 40.0, 45.0)]
    assert [each.scores["cf_gap"] for each in readings if each] == [5.0, 0.0, 5.0]


def test_the_temperature_that_is_best_there_counts():
    """T 1 is ahead where both are pale, T 0.2 where both are vivid; only it reaches a CF of 40."""
    mean = front((1.0, 10.0, 25.0), (2.0, 30.0, 19.0), temperature=1.0)
    mode = front((1.0, 10.0, 23.0), (2.0, 40.0, 20.0), temperature=0.2)
    found = {**mean, **mode}
    at = {cf: read_at(found, cf) for cf in (11.0, 30.0, 40.0, 41.0)}
    temperatures = [each and each.decoding.temperature for each in at.values()]
    assert temperatures == [1.0, 0.2, 0.2, None]
    turned = dict(reversed(found.items()))  # in any order
    assert [read_at(turned, cf) for cf in at] == list(at.values())


def test_a_model_without_colour_has_no_reading():
    grey = front((1.0, 0.0, 22.0), (2.0, 0.0, 22.0))
    assert read_at_shares(grey) == dict.fromkeys(SHARES)
    assert read_at(grey, 0.0) is None  # all photos are grey, too
    diverged = {each: dict.fromkeys(row, math.nan) for each, row in grey.items()}
    assert read_at_shares(diverged) == dict.fromkeys(SHARES)


def test_scores_that_are_not_numbers_are_not_read():
    found = front((1.0, 10.0, 24.0), (2.0, 30.0, math.nan), temperature=0.2)
    assert read_at(found, 20.0) is None
    found |= front((1.0, 10.0, 20.0), (2.0, 30.0, 18.0), temperature=1.0)
    reading = read_at(found, 20.0)
    assert reading is not None
    assert reading.scores["psnr"] == pytest.approx(19.0)


def test_shares_are_of_the_photos_colourfulness():
    found = read_at_shares(front((1.0, 10.0, 24.0), (2.8, 38.0, 18.0)))
    assert list(found) == list(SHARES)
    cfs = [None if reading is None else reading.scores["cf"] for reading in found.values()]
    assert cfs == [pytest.approx(20.0), pytest.approx(30.0), None]
    with pytest.raises(ValueError, match="at least one decoding"):
        read_at_shares({})


def test_a_curve_is_followed_more_closely_than_by_straight_lines():
    """The PSNR of a parabola of squared errors, whose best chroma is 1; read halfway."""

    def psnr(chroma: float) -> float:
        return -10 * math.log10(0.006 + 0.002 * (chroma - 1.0) ** 2)

    at = sorted((*CHROMAS, *WIDER))
    curve = front(*((chroma, 10.0 * chroma, psnr(chroma)) for chroma in at))
    for low, high in pairwise(at[:-1]):
        middle = (low + high) / 2
        reading = read_at(curve, 10.0 * middle)
        assert reading is not None
        assert reading.scores["psnr"] == pytest.approx(psnr(middle), abs=0.008)
        straight = (psnr(low) + psnr(high)) / 2
        assert abs(straight - psnr(middle)) > 0.012


# Made-up fronts


@settings(deadline=None)  # the first example imports SciPy
@given(
    chromas=st.lists(st.integers(1, 60), min_size=2, max_size=8, unique=True),
    slope=st.floats(-5.0, 5.0),
    per_chroma=st.floats(0.5, 20.0),
    where=st.floats(0.0, 1.0),
)
def test_on_a_straight_front_it_is_exact(
    chromas: list[int], slope: float, per_chroma: float, where: float
):
    values = sorted(chroma / 10 for chroma in chromas)
    made = front(*((c, per_chroma * c, 20.0 + slope * per_chroma * c) for c in values))
    chroma = values[0] + where * (values[-1] - values[0])
    reading = read_at(made, per_chroma * chroma)
    if reading is None:  # rounding put an end of the front just out of reach
        assert (
            where in (0.0, 1.0)
            or math.isclose(chroma, values[0])
            or math.isclose(chroma, values[-1])
        )
        return
    assert reading.decoding.chroma == pytest.approx(chroma)
    assert reading.scores["psnr"] == pytest.approx(20.0 + slope * per_chroma * chroma)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 60), st.floats(0.0, 100.0), st.floats(0.0, 40.0)),
        min_size=1, max_size=10, unique_by=lambda row: row[0],
    ),
    cf=st.floats(0.1, 120.0),
)  # fmt: skip
def test_whatever_the_front_a_reading_lies_within_it(
    rows: list[tuple[int, float, float]], cf: float
):
    made = front(*((chroma / 10, cf, psnr) for chroma, cf, psnr in rows))
    reading = read_at(made, cf)
    ordered = [made[each] for each in sorted(made, key=lambda each: each.chroma)]
    ends = (n for n in range(1, len(ordered)) if not ordered[n]["cf"] - ordered[n - 1]["cf"] > 1e-6)
    ordered = ordered[: next(ends, None)]
    assert (reading is not None) == (ordered[0]["cf"] <= cf <= ordered[-1]["cf"])
    if reading is not None:
        assert reading.scores["cf"] == pytest.approx(cf)
        last = next(n for n, row in enumerate(ordered) if row["cf"] >= cf)
        values = [row["psnr"] for row in ordered[max(0, last - 1) : last + 1]]
        assert min(values) - 1e-9 <= reading.scores["psnr"] <= max(values) + 1e-9
        chromas = [each.chroma for each in made]
        assert min(chromas) <= reading.decoding.chroma <= max(chromas) + 1e-9


# Models


def swept(model: torch.nn.Module, stored: torch.Tensor, colors: Palette) -> Front:
    found = sweep(model, [stored], colors, grid(model))
    return {decoding: each.compute() for decoding, each in found.items()}


@settings(max_examples=8, deadline=None)
@given(k=st.floats(0.55, 1.05))
def test_a_model_with_paler_or_livelier_colours_is_read_the_same(palette: Palette, k: float):
    """Of another hue by 40°, so that chroma costs fidelity; its own scores differ much by k."""
    stored = stored_photos(4)
    readings, own = [], []
    for scale in (1.0, k):
        made = swept(Knows(stored, 0.7 * scale, hue=0.7), stored, palette)
        own.append(made[Decoding(None, 1.0)])
        readings.append(read_at_shares(made, [0.5, 0.75]))
    for share in (0.5, 0.75):
        one, other = readings[0][share], readings[1][share]
        assert one is not None
        assert other is not None
        # The rest is interpolation: the settings of the two lie at other colourfulness.
        assert other.scores["psnr"] == pytest.approx(one.scores["psnr"], abs=0.1)
        assert other.scores["auc_balanced"] == pytest.approx(one.scores["auc_balanced"], abs=2e-3)
        assert other.scores["cf"] == pytest.approx(one.scores["cf"])
        assert other.decoding.chroma * k == pytest.approx(one.decoding.chroma, rel=0.04)
    if k < 0.75:
        assert abs(own[0]["auc_balanced"] - own[1]["auc_balanced"]) > 5e-3


def test_the_end_of_a_training_reads_what_a_sweep_does(palette: Palette):
    stored = stored_photos()
    model = Knows(stored, 0.5, hue=0.7)
    _, _, equal = choose_decoding(model, Photos(stored), palette, "auc_balanced")
    assert equal is not None
    expected = read_at_shares(swept(model, stored, palette))[SHARE]
    assert expected is not None
    assert equal.scores == pytest.approx(expected.scores, rel=1e-5)
    assert equal.decoding.chroma == pytest.approx(expected.decoding.chroma)


def test_a_model_that_is_hardly_colourful_is_not_read(palette: Palette):
    stored = stored_photos()
    photos = Photos(stored)
    assert choose_decoding(Knows(stored, 0.05), photos, palette, "psnr")[2] is None


# A training's validations


def summed(lab_pred: torch.Tensor, lab_true: torch.Tensor, balance: torch.Tensor) -> float:
    """As two processes with two batches each add it up."""
    parts = [EqualColorfulness(balance) for _ in range(2)]
    for number, (mine, true) in enumerate(zip(lab_pred.split(2), lab_true.split(2), strict=True)):
        parts[number % 2].update(mine, true)
    parts[0].add_state(parts[1].state())
    return parts[0].compute()


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True], ids=["all pixels", "every other pixel"])
@pytest.mark.parametrize("chroma", [0.2, 0.35, 0.7])
def test_a_validation_reads_what_a_sweep_does(palette: Palette, chroma: float, large: bool):
    """Within the interpolation: it has five chroma scales where a sweep has nine."""
    stored = stored_photos(8)
    if large:
        stored = torch.nn.functional.interpolate(stored.float(), 2 * SMALL, mode="bilinear").byte()
    model, true = Knows(stored, chroma, hue=0.7), decode_lab(stored)
    predicted = torch.cat([true[:, :1], model.ab], dim=1)
    expected = read_at_shares(swept(model, stored, palette))[SHARE]
    assert expected is not None
    found = summed(predicted, true, torch.from_numpy(palette.balance()))
    assert found == pytest.approx(expected.scores["auc_balanced"], abs=3e-3)
    _, decoded, _ = choose_decoding(model, Photos(stored), palette, EQUAL)
    assert decoded[EQUAL] == pytest.approx(expected.scores["auc_balanced"], rel=1e-5)


def test_a_validation_of_a_model_without_colour_is_the_worst(palette: Palette):
    true = decode_lab(stored_photos(4))
    balance = torch.from_numpy(palette.balance())
    grey = true * torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    assert summed(grey, true, balance) == 0.0
    assert summed(grey * math.nan, true, balance) == 0.0
    with pytest.raises(ValueError, match="no photo"):
        EqualColorfulness(balance).compute()
