"""Signals that a job takes over."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pipelines.training.interrupts import SIGNALS, catch_interrupts


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_asks_and_the_second_one_ends(first: int, second: int) -> None:
    with catch_interrupts() as interrupts:
        interrupts.can_stop = True
        os.kill(os.getpid(), first)
        assert interrupts.asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)


@pytest.mark.parametrize("how", SIGNALS)
def test_what_cannot_be_stopped_in_order_ends_at_once(how: int) -> None:
    with catch_interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), how)
        assert not interrupts.asked.is_set()


def test_signals_are_what_they_were_afterwards_and_can_be_taken_back_meanwhile() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with catch_interrupts() as interrupts:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        interrupts.install()
        interrupts.can_stop = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.asked.is_set()
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_another_thread_takes_nothing_over() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    seen = []

    def work() -> None:
        with catch_interrupts() as interrupts:
            interrupts.install()
            seen.append([signal.getsignal(each) for each in SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
