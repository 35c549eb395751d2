"""How a study uses its cluster: ranks per trial, and how many trials run at the same time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import WrongCallError

LOOK_S = 2.0
"""Seconds between two looks at the size of the cluster."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a study uses its cluster.

    workers     ranks per trial
    concurrent  most trials at the same time; None: as many as fit, also on a cluster that grows
    use_gpu     whether each rank has a GPU
    threads     CPU threads per rank; None leaves torch's default
    """

    workers: int
    concurrent: int | None
    use_gpu: bool
    threads: int | None


def layout_for(workers: int, concurrent: int | None, *, may_grow: bool = False) -> Layout:
    """The layout on the connected cluster.

    may_grow  whether ``concurrent`` may be more than fit now, because nodes may join

    Raises:
        WrongCallError: the cluster is too small.
    """
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    use_gpu = gpus >= workers
    total, kind = (gpus, "GPU") if use_gpu else (cpus, "CPU")
    if workers > total:
        raise WrongCallError(
            f"expected at most {total} workers per trial, one per {kind} of this cluster, "
            f"got --workers {workers}"
        )
    fit = total // workers
    if concurrent is not None and concurrent > fit and not may_grow:
        raise WrongCallError(
            f"expected at most {fit} concurrent trials with {workers} {kind}{'s' * (workers > 1)} "
            f"each (this machine has {total}), got --concurrent {concurrent}"
        )
    threads = None if use_gpu else max(1, cpus // (min(fit, concurrent or fit) * workers))
    return Layout(workers, concurrent, use_gpu, threads)


def bundles(workers: int, *, use_gpu: bool) -> list[dict[str, float]]:
    """The resources of a trial: one bundle per rank."""
    return [{"CPU": 1.0, "GPU": 1.0} if use_gpu else {"CPU": 1.0} for _ in range(workers)]


@dataclass(slots=True)
class Room:
    """How many trials fit on the cluster, which may grow and shrink during a study.

    While ``concurrent`` asks for more than fit, a placement group that waits for its resources
    tells the cluster's autoscaler that one more trial would start.
    """

    layout: Layout
    _fit: int = 0
    _looked: float = -LOOK_S
    _wish: Any = field(default=None)

    def has_room(self, running: int, placed: int) -> bool:
        """Whether one more trial than ``running`` may start now.

        placed  how many of them have their processes; the others must not compete with the wish
        """
        most = self.layout.concurrent
        wanted = most is not None and running < most and placed == running
        fits = running < self._fit_now() and (most is None or running < most)
        if fits or not wanted:
            self._drop_wish()  # it would keep the resources from a trial
        elif self._wish is None:
            self._wish = _waiting_group(self.layout)
        return fits

    def close(self) -> None:
        """Wish for nothing any more."""
        self._drop_wish()

    def _fit_now(self) -> int:
        import ray

        if time.monotonic() - self._looked >= LOOK_S:
            kind = "GPU" if self.layout.use_gpu else "CPU"
            self._fit = int(ray.cluster_resources().get(kind, 0)) // self.layout.workers
            self._looked = time.monotonic()
        return self._fit

    def _drop_wish(self) -> None:
        if self._wish is not None:
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(self._wish)
            self._wish = None


def _waiting_group(layout: Layout) -> Any:
    from ray.util.placement_group import placement_group

    wanted = bundles(layout.workers, use_gpu=layout.use_gpu)
    return placement_group(wanted, strategy="PACK")
