"""Refusals between processes."""

import pickle

from colorcore.photos.refusal import DAMAGED, PhotoRefused, Reason


def test_refusals_travel_between_processes():
    refused = PhotoRefused(Reason.TOO_SMALL, "expected 64 pixels or more per side, got 5x9")
    copy = pickle.loads(pickle.dumps(refused))  # noqa: S301
    assert (copy.reason, copy.detail) == (refused.reason, refused.detail)
    assert str(copy) == "too_small: expected 64 pixels or more per side, got 5x9"
    assert {r.value for r in DAMAGED} == {"empty", "unreadable", "truncated", "decompression_bomb"}
