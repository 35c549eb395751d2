"""Which values the next trial gets, and which trials continue: Optuna's algorithms, journaled.

Every decision is in the journal before it takes effect, so a killed study loses none. Each trial is
sampled with a seed derived from the study's seed and the trial's number, so a resumed study samples
what it would have sampled without the interruption.
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
from pipelines.errors import JobError, WrongCallError
from pipelines.tracking.names import LOST_CONSTRAINT
from tune.search.algorithms import Sampler, Scheduler, grid_of, pruner_of, sampler_of, seed_of
from tune.search.objective import SIGN_PATIENCE, Ending, Objective, Outcome, collapsed
from tune.search.optuna_internals import set_rung_scores
from tune.search.space import Space, Value

if TYPE_CHECKING:
    import optuna

STARTUP = 8
"""Random trials before TPE takes over."""
REDUCTION = 4
"""ASHA promotes about one in this many trials at each rung."""
RUNGS = 2
"""ASHA's rungs by default: the first is at epochs / REDUCTION**RUNGS."""
LOST = 1e6
"""The constraint violation of a trial that failed or collapsed: more than any requirement's."""
FEW = 10
"""Importances of fewer trials than this would be chance."""
_STUDY = "study"
"""The study's name in its journal, which holds no other."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How a study searches.

    seed         random seed for sampling
    sampler      how values are sampled
    startup      random trials before TPE takes over
    scheduler    how trials that fall behind are stopped
    grace        epochs before a trial may be stopped: ASHA's first rung
    reduction    ASHA promotes about one in this many trials at each rung, grace · reduction**k
                 epochs
    prune_signs  whether trials whose colours collapse are pruned
    """

    seed: int = 0
    sampler: Sampler = "tpe"
    startup: int = STARTUP
    scheduler: Scheduler = "asha"
    grace: int = 1
    reduction: int = REDUCTION
    prune_signs: bool = True

    @property
    def is_free(self) -> bool:
        """Whether the first trials may be given, and need not be sampled."""
        return self.sampler in ("tpe", "cmaes")


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
        objective: the metrics to optimize. Two metrics do not rank trials, so none is stopped.
        settings: how to search.
        journal: the file that holds the search and from which it resumes; None keeps it in memory.
        epochs: of a whole training, which the scheduler hyperband needs.

    Raises:
        JobError: the journal cannot be read.
        WrongCallError: the grid is too large.
    """

    def __init__(
        self,
        space: Space,
        objective: Objective,
        settings: SearchSettings,
        journal: Path | None,
        epochs: int | None = None,
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
        trials = self._trials()
        self._count = len(trials)
        # What has ended does not change, and reading it from Optuna takes time for each trial.
        self._ended = [_record(trial) for trial in trials if trial.state.is_finished()]
        self._pruner: optuna.pruners.BasePruner | None = None
        if objective.is_single:
            self._pruner = pruner_of(settings.scheduler, settings.grace, settings.reduction, epochs)
        self._study.pruner = self._pruner or optuna.pruners.NopPruner()
        self._grid: list[dict[str, Value]] | None = None
        if settings.sampler == "grid":
            try:
                self._grid = grid_of(space, settings.seed)
            except ValueError as error:
                raise WrongCallError(str(error)) from error

    # -- before a trial ---------------------------------------------------------------------------

    def count(self) -> int:
        """The number of trials so far."""
        return self._count

    def most(self, trials: int) -> int:
        """How many of so many trials the search can have: a grid has an end."""
        return trials if self._grid is None else min(trials, len(self._grid))

    def ask(self, first: Sequence[Mapping[str, Value]] = ()) -> TrialRecord:
        """Sample the next trial; the first trials take their values from ``first`` instead."""
        number = self.count()
        self._study.sampler = self._sampler(number)
        given = self._grid if self._grid is not None else first
        if number < len(given):
            self._study.enqueue_trial(dict(given[number]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask(fixed_distributions=self._distributions)
        self._count += 1
        return TrialRecord(trial.number, dict(trial.params))

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        settings = self.settings
        return sampler_of(
            settings.sampler,
            seed_of(settings.seed, number),
            settings.startup,
            # Hyperband compares scores after different numbers of epochs with each other.
            with_stopped=settings.scheduler != "hyperband",
        )

    def note(self, number: int, **facts: Any) -> None:
        """Write facts about a running trial (fields of TrialRecord) into the journal."""
        # Each attribute is a line of its own, which costs the disk a millisecond.
        self._storage.set_trial_user_attr(self._trial_id(number), "+".join(facts), facts)

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

        No trial is stopped at its last validation, which would save nothing.
        """
        try:
            values = self.objective.values(scores)
        except ValueError as error:
            return Ending("failed", str(error))
        value = self._note_score(number, epoch, values[0])
        recent = [*map(tuple, _facts(self._trial(number)).get("signs", [])), signs]
        recent = recent[-SIGN_PATIENCE:]
        self.note(number, signs=recent, epochs=epoch)
        if self.settings.prune_signs and (name := collapsed(recent)):
            return Ending("pruned", f"sign {name} in {SIGN_PATIENCE} consecutive validations")
        if value is None or self._pruner is None or is_last or epoch < self.settings.grace:
            return None
        if not self._running(number).should_prune():
            return None
        metric = self.objective.metrics[0]
        return Ending("stopped", f"behind other trials: {metric} {value:.4f} after epoch {epoch}")

    def _note_score(self, number: int, epoch: int, value: float) -> float | None:
        """Write a trial's best score so far, which is compared: its result is its best checkpoint.

        None: the score is there already, because a killed driver reported it, or there are two
        metrics, for which Optuna takes no reports.
        """
        before = self._trial(number).intermediate_values
        if not self.objective.is_single or epoch in before:
            return None
        best = max if self.objective.directions[0] == "maximize" else min
        value = best([value, *before.values()])
        self._running(number).report(value, epoch)
        return value

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
        running = self._running(record.number)
        for requirement in self.objective.requirements:
            if requirement.metric in record.scores:
                running.set_constraint(str(requirement), requirement.violation(record.scores))
        if record.outcome == "finished":
            values = list(self.objective.values(record.scores))
            self._study.tell(record.number, values, state=TrialState.COMPLETE)
            self._ended.append(self.record(record.number))
            return
        if record.outcome != "stopped":
            # TPE ranks trials that violate a constraint last.
            running.set_constraint(LOST_CONSTRAINT, LOST)
            # No other trial shall be stopped for being behind this one.
            worst = -math.inf if self.objective.directions[0] == "maximize" else math.inf
            set_rung_scores(self._storage, self._trial_id(record.number), worst)
        self._study.tell(record.number, state=TrialState.PRUNED)
        self._ended.append(self.record(record.number))

    # -- results ----------------------------------------------------------------------------------

    def records(self) -> list[TrialRecord]:
        """All trials, ordered by number."""
        return [_record(trial) for trial in self._trials()]

    def ended(self) -> list[TrialRecord]:
        """The trials that have ended, ordered by number."""
        return sorted(self._ended, key=lambda record: record.number)

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return _record(self._trial(number))

    def unfinished(self) -> list[TrialRecord]:
        """Trials that have started but not ended."""
        return [record for record in self.records() if record.outcome is None]

    def ranked(self) -> list[TrialRecord]:
        """Finished trials by the first metric, best first.

        Those that miss a requirement come last, the closest one first.
        """
        sign = -1.0 if self.objective.directions[0] == "maximize" else 1.0
        metric = self.objective.metrics[0]

        def place(record: TrialRecord) -> tuple[float, float, int]:
            missed = self.objective.missed(record.scores)
            return missed, sign * record.scores[metric], record.number

        return sorted((record for record in self._ended if record.outcome == "finished"), key=place)

    def front(self) -> list[TrialRecord]:
        """The Pareto front of the finished trials, ordered by the first metric.

        Trials that miss a requirement are not on it.
        """
        best = {trial.number for trial in self._study.best_trials} if self.ranked() else set()
        return [record for record in self.ranked() if record.number in best]

    def importances(self) -> dict[str, dict[str, float]]:
        """Each path's share of the variance in the scores, by metric, estimated with a forest.

        fANOVA (Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter
        Importance") on scores taken after the same number of epochs: if trials are
        stopped, after the first ``grace``, which all reach unless they fail or collapse; otherwise
        those of finished trials.
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
        return None if self._pruner is None else self.settings.grace

    def _comparable(self, metric: str) -> list[tuple[dict[str, Value], float]]:
        """Values and scores of trials, all after the same number of epochs."""
        if self._pruner is None:
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

    def _trial(self, number: int) -> optuna.trial.FrozenTrial:
        return self._storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(_STUDY)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _running(self, number: int) -> optuna.trial.Trial:
        import optuna

        return optuna.trial.Trial(self._study, self._trial_id(number))


def _record(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    facts = _facts(trial)
    known = {name: facts[name] for name in _FACTS if name in facts}
    outcome = facts.get("outcome") if trial.state.is_finished() else None
    return TrialRecord(trial.number, dict(trial.params), outcome=outcome, **known)


_FACTS = ("reason", "scores", "epochs", "run_id", "seconds", "seconds_in_epochs", "attempts")


def _facts(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """What :meth:`Search.note` wrote about a trial, the latest last."""
    facts: dict[str, Any] = {}
    for name, value in trial.user_attrs.items():
        # Journals of earlier versions have an attribute per fact.
        facts |= value if isinstance(value, dict) and name != "scores" else {name: value}
    return facts


def dumps(value: Any) -> str:
    """JSON as in the study's files."""
    return json.dumps(value, indent=2, ensure_ascii=False)
