"""The suite's table, targets and JSON, by hand-made rows; its clock, by hand-made times."""

import json
from types import SimpleNamespace

import pytest

from tests.benchmarks.gpu.ours import Times
from tests.benchmarks.gpu.table import Row, report, table_of, verdict_lines, verdicts

RATE = 800e12
UNET = Row(
    "unet-l1", 64, 64, naive=150.0, tf32=350.0, in_step=1280.0, over_epochs=1200.0,
    memory=11 * 2**30, cold_s=19.0, warm_s=12.0, flops=250e9,
)  # fmt: skip


def test_a_row_says_what_follows_from_what_was_measured():
    assert UNET.step_ms == 50.0
    assert UNET.times_naive == pytest.approx(1280 / 150)
    assert UNET.share(RATE) == 0.4  # 1280 · 250e9 = 320e12


def test_the_table_shows_what_is_missing_as_missing():
    head, line, first, second = table_of(
        [UNET, Row("guide", note="skipped: 3 s left")], RATE
    ).split("\n")
    cells = [
        [cell.strip() for cell in each.strip("|").split("|")] for each in (head, first, second)
    ]
    unet, guide = (dict(zip(cells[0], row, strict=True)) for row in cells[1:])
    assert unet == {
        "recipe": "unet-l1", "channels": "64", "batch": "64", "naive fp32": "150",
        "naive TF32": "350", "in the step": "1,280", "over epochs": "1,200", "step ms": "50.0",
        "GiB": "11.0", "cold s": "19.0", "warm s": "12.0", "of matmul": "40%", "x naive": "8.53",
        "note": "–",
    }  # fmt: skip
    assert guide.pop("recipe") == "guide"
    assert guide.pop("note") == "skipped: 3 s left"
    assert set(guide.values()) == {"–"}
    assert len({len(each) for each in (head, line, first, second)}) == 1


def test_targets_pass_miss_or_were_not_measured():
    found = {(each["recipe"], each["what"]): each for each in verdicts([UNET], RATE)}
    reached = {
        what: each["reached"] for (recipe, what), each in found.items() if recipe == "unet-l1"
    }
    assert reached == {
        "photos/s in the step": True,
        "over epochs, share of that": False,  # 1200 / 1280 = 0.9375
        "share of the matrix rate": False,
        "first step, cold cache, s": True,
        "first step, warm cache, s": False,
    }
    assert found["gan", "times the naive loop"]["reached"] is None
    lines = verdict_lines(list(found.values())).splitlines()
    assert lines[0].startswith("pass")
    assert lines[0].endswith("unet-l1: photos/s in the step, expected at least 1230, found 1280")
    assert lines[4].startswith("miss")
    assert "at most 10, found 12" in lines[4]
    assert sum(line.startswith("not measured") for line in lines) == len(lines) - len(reached)


def test_the_json_holds_the_rows_and_what_follows():
    there = json.loads(json.dumps(report([UNET], RATE, {"device": "H100"})))
    assert there["machine"] == {"device": "H100"}
    assert there["matmul_per_s"] == RATE
    (row,) = there["rows"]
    assert (row["recipe"], row["in_step"], row["step_ms"], row["share"]) == (
        "unet-l1",
        1280,
        50,
        0.4,
    )


def test_the_clock_leaves_out_the_first_epoch_and_what_lies_between_epochs():
    """Epochs of three steps of 1, 2 and 3 s; before each lies a second for the checkpoint."""
    now = 0.0
    times = Times(lambda: now)
    for epoch, step in enumerate((100.0, 1.0, 2.0, 3.0)):
        now += 1.0
        for _ in range(3):
            now += step
            times.on_step(SimpleNamespace(epoch=epoch))
        times.on_validation(None)
    assert times.step_s() == 2.0
    assert times.epoch_s() == pytest.approx((4 + 7 + 10) / 3)


def test_the_clock_takes_all_events_of_a_training() -> None:
    """It imitates ``Observer``: a method that it lacks ends a training on a GPU only."""
    from colorcore.training.events import Observer
    from tests.benchmarks.gpu.ours import Times

    assert [name for name in dir(Observer) if not hasattr(Times, name)] == []
