"""How trials are sampled and stopped: Optuna's samplers and pruners, by name.

tpe        Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"
cmaes      Hansen and Ostermeier 2001, "Completely Derandomized Self-Adaptation in Evolution
           Strategies"; for numbers only, choices are sampled at random
random     Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization"
grid       every combination of values, in random order
asha       Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2 in
           its early-stopping form (section 3.3), which ends a trial that is not promoted at once
hyperband  Li et al. 2018, "Hyperband": several ASHAs, each with a later first rung
median     Golovin et al. 2017, "Google Vizier", section 3.2.2: end a trial whose best score is
           worse than the median of those that finished had after as many epochs
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from tune.search.optuna_internals import cma_es_sampler
from tune.search.space import Space, Value

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

Sampler = Literal["tpe", "random", "grid", "cmaes"]
Scheduler = Literal["asha", "hyperband", "median", "none"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
SCHEDULERS: tuple[Scheduler, ...] = get_args(Scheduler)
MOST_COMBINATIONS = 100_000
"""Combinations of a grid, which one process lists."""


def seed_of(seed: int, number: int) -> int:
    """The seed of one trial, 0 … 2³² - 1, from the study's seed."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def sampler_of(name: Sampler, seed: int, startup: int, *, with_stopped: bool) -> BaseSampler:
    """A sampler for one trial.

    startup       random trials before TPE takes over
    with_stopped  whether CMA-ES learns from stopped trials, too
    """
    from optuna.samplers import RandomSampler, TPESampler

    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=startup)
    if name == "cmaes":
        return cma_es_sampler(seed, with_stopped=with_stopped)
    return RandomSampler(seed=seed)


def pruner_of(name: Scheduler, grace: int, reduction: int, epochs: int | None) -> BasePruner | None:
    """The rule that stops trials; None stops none.

    grace      epochs before a trial may be stopped
    reduction  asha, hyperband: about one in this many trials is promoted at each rung
    epochs     of a whole training; hyperband needs it
    """
    from optuna.pruners import HyperbandPruner, MedianPruner, SuccessiveHalvingPruner

    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=grace, reduction_factor=reduction)
    if name == "hyperband":
        most = "auto" if epochs is None else epochs
        return HyperbandPruner(min_resource=grace, max_resource=most, reduction_factor=reduction)
    if name == "median":
        return MedianPruner(n_startup_trials=4, n_warmup_steps=grace - 1)
    return None


def grid_of(space: Space, seed: int) -> list[dict[str, Value]]:
    """Every combination of the space's values, in an order that the seed decides.

    A range contributes the values of :meth:`tune.search.space.Axis.probes`, integers each once.

    Raises:
        ValueError: there are more than :data:`MOST_COMBINATIONS`.
    """
    values = [list(dict.fromkeys(axis.probes())) for axis in space.axes]
    if (count := math.prod(map(len, values))) > MOST_COMBINATIONS:
        raise ValueError(
            f"expected a grid of at most {MOST_COMBINATIONS:,} combinations, got {count:,}; "
            "search fewer settings, or use --search tpe"
        )
    paths = [axis.path for axis in space.axes]
    cells = [dict(zip(paths, cell, strict=True)) for cell in itertools.product(*values)]
    order = np.random.default_rng(seed).permutation(len(cells))
    return [cells[place] for place in order]
