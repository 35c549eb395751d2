"""The one place that depends on names private to torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to in place, as autograd counts it.

    Raises:
        RuntimeError: an inference tensor, which keeps no count.
    """
    return tensor._version


def lerp_all(ours: Sequence[Tensor], theirs: Sequence[Tensor], share: float) -> None:
    """Move each tensor towards its counterpart in place: ours ← ours + share · (theirs - ours).

    All of one dtype and device. On a GPU a launch does many of them.
    """
    import torch

    torch._foreach_lerp_(list(ours), list(theirs), share)


def copy_all(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Copy each counterpart into its tensor, likewise."""
    import torch

    torch._foreach_copy_(list(ours), list(theirs))


def compile_many_shapes(limit: int) -> None:
    """Let the compiler keep so many versions of one function; beyond that it runs uncompiled.

    Blocks of one class share a function, and there is a version per width, stride and mode.
    ``torch.compile(recompile_limit=…)`` says the same from torch 2.13 on.
    """
    from torch._dynamo import config

    config.recompile_limit = max(limit, config.recompile_limit)


def is_of_the_compiler(error: BaseException) -> bool:
    """Whether an error, or one that caused it, was raised by the compiler and not by the model."""
    from torch._dynamo.exc import TorchDynamoException

    seen: BaseException | None = error
    while seen is not None:
        module = type(seen).__module__
        if isinstance(seen, TorchDynamoException) or module.startswith(
            ("torch._inductor", "torch._functorch", "triton")
        ):
            return True
        seen = seen.__cause__
    return False
