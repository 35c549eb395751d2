"""The one place that depends on names private to Optuna (tested with the capped version)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_RUNG = "completed_rung_"
"""Prefix of the attributes in which SuccessiveHalvingPruner keeps a trial's score at each rung."""


def set_rung_scores(storage: BaseStorage, trial_id: int, score: float) -> None:
    """Replace a trial's score at every rung that it reached."""
    for key in storage.get_trial_system_attrs(trial_id):
        if key.startswith(_RUNG):
            storage.set_trial_system_attr(trial_id, key, score)
