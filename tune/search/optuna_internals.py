"""The one place that depends on names private to Optuna (tested with the capped version)."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import TYPE_CHECKING, Any

from pipelines.errors import JobError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

_RUNG = "completed_rung_"
"""Prefix of the attributes in which SuccessiveHalvingPruner keeps a trial's score at each rung."""


def set_rung_scores(storage: BaseStorage, trial_id: int, score: float) -> None:
    """Replace a trial's score at every rung that it reached."""
    for key in storage.get_trial_system_attrs(trial_id):
        if key.startswith(_RUNG):
            storage.set_trial_system_attr(trial_id, key, score)


def cma_es_sampler(seed: int, *, with_stopped: bool) -> BaseSampler:
    """Optuna's CMA-ES, which reads its state from the journal without unpickling anything else."""
    from optuna.samplers import CmaEsSampler

    class Sampler(CmaEsSampler):
        def _restore_optimizer(self, completed_trials: list[Any]) -> Any:
            # As Optuna's own, which leaves what a pickle may call to the pickle.
            for trial in reversed(completed_trials):
                prefix = f"{self._attr_key_optimizer}:"
                pieces = {k: v for k, v in trial.system_attrs.items() if k.startswith(prefix)}
                if pieces:
                    return _load_optimizer(bytes.fromhex(self._concat_optimizer_attrs(pieces)))
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # learning from stopped trials is called experimental
        return Sampler(
            seed=seed, consider_pruned_trials=with_stopped, warn_independent_sampling=False
        )


_IN_OPTIMIZERS = {
    ("cmaes._cma", "CMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
"""All that the pickle of an optimizer names."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _IN_OPTIMIZERS:
            raise JobError(
                f"expected the state of CMA-ES in the study's journal, found {module}.{name}; "
                "do not resume a study whose journal somebody else may have written"
            )
        return super().find_class(module, name)


def _load_optimizer(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data)).load()
