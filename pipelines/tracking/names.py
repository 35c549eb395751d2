"""The names under which MLflow knows what is ours: experiment, tags, picture keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


EXPERIMENT = "colorcore"
PICTURE_KEY = "val/grey - predicted - truth"
"""Names the pictures of each validation; their step is the epoch."""
BEST_PICTURE_KEY = "best/grey - predicted - truth"
"""Names those of the best validation so far, whose step is ``BEST_STEP`` in every run."""
BEST_STEP = 0
KIND_TAG = "colorcore.kind"
"""The tag that says what a run is: ``train``, ``study`` or ``trial``."""
STUDY_TAG = "colorcore.study"
PARENT_TAG = "mlflow.parentRunId"
CHAMPION = "champion"
"""The alias of the best model of a name in the registry."""
SIGN = "sign."
"""What tags of a run begin with that say what was seen of a sign, and what to do about it."""
