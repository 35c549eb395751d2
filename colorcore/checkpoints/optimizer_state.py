"""An optimizer's state as named tensors, and back; and tensors under a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from colorcore.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


_OWN = ("fused", "foreach", "capturable")
"""Settings of an optimizer that choose its implementation, not what it computes."""


def optimizer_state(
    optimizer: torch.optim.Optimizer, name: str = "optimizer"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state: tensors named ``name.*``, and its plain values under ``name``."""
    state = optimizer.state_dict()
    tensors = {
        f"{name}.{index}.{key}": value
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in state["param_groups"]
    ]
    return tensors, {name: groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, name: str = "optimizer"
) -> None:
    """Restore an optimizer from the state that :func:`optimizer_state` returned under that name.

    How it computes (:data:`_OWN`) stays its own: the checkpoint may be from another device.

    Raises:
        KeyError, ValueError: the checkpoint has no such optimizer, or it is another model's.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.training.items():
        kind, _, rest = key.partition(".")
        if kind == name:
            index, _, what = rest.partition(".")
            state.setdefault(int(index), {})[what] = tensor
    groups = [
        {**saved, **{key: group[key] for key in _OWN if key in group}, "params": group["params"]}
        for saved, group in zip(
            checkpoint.optimizer[name], optimizer.state_dict()["param_groups"], strict=True
        )
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # Saved tensors are contiguous. A kernel that goes through a parameter and its moments together
    # wants them in the parameter's own layout, which is channels_last for convolutions.
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def weights_under(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors named ``name.*``, without that prefix."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
