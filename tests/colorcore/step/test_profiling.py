"""Where the time of a step goes, as a training's profile tells it."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colorcore.step.profiling import BETWEEN, IN_STEP, TABLE, TRACE, WARM_STEPS, Profile
from colorcore.training.fit import fit
from colorcore.training.state import Training
from tests.colorcore.training.made_up import (
    CPU,
    EVERYTHING_RANDOM,
    JUDGED,
    Diary,
    bytes_of,
    recipe_of,
    small_data,
)


def table_of(notices: list[str]) -> dict[str, tuple[float, float]]:
    """Milliseconds and per cent by phase, as printed."""
    rows = [line.rsplit(maxsplit=2) for line in notices if line.endswith("%")]
    return {
        name: (float(ms), float(share[:-1])) for name, ms, share in rows if name != "ms per step"
    }


@pytest.mark.slow
def test_a_profile_has_a_row_per_phase_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Slowed down by known times: 20 ms per average, 300 per validation of every five steps.

    The clock is read here, too, because a busy machine takes longer than that.
    """
    update, validate = Training.update_average, Training.begin_validation
    updates: list[float] = []
    validations: list[float] = []

    def slow_update(self: Training) -> None:
        started = time.perf_counter()
        time.sleep(0.02)
        update(self)
        updates.append((time.perf_counter() - started) * 1e3)

    def slow_validate(self: Training) -> object:
        started = time.perf_counter()
        time.sleep(0.3)
        scoring = validate(self)
        validations.append((time.perf_counter() - started) * 1e3)
        return scoring

    monkeypatch.setattr(Training, "update_average", slow_update)
    monkeypatch.setattr(Training, "begin_validation", slow_validate)
    recipe = recipe_of(*EVERYTHING_RANDOM, *JUDGED)
    fit(recipe, small_data(), tmp_path / "with", observers=[diary := Diary()], profile=4)
    rows = table_of(diary.notices)
    assert list(rows) == [*IN_STEP, "other", *BETWEEN, "total"]
    assert rows["EMA"][0] == pytest.approx(sum(updates[WARM_STEPS:][:4]) / 4, rel=0.1)
    # The trace begins with the last step of the first epoch and ends within the second.
    assert rows["validation"][0] == pytest.approx(sum(validations[:2]) / 2 / 5, rel=0.1)
    whole = sum(ms for name, (ms, _) in rows.items() if name != "total")
    assert rows["total"][0] == pytest.approx(whole, rel=0.02)
    shares = sum(share for name, (_, share) in rows.items() if name != "total")
    assert shares == pytest.approx(100, abs=1)
    assert diary.notices[0] == "profile of 4 steps"
    assert (tmp_path / "with" / TABLE).read_text().splitlines() == diary.notices[:-1]
    trace = json.loads(gzip.decompress((tmp_path / "with" / TRACE).read_bytes()))
    events = trace["traceEvents"]
    marks = [each["name"] for each in events if each.get("cat") == "user_annotation"]
    assert marks.count("data wait") == 5  # the end of the epoch, too, is waited for
    assert [marks.count(name) for name in IN_STEP[1:]] == [4] * 5
    monkeypatch.undo()
    fit(recipe, small_data(), tmp_path / "without", observers=[without := Diary()])
    profiled = bytes_of(tmp_path / "with")
    del profiled[TABLE], profiled[TRACE]
    assert profiled == bytes_of(tmp_path / "without")
    assert without.notices == []


def test_a_training_too_short_to_profile_says_so(tmp_path: Path):
    fit(
        recipe_of("train.epochs=1"), small_data(), tmp_path, observers=[diary := Diary()], profile=9
    )
    assert diary.notices == [
        f"profile: expected at least {WARM_STEPS + 9} steps to measure 9 of them after "
        f"{WARM_STEPS}, got 5"
    ]
    assert not (tmp_path / "profile").exists()


def test_what_is_slow_to_come_is_waited_for():
    profile = Profile(3, CPU, 3, None, (lines := []).append)

    def slow() -> Iterator[int]:
        for number in range(WARM_STEPS + 3):
            time.sleep(0.02)
            yield number

    taken = []
    for _ in profile.batches(slow()):
        time.sleep(0.01)
        profile.step_taken()
        taken.append(time.perf_counter())
    profile.finish(is_end=True)
    rows = table_of(lines)
    whole = (taken[-1] - taken[WARM_STEPS - 1]) * 1e3 / 3
    # Storing the trace is no part of the steps.
    assert 30 <= rows["total"][0] <= whole
    assert 20 <= rows["data wait"][0] <= rows["total"][0] - 10
