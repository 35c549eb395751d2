"""Axes and bars of the report of `cc eval`."""

import pytest

from pipelines.pages.eval_charts import bar, round_top, scatter, text_of, ticks


@pytest.mark.parametrize(
    ("largest", "top"),
    [(40.3, 50), (100.0, 100), (0.7, 0.8), (9.9, 10), (101.0, 150), (1.0, 1.0)],
)
def test_an_axis_ends_at_a_round_value_above_the_largest(largest: float, top: float) -> None:
    assert round_top(largest) == pytest.approx(top)
    assert ticks(top)[0] == 0
    assert ticks(top)[-1] == pytest.approx(top)
    assert 4 <= len(ticks(top)) <= 8


@pytest.mark.parametrize("largest", [0.0, -1.0, float("nan"), float("inf")])
def test_an_axis_of_nothing(largest: float) -> None:
    assert round_top(largest) == 1.0


def test_values_that_are_not_finite_have_no_dot() -> None:
    made = scatter([(1.0, 2.0), (1.0, float("nan"))], "s0", "title", 5.0)
    assert made.count("<circle") == 1
    assert "nan" not in made


def test_a_bar_never_leaves_its_track_and_text_is_escaped() -> None:
    assert 'class="s1" width="100.00"' in bar(1.7, "s1", "x")
    assert 'class="s1" width="0.00"' in bar(-0.2, "s1", "x")
    assert 'x1="45.00"' in bar(0.2, "s1", "x", mark=0.45)
    assert "&lt;b&gt;" in bar(0.2, "s1", "<b>")
    assert text_of("a\udcff\"'") == "a\ufffd&quot;&#x27;"
