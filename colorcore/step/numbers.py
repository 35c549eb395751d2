"""A step's numbers on their way from the device, and small tensors on their way to it.

A GPU runs behind the host, which launches one step while another is computed. A host that asks for
a number waits until the GPU has it, and then the GPU waits for the host. So numbers are copied
while the next step runs, and asked for when that one is launched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def steps_late(device: torch.device) -> int:
    """How many steps after its own a step's numbers are read: a CPU has them at once."""
    return 1 if device.type == "cuda" else 0


class Numbers:
    """Values (N,) on a device, which are copied to the host from now on."""

    def __init__(self, values: Tensor) -> None:
        values = values.detach()
        self._done: torch.cuda.Event | None = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into pinned memory
            self._done = torch.cuda.Event()
            self._done.record()
        self._values = values

    def read(self) -> list[float]:
        """The values; waits until they are there."""
        if self._done is not None:
            self._done.synchronize()
        answer: list[float] = self._values.tolist()
        return answer


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; the host does not wait for what the device still does."""
    if device.type != "cuda":
        return tensor.to(device)
    # From memory that is not pinned, the copy would first wait for the device.
    return tensor.pin_memory().to(device, non_blocking=True)
