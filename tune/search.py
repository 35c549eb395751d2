"""Which values the next trial gets, and which trials continue: Optuna's TPE and ASHA, journaled.

Every decision is in the journal before it takes effect, so a killed study loses none. Each trial is
sampled with a seed derived from the study's seed and the trial's number, so a resumed study samples
what it would have sampled without the interruption.

TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization". ASHA: Li et al. 2020, "A
System for Massively Parallel Hyperparameter Tuning", algorithm 2 in its early-stopping form
(section 3.3), which ends a trial that is not promoted at once.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.storage.lines import cut_unfinished_line
from pipelines.errors import JobError
from pipelines.tracking.names import LOST_CONSTRAINT
from tune.objective import SIGN_PATIENCE, Ending, Objective, Outcome, collapsed
from tune.optuna_internals import set_rung_scores
from tune.space import Space, Value

if TYPE_CHECKING:
    import optuna

STARTUP = 8
"""Random trials before TPE takes over."""
REDUCTION = 4
"""ASHA promotes about one in this many trials at each rung."""
RUNGS = 2
"""ASHA's rungs by default: the first is at epochs / REDUCTION**RUNGS."""
FEW = 10
"""Importances of fewer trials than this would be chance."""
_STUDY = "study"
"""The study's name in its journal, which holds no other."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How a study searches.

    seed         random seed for sampling
    startup      random trials before TPE takes over
    grace        epochs before ASHA's first rung; 0 turns ASHA off
    reduction    ASHA promotes about one in this many trials at each rung, grace · reduction**k
                 epochs
    prune_signs  whether trials whose colours collapse are pruned
    """

    seed: int = 0
    startup: int = STARTUP
    grace: int = 1
    reduction: int = REDUCTION
    prune_signs: bool = True


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial as the journal holds it.

    outcome            None while it runs, or after an interruption
    scores             all metrics of its best checkpoint by the first metric; {} without one
    epochs             epochs trained
    run_id             its run in MLflow
    seconds            wall time in the call of `cc tune` that ended it
    seconds_in_epochs  the part of it spent training and validating
    """

    number: int
    values: dict[str, Value]
    outcome: Outcome | None = None
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    run_id: str | None = None
    seconds: float = 0.0
    seconds_in_epochs: float = 0.0
    attempts: int = 1


def default_grace(epochs: int, eval_every: int, reduction: int = REDUCTION) -> int:
    """Epochs before ASHA's first rung, of :data:`RUNGS` in a training; ends at a validation."""
    grace: int = round(epochs / reduction**RUNGS)
    validations = max(1, math.ceil(grace / eval_every))
    return validations * eval_every


class Search:
    """A study's search: its trials so far, and the decisions about the next ones.

    Args:
        space: the values to search.
        objective: the metrics to optimize. Two metrics do not rank trials, so ASHA is off.
        settings: how to search.
        journal: the file that holds the search and from which it resumes; None keeps it in memory.

    Raises:
        JobError: the journal cannot be read.
    """

    def __init__(
        self, space: Space, objective: Objective, settings: SearchSettings, journal: Path | None
    ) -> None:
        import optuna
        from optuna.storages import InMemoryStorage, JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.objective, self.settings = space, objective, settings
        self._storage: optuna.storages.BaseStorage = InMemoryStorage()
        if journal is not None:
            cut_unfinished_line(journal)
            # A killed process leaves Optuna's lock behind; the study's folder has its own.
            journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
            try:
                self._storage = JournalStorage(JournalFileBackend(str(journal)))
            except (OSError, ValueError, KeyError) as error:
                raise JobError(
                    f"cannot read the study's journal {journal}: {error}; "
                    "start a new study with another --out"
                ) from error
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=_STUDY,
            directions=objective.directions,
            load_if_exists=True,
        )
        self._distributions = space.distributions()
        self._asha: optuna.pruners.BasePruner | None = None
        if objective.is_single and settings.grace:
            self._asha = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=settings.grace, reduction_factor=settings.reduction
            )

    # -- before a trial ---------------------------------------------------------------------------

    def ask(self, first: Sequence[Mapping[str, Value]] = ()) -> TrialRecord:
        """Sample the next trial; the first trials take their values from ``first`` instead."""
        number = len(self._trials())
        self._study.sampler = self._sampler(number)
        if number < len(first):
            self._study.enqueue_trial(dict(first[number]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask(fixed_distributions=self._distributions)
        return TrialRecord(trial.number, dict(trial.params))

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(
            seed=_seed(self.settings.seed, number), n_startup_trials=self.settings.startup
        )

    def note(self, number: int, **facts: Any) -> None:
        """Write facts about a running trial (fields of TrialRecord) into the journal."""
        trial = self._trial_id(number)
        for name, value in facts.items():
            self._storage.set_trial_user_attr(trial, name, value)

    # -- while it runs ----------------------------------------------------------------------------

    def report(
        self,
        number: int,
        epoch: int,
        scores: Mapping[str, float],
        signs: tuple[str, ...] = (),
        *,
        is_last: bool = False,
    ) -> Ending | None:
        """Record a validation after ``epoch`` epochs; returns why the trial ends, if it does.

        ASHA never stops a trial at its last validation, which would save nothing.
        """
        try:
            values = self.objective.values(scores)
        except ValueError as error:
            return Ending("failed", str(error))
        frozen = self._trials()[number]
        recent = [*map(tuple, frozen.user_attrs.get("signs", [])), signs][-SIGN_PATIENCE:]
        self.note(number, signs=recent, epochs=epoch)
        if self.settings.prune_signs and (name := collapsed(recent)):
            return Ending("pruned", f"sign {name} in {SIGN_PATIENCE} consecutive validations")
        return self._compare(number, epoch, values[0], is_last=is_last)

    def _compare(self, number: int, epoch: int, value: float, *, is_last: bool) -> Ending | None:
        """ASHA by the best score so far, because a trial's result is its best checkpoint."""
        if not self.objective.is_single:  # Optuna takes no reports in studies of two metrics
            return None
        best = max if self.objective.directions[0] == "maximize" else min
        trial = self._running(number)
        before = self._trials()[number].intermediate_values
        if epoch in before:  # reported again after an interruption
            return None
        value = best([value, *before.values()])
        trial.report(value, epoch)
        if self._asha is None or is_last:
            return None
        self._study.pruner = self._asha
        if not trial.should_prune():
            return None
        metric = self.objective.metrics[0]
        return Ending("stopped", f"behind other trials: {metric} {value:.4f} after epoch {epoch}")

    # -- when it ends -----------------------------------------------------------------------------

    def tell(self, record: TrialRecord) -> None:
        """Write into the journal how a trial ended."""
        from optuna.trial import TrialState

        facts = {
            "outcome": record.outcome,
            "reason": record.reason,
            "scores": record.scores,
            "epochs": record.epochs,
            "seconds": record.seconds,
            "seconds_in_epochs": record.seconds_in_epochs,
            "attempts": record.attempts,
        }
        self.note(record.number, **facts)
        self._study.sampler = self._sampler(record.number)
        if record.outcome == "finished":
            values = list(self.objective.values(record.scores))
            self._study.tell(record.number, values, state=TrialState.COMPLETE)
            return
        if record.outcome != "stopped":
            # TPE ranks trials that violate a constraint last.
            self._running(record.number).set_constraint(LOST_CONSTRAINT, 1.0)
            # No other trial shall be stopped for being behind this one.
            worst = -math.inf if self.objective.directions[0] == "maximize" else math.inf
            set_rung_scores(self._storage, self._trial_id(record.number), worst)
        self._study.tell(record.number, state=TrialState.PRUNED)

    # -- results ----------------------------------------------------------------------------------

    def records(self) -> list[TrialRecord]:
        """All trials, ordered by number."""
        return [_record(trial) for trial in self._trials()]

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return _record(self._trials()[number])

    def unfinished(self) -> list[TrialRecord]:
        """Trials that have started but not ended."""
        return [record for record in self.records() if record.outcome is None]

    def ranked(self) -> list[TrialRecord]:
        """Finished trials by the first metric, best first."""
        sign = -1.0 if self.objective.directions[0] == "maximize" else 1.0
        metric = self.objective.metrics[0]
        finished = [record for record in self.records() if record.outcome == "finished"]
        return sorted(finished, key=lambda record: (sign * record.scores[metric], record.number))

    def front(self) -> list[TrialRecord]:
        """The Pareto front of the finished trials, ordered by the first metric."""
        best = {trial.number for trial in self._study.best_trials} if self.ranked() else set()
        return [record for record in self.ranked() if record.number in best]

    def importances(self) -> dict[str, dict[str, float]]:
        """Each path's share of the variance in the scores, by metric, estimated with a forest.

        fANOVA (Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter
        Importance") on scores taken after the same number of epochs: with ASHA at the first rung,
        which every trial reaches unless it fails or collapses; otherwise those of finished trials.
        A metric with fewer than :data:`FEW` scores, or with equal ones, is left out.
        """
        import optuna
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
        from optuna.trial import create_trial

        found = {}
        for metric in self.objective.metrics:
            study = optuna.create_study()
            for params, score in self._comparable(metric):
                study.add_trial(
                    create_trial(params=params, distributions=self._distributions, value=score)
                )
            scores = {trial.value for trial in study.trials}
            if len(study.trials) >= FEW and len(scores) > 1:
                evaluator = FanovaImportanceEvaluator(seed=self.settings.seed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    shares = get_param_importances(study, evaluator=evaluator)
                found[metric] = {path: float(share) for path, share in shares.items()}
        return found

    @property
    def importance_epochs(self) -> int | None:
        """Epochs after which the scores of :meth:`importances` were taken; None: at the end."""
        return None if self._asha is None else self.settings.grace

    def _comparable(self, metric: str) -> list[tuple[dict[str, Value], float]]:
        """Values and scores of trials, all after the same number of epochs."""
        if self._asha is None:
            finished = self.ranked()
            return [(record.values, record.scores[metric]) for record in finished]
        found = []
        for trial in self._trials():
            reached = [at for at in trial.intermediate_values if at >= self.settings.grace]
            if reached:
                found.append((trial.params, trial.intermediate_values[min(reached)]))
        return found

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _trial_id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(_STUDY)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _running(self, number: int) -> optuna.trial.Trial:
        import optuna

        return optuna.trial.Trial(self._study, self._trial_id(number))


def _record(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    facts = {
        name: trial.user_attrs[name]
        for name in (
            "reason", "scores", "epochs", "run_id", "seconds", "seconds_in_epochs", "attempts",
        )
        if name in trial.user_attrs
    }  # fmt: skip
    outcome = trial.user_attrs.get("outcome") if trial.state.is_finished() else None
    return TrialRecord(trial.number, dict(trial.params), outcome=outcome, **facts)


def _seed(seed: int, number: int) -> int:
    """The seed of one trial, 0 … 2³² - 1."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def dumps(value: Any) -> str:
    """JSON as in the study's files."""
    return json.dumps(value, indent=2, ensure_ascii=False)
