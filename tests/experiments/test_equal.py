"""The table of an experiment's sides at equal colourfulness, by hand."""

from __future__ import annotations

import pytest

from colorcore.decoding import Decoding
from tests.experiments.equal import equal_table, parsed


def front(psnr: float, reach: float = 40.0) -> dict[str, dict[str, float]]:
    """Two settings, from CF 10 to ``reach`` of the photos' 40; the PSNR is the same in both."""
    return {
        str(Decoding(0.38, chroma)): {
            "cf": cf, "cf_true": 40.0, "cf_gap": 40.0 - cf, "psnr": psnr,
            "delta_e2000": 40.0 - psnr, "auc_balanced": psnr / 100,
        }
        for chroma, cf in ((1.0, 10.0), (2.0, reach))
    }  # fmt: skip


def cells_of(sides: dict[str, list[dict[str, dict[str, float]]]]) -> list[list[str]]:
    rows = [line for line in equal_table("val", sides) if " at " in line and line[0] == "|"]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


def test_names_of_decodings_are_read_back() -> None:
    decodings = [Decoding(), Decoding(chroma=1.4), Decoding(0.38, 1.25), Decoding(1.0, 2.0)]
    assert list(parsed({str(each): {} for each in decodings})) == decodings
    with pytest.raises(ValueError, match=r"such as 'T 0.38, chroma ×1.2', got 'confidence'"):
        parsed({"confidence": {}})


def test_sides_are_better_level_or_worse_than_the_first() -> None:
    sides = {
        "ours": [front(20.0), front(22.0)],  # 21 ± 1.41
        "a little more": [front(22.0), front(22.4)],
        "more": [front(23.0), front(23.0)],
        "less, once": [front(19.0)],
    }
    rows = cells_of(sides)
    assert [row[:5] for row in rows[:4]] == [
        ["ours at 50%", "2", "21.00 ± 1.41", "19.00 ± 1.41", "0.2100 ± 0.0141"],
        [
            "a little more at 50%", "2",
            "22.20 ± 0.28, level", "17.80 ± 0.28, level", "0.2220 ± 0.0028, level",
        ],
        [
            "more at 50%", "2",
            "23.00 ± 0.00, better", "17.00 ± 0.00, better", "0.2300 ± 0.0000, better",
        ],
        ["less, once at 50%", "1", "19.00, worse", "21.00, worse", "0.1900, worse"],
    ]  # fmt: skip
    assert [row[5:] for row in rows[:4:3]] == [
        ["20.0 ± 0.0", "20.0 ± 0.0", "T 0.38, chroma ×1.33"],
        ["20.0", "20.0", "T 0.38, chroma ×1.33"],
    ]
    assert [row[0].rpartition(" at ")[2] for row in rows] == ["50%"] * 4 + ["75%"] * 4 + [
        "100%"
    ] * 4
    assert "Level: the means" in "\n".join(equal_table("val", sides))


def test_one_seed_each_is_no_comparison() -> None:
    lines = list(equal_table("val", {"one": [front(20.0)], "other": [front(30.0)]}))
    assert not any("better" in line or "worse" in line or "level" in line for line in lines)
    assert lines[-1].startswith("\none seed: no spread known")


def test_what_cannot_be_read_says_so() -> None:
    pale = [front(25.0), front(25.0, reach=25.0), {}]
    rows = cells_of({"pale": pale, "vivid": [front(20.0)] * 2, "before": []})
    assert rows[0] == ["pale at 50%", "3", "", "", "", "", "", "out of reach for 1 of 3"]
    assert rows[3][-1] == "out of reach for 2 of 3"
    # The first side has no scores there, so nobody is better or worse.
    assert rows[1][2] == rows[4][2] == "20.00 ± 0.00"
    assert rows[2][-1] == "no front was kept"
