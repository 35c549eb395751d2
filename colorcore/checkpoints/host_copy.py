"""Copies of a training's tensors in the host's memory, made while the training waits for nothing.

What is copied is the state at the moment of the call: whatever changes the tensors afterwards does
not change the copies. On a CPU they are complete when the call returns. On a GPU the tensors are
cloned there, which takes a millisecond, and a stream of its own moves the clones to pinned memory
while the next steps run; where the GPU has no room for the clones, they move in the training's own
stream, before its next step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

SLAB = 64 << 20
"""Bytes that are allocated at once. Pinned memory is allocated in powers of two, so a slab of this
size has no waste, where a convolution's weights of 9·2ⁿ bytes would take 1.8 times their size."""
_ALIGNED = 64
"""Tensors begin at multiples of this many bytes."""


class HostCopies:
    """Room for one set of copies, which each call of :meth:`take` uses again.

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._slabs: list[Tensor] = []
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None

    @property
    def size(self) -> int:
        """Bytes of host memory that are held."""
        return sum(slab.numel() for slab in self._slabs)

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Copies of the tensors by name, and a function that waits until they are made.

        The copies of the previous call are overwritten.
        """
        room = _Room(self._slabs, self._new_slab)
        sizes = sorted(tensors, key=lambda name: -tensors[name].numel())  # packs best
        # A GPU turns channels_last into what files hold in no time; a CPU does so while it writes.
        copies = {name: room.like(tensors[name], in_layout=not self._is_cuda) for name in sizes}
        del self._slabs[room.used :]
        if self._stream is None:
            for name, copy in copies.items():
                copy.copy_(tensors[name])
            return copies, lambda: None
        sources = {name: _cloned(tensor) for name, tensor in tensors.items()}
        is_cloned = all(source is not None for source in sources.values())
        stream = self._stream if is_cloned else torch.cuda.current_stream(self._stream.device)
        stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(stream):
            for name, copy in copies.items():
                source = sources[name]
                copy.copy_(tensors[name] if source is None else source, non_blocking=True)
                if source is not None and source.is_cuda:
                    source.record_stream(stream)  # its memory is free once the copy is made
            done = torch.cuda.Event()
            done.record(stream)
        return copies, done.synchronize

    def _new_slab(self, size: int) -> Tensor:
        if self._is_cuda:
            # Without the right or the room to pin, the copy is slower, and as good.
            with contextlib.suppress(RuntimeError):
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.empty(size, dtype=torch.uint8)


class _Room:
    """Hands out pieces of slabs: each of the first one that has room, so gaps are filled later."""

    def __init__(self, slabs: list[Tensor], new: Callable[[int], Tensor]) -> None:
        self._slabs, self._new = slabs, new
        self._ends: list[int] = []

    @property
    def used(self) -> int:
        """The number of slabs that hold something."""
        return len(self._ends)

    def like(self, tensor: Tensor, *, in_layout: bool) -> Tensor:
        """A tensor of the same shape and type in host memory; its values are any.

        ``in_layout`` gives it the same layout, too, instead of a contiguous one.
        """
        size = tensor.numel() * tensor.element_size()
        number = next(
            (n for n, end in enumerate(self._ends) if end + size <= self._slabs[n].numel()), None
        )
        if number is None:
            number = self._next(size)
        start = self._ends[number]
        self._ends[number] = start + -(-size // _ALIGNED) * _ALIGNED
        flat = self._slabs[number][start : start + size].view(tensor.dtype)
        if in_layout and _is_dense(tensor):
            return flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset())
        return flat.view(tensor.shape)

    def _next(self, size: int) -> int:
        number = len(self._ends)
        if number == len(self._slabs) or self._slabs[number].numel() < size:
            # Another set of tensors than last time: the rest is allocated anew.
            del self._slabs[number:]
            self._slabs.append(self._new(max(size, SLAB)))
        self._ends.append(0)
        return number


def _is_dense(tensor: Tensor) -> bool:
    """Whether its values fill one piece of memory in some order, as with channels_last."""
    return tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _cloned(tensor: Tensor) -> Tensor | None:
    """A contiguous clone on the same device; None if there is no room for it."""
    try:
        return tensor.detach().clone(memory_format=torch.contiguous_format)
    except torch.cuda.OutOfMemoryError:
        return None
