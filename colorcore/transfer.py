"""Between a host and its device without waiting: numbers, small tensors, sums.

A GPU runs behind the host, which launches one step while another is computed. A host that asks for
a number waits until the GPU has it, and then the GPU waits for the host. So what the host wants to
know is copied while the GPU goes on, and asked for later.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EXACT = 1 << 24
"""Up to here float32 counts one by one."""


def steps_late(device: torch.device) -> int:
    """How many steps after its own a step's numbers are read: a CPU has them at once."""
    return 1 if device.type == "cuda" else 0


class Arriving:
    """A tensor that is copied from its device to the host from now on."""

    def __init__(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        self._done: torch.cuda.Event | None = None
        if tensor.is_cuda:
            tensor = tensor.to("cpu", non_blocking=True)  # into pinned memory
            self._done = torch.cuda.Event()
            self._done.record()
        self._tensor = tensor

    def tensor(self) -> Tensor:
        """The copy on the CPU; waits until it is complete."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on the device; the host does not wait for what the device still does."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # From memory that is not pinned, the copy would first wait for the device.
    return tensor.pin_memory().to(device, non_blocking=True)


class Sums:
    """A vector of float64 sums, which stays where the values come from until someone reads it.

    Args:
        count: length of the vector.
    """

    def __init__(self, count: int) -> None:
        self._values = torch.zeros(count, dtype=torch.float64)

    def __len__(self) -> int:
        """The length of the vector."""
        return len(self._values)

    def add(self, values: Tensor) -> None:
        """Add a vector of the same length: of :func:`exact` sums, or of a few float32 ones."""
        values = exact(values)
        self._values = to_device(self._values, values.device).add_(values)

    def read(self) -> Tensor:
        """A copy of the sums on the CPU; waits for the device."""
        return self._values.cpu().clone()

    def add_read(self, state: Tensor) -> None:
        """Add what another vector of the same length has read."""
        self._values += state.to(self._values)


def exact(values: Tensor) -> Tensor:
    """The values in float64: on their device, or on the CPU if their device has no such numbers."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def counts(values: Tensor, below: int) -> Tensor:
    """How often each of 0..``below`` - 1 occurs among integers (...): (below,), whole numbers."""
    if values.device.type in ("cpu", "mps"):
        return torch.bincount(values.flatten(), minlength=below)
    return counts_unasked(values, below)


def counts_unasked(values: Tensor, below: int) -> Tensor:
    """:func:`counts` where ``bincount`` would wait to learn the largest value; float64."""
    total = torch.zeros(below, dtype=torch.float64, device=values.device)
    for part in values.flatten().split(_EXACT):
        total += torch.histc(part.float() + 0.5, below, 0, below)
    return total
