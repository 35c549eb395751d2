"""The names under which MLflow knows what this project logs: tags, keys, aliases.

Everything that writes or reads them takes them from here. Stores hold these names for years, so
changing one orphans the runs that were logged under it.
"""

from __future__ import annotations

EXPERIMENT = "colorcore"
"""The experiment that holds all runs."""
MODEL = "model"
"""A run's logged model."""
CHAMPION = "champion"
"""The alias of a registered name's best version."""

# -- tags of a run --------------------------------------------------------------------------------

KIND_TAG = "colorcore.kind"
"""``train``, ``study`` (the parent run of a study) or ``trial`` (a child of it)."""
STUDY_TAG = "colorcore.study"
"""The name of the study that a study's or a trial's run belongs to."""
TRIAL_TAG = "colorcore.trial"
"""The number of a trial."""
OUTCOME_TAG = "colorcore.outcome"
"""How a trial ended: finished, stopped, pruned or failed."""
REASON_TAG = "colorcore.reason"
"""Why it ended like that."""
BEST_TRIAL_TAG = "colorcore.best"
"""Of a study: the number of the trial whose curves and pictures were copied to it last."""
DATASET_TAG = "colorcore.dataset"
"""The dataset's location."""
FROM_TAG = "colorcore.from"
"""Where a training's start weights came from."""
MISSING_TAG = "colorcore.missing"
"""The artifacts that could not be had when the run ended, and why."""
VERSION_TAG = "colorcore.version"
PACKAGE_TAG = "colorcore."
"""Prefix of the tags with the versions of torch, ray and mlflow."""
SIGN_TAG = "sign."
"""Prefix of the tags that record when a sign of bad colour appeared, and what to do about it."""
NOTE_TAG = "mlflow.note.content"
"""The description on a run's page."""
PARENT_TAG = "mlflow.parentRunId"
USER_TAG = "mlflow.user"
SOURCE_TAG = "mlflow.source.name"
SOURCE_TYPE_TAG = "mlflow.source.type"
COMMIT_TAG = "mlflow.source.git.commit"
BRANCH_TAG = "mlflow.source.git.branch"

# -- metrics and pictures -------------------------------------------------------------------------

TRAIN = "train/"
"""Prefix of the metrics of training steps."""
VAL = "val/"
"""Prefix of the metrics of validations."""
VAL_SIGN = "val/sign/"
"""Prefix of the measurements that signs of bad colour are found by."""
BEST = "best/"
"""Prefix of a trial's scores at its best checkpoint, and of a study's best scores so far."""
DECODING = "decoding/"
"""Prefix of the decoding chosen after training, and of the scores with it."""
EQUAL_CF = "equal_cf/"
"""Prefix of the scores at a fixed share of the photos' colourfulness, the same for all runs."""
PICTURE_KEY = "val/grey - predicted - truth"
"""The pictures of each validation; their step is the epoch."""
BEST_PICTURE_KEY = "best/grey - predicted - truth"
"""The pictures of the best validation so far; their step is :data:`BEST_STEP` in every run."""
BEST_STEP = 0

# -- a study's journal ----------------------------------------------------------------------------

LOST_CONSTRAINT = "colorcore.lost"
"""The constraint that failed and collapsed trials violate in Optuna's journal."""
