"""The one place that depends on names private to torch."""

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to in place, as autograd counts it.

    Raises:
        RuntimeError: an inference tensor, which keeps no count.
    """
    return tensor._version
