"""A wait of more than a few seconds says what it is for; a short one says nothing."""

from __future__ import annotations

import threading
import time

import pytest

from colorcore import waiting
from colorcore.waiting import waiting_for


@pytest.mark.parametrize(("seconds", "said"), [(0.0, []), (0.5, ["waiting for the store"])])
def test_long_waits_are_named_once(
    seconds: float, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(waiting, "SAY_AFTER_S", 0.1)
    with waiting_for("the store"):
        time.sleep(seconds)
    time.sleep(0.2)
    assert caplog.messages == said


def test_a_block_that_fails_leaves_no_timer() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="in the block"), waiting_for("the store"):
        raise ValueError("in the block")
    end = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)
