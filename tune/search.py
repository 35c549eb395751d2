"""Which trial comes next, and which goes on: Optuna's TPE and ASHA over a study kept in a journal.

Every answer is written down before it is given, so a killed study knows all that it was told. A
trial's values are drawn with a seed of their own, made of the study's and the trial's number:
a study that was resumed draws what it would have drawn without the interruption.

TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization". ASHA: Li et al. 2020, "A
System for Massively Parallel Hyperparameter Tuning", algorithm 2, its early-stopping form
(section 3.3), in which a trial that is not promoted at once ends.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import JobError
from tune.desk import Outcome, Verdict
from tune.objective import SIGN_PATIENCE, Objective, collapsed
from tune.space import Space, Value

if TYPE_CHECKING:
    import optuna

STARTUP = 8
"""Trials drawn at random before TPE takes over."""
REDUCTION = 4
"""ASHA keeps about one in so many trials at each rung."""
RUNGS = 2
"""Rungs that ASHA has by default: the first at epochs / REDUCTION**RUNGS."""
_INFEASIBLE = "colorcore.lost"
"""The constraint that failed and collapsed trials break: TPE takes them for the worst."""
_RUNG = "completed_rung_"
"""What the names begin with by which Optuna's ASHA keeps a trial's scores at rungs."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How a study searches.

    seed         of all that is drawn
    startup      trials drawn at random before TPE takes over
    grace        epochs that ASHA leaves every trial; 0 turns ASHA off
    reduction    ASHA keeps about one in so many at each rung, grace · reduction**k epochs
    prune_signs  whether a trial ends when its colours collapse
    """

    seed: int = 0
    startup: int = STARTUP
    grace: int = 1
    reduction: int = REDUCTION
    prune_signs: bool = True


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What a study knows of a trial.

    outcome  None while it runs, or when it was interrupted
    scores   of its best checkpoint by the first metric, all metrics; {} when it had none
    epochs   trained
    run_id   in MLflow
    seconds  in its epochs, and in all
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
    """Epochs that every trial gets: the first of :data:`RUNGS` rungs below the whole training."""
    grace: int = round(epochs / reduction**RUNGS)
    validations = max(1, math.ceil(grace / eval_every))
    return validations * eval_every


class Search:
    """A study: what was tried, what comes next.

    Args:
        space: what is searched.
        objective: what it is searched for. With two metrics trials have no order, and ASHA is off.
        settings: how.
        journal: the file it is kept in and goes on from; None keeps it in memory alone.

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
        self._shown: dict[int, list[tuple[str, ...]]] = {}
        self._best: dict[int, float] = {}
        storage: optuna.storages.BaseStorage = InMemoryStorage()
        if journal is not None:
            _cut_unfinished_line(journal)
            journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
            try:
                storage = JournalStorage(JournalFileBackend(str(journal)))
            except (OSError, ValueError, KeyError) as error:
                raise JobError(
                    f"cannot read the study's journal {journal}: {error}; "
                    "start a new study with another --out"
                ) from error
        self._study = optuna.create_study(
            storage=storage,
            study_name="study",
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
        """Draw the next trial; the first ones have the values of ``first`` instead."""
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
        """Keep facts of a running trial (a TrialRecord's fields) in the journal."""
        trial = self._trial_id(number)
        for name, value in facts.items():
            self._study._storage.set_trial_user_attr(trial, name, value)

    # -- while it runs ----------------------------------------------------------------------------

    def report(
        self,
        number: int,
        epoch: int,
        scores: Mapping[str, float],
        signs: tuple[str, ...] = (),
        *,
        is_last: bool = False,
    ) -> Verdict | None:
        """Tell of a validation, after ``epoch`` epochs; answers why the trial ends, if it does.

        At its last validation a trial has nothing left to be spared: ASHA lets it be.
        """
        try:
            values = self.objective.values(scores)
        except ValueError as error:
            return Verdict("failed", str(error))
        frozen = self._trials()[number]
        shown = [*map(tuple, frozen.user_attrs.get("signs", [])), signs][-SIGN_PATIENCE:]
        self.note(number, signs=shown, epochs=epoch)
        if self.settings.prune_signs and (name := collapsed(shown)):
            return Verdict("pruned", f"sign {name} in {SIGN_PATIENCE} validations running")
        return self._race(number, epoch, values[0], is_last=is_last)

    def _race(self, number: int, epoch: int, value: float, *, is_last: bool) -> Verdict | None:
        """ASHA, by the best score so far: a trial stands for its best checkpoint."""
        if not self.objective.is_single:  # Optuna keeps courses of single scores alone
            return None
        best = max if self.objective.directions[0] == "maximize" else min
        trial = self._running(number)
        before = self._trials()[number].intermediate_values
        if epoch in before:  # told again, after an interruption
            return None
        value = best([value, *before.values()])
        trial.report(value, epoch)
        if self._asha is None or is_last:
            return None
        self._study.pruner = self._asha
        if not trial.should_prune():
            return None
        metric = self.objective.metrics[0]
        return Verdict("stopped", f"behind the others: {metric} {value:.4f} after epoch {epoch}")

    # -- when it ends -----------------------------------------------------------------------------

    def tell(self, record: TrialRecord) -> None:
        """Write down how a trial ended."""
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
            self._running(record.number).set_constraint(_INFEASIBLE, 1.0)
            self._lower_rungs(record.number)
        self._study.tell(record.number, state=TrialState.PRUNED)

    def _lower_rungs(self, number: int) -> None:
        """Take a trial for the worst at the rungs that it reached: nobody shall fall behind it."""
        trial = self._trials()[number]
        worst = -math.inf if self.objective.directions[0] == "maximize" else math.inf
        for key in [each for each in trial.system_attrs if each.startswith(_RUNG)]:
            self._study._storage.set_trial_system_attr(trial._trial_id, key, worst)

    # -- what is known ----------------------------------------------------------------------------

    def records(self) -> list[TrialRecord]:
        """All trials by number."""
        return [_record(trial) for trial in self._trials()]

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return _record(self._trials()[number])

    def unfinished(self) -> list[TrialRecord]:
        """Trials that were begun and have not ended."""
        return [record for record in self.records() if record.outcome is None]

    def ranked(self) -> list[TrialRecord]:
        """Finished trials, the best by the first metric first."""
        sign = -1.0 if self.objective.directions[0] == "maximize" else 1.0
        metric = self.objective.metrics[0]
        finished = [record for record in self.records() if record.outcome == "finished"]
        return sorted(finished, key=lambda record: (sign * record.scores[metric], record.number))

    def front(self) -> list[TrialRecord]:
        """Finished trials that no other one betters in all metrics, by the first metric."""
        best = {trial.number for trial in self._study.best_trials} if self.ranked() else set()
        return [record for record in self.ranked() if record.number in best]

    def importances(self) -> dict[str, dict[str, float]]:
        """By metric: each path's share in the spread of the scores, a forest's estimate.

        fANOVA (Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter
        Importance"), of scores that were all taken after the same time: of a race those after its
        first rung, which every trial reaches that is not lost; else those of finished trials.
        Empty with fewer than :data:`FEW` such trials, or where all are alike.
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
        """After how many epochs the scores of :meth:`importances` were taken; None: at the end."""
        return None if self._asha is None else self.settings.grace

    def _comparable(self, metric: str) -> list[tuple[dict[str, Value], float]]:
        """Values and scores of trials, all after the same time."""
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
        return self._trials()[number]._trial_id

    def _running(self, number: int) -> optuna.trial.Trial:
        import optuna

        return optuna.trial.Trial(self._study, self._trial_id(number))


FEW = 10
"""Trials below which shares of importance would be chance."""


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
    """A seed for one trial, 0 … 2³² - 1."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _cut_unfinished_line(journal: Path) -> None:
    """Leave out what a killed process wrote half of."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        end = file.seek(0, 2)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                file.truncate(start + at + 1)
                return
            end = start
        file.truncate(0)


def dumps(value: Any) -> str:
    """JSON as the study's files have it."""
    return json.dumps(value, indent=2, ensure_ascii=False)
