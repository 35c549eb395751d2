"""Batches from a dataset's shards: memory-mapped, in an order that (seed, epoch) alone decides.

The global order of an epoch is a shuffle of shards, cut into blocks of about
``BLOCK_SAMPLES`` samples, each shuffled within: random enough for training, and near enough
to disk order to stay fast. Global batch k is the slice [k·B, (k+1)·B) of that order and rank r
of W takes the r-th W-th of it. So every rank has the same number of steps, and any step of any
epoch can be resumed on any number of ranks with the very same global batches.

Batches stay uint8 until they are on the device. The index is held in memory, 20 bytes a
sample: fine up to 10⁸ samples a process.
"""

from __future__ import annotations

import contextlib
import mmap
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from colorcore.dataset import (
    DatasetError,
    index_path,
    npy_header,
    planned_units,
    read_info,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BLOCK_SAMPLES = 65_536
"""Samples that are shuffled among each other; a smaller dataset is shuffled as a whole."""
PREFETCH = 3
"""Batches that are read ahead."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch, and where it stands in the run.

    lab_u8     (B, 3, H, W) uint8 stored LAB, on the CPU
    positions  (B,) the samples' positions in the split's index
    epoch, step  of this batch; training resumes at step + 1
    """

    lab_u8: Tensor
    positions: NDArray[np.int64]
    epoch: int
    step: int


class Samples:
    """Random access to the samples of one split.

    Raises:
        DatasetError: no finished dataset, no samples in the split, an index that is missing or
            damaged, or a tar that does not match its index.
    """

    def __init__(self, dataset: Path, split: str) -> None:
        info = read_info(dataset)
        self.size = info.settings.size
        self._dataset, self._split = dataset, split
        self._read_index()
        self._maps: dict[int, mmap.mmap] = {}
        self._header = npy_header((3, self.size, self.size))

    def _read_index(self) -> None:
        skip = _read_table(self._dataset / "duplicates.parquet", ["key"])["key"]
        shards: list[str] = []
        shard_of, offsets, positions, counts = [], [], [], []
        for unit in planned_units(self._dataset):
            table = _read_table(
                index_path(self._dataset, unit), ["key", "split", "shard", "offset"]
            )
            keep = pc.and_(
                pc.equal(table["split"], self._split),
                pc.invert(pc.is_in(table["key"], value_set=skip.combine_chunks())),
            )
            table = table.filter(keep)
            names = table["shard"].to_numpy(zero_copy_only=False)
            for name in sorted(set(names)):
                mine = names == name
                shard_of.append(np.full(int(mine.sum()), len(shards), np.int32))
                offsets.append(table["offset"].to_numpy()[mine])
                positions.append(table["key"].to_numpy(zero_copy_only=False)[mine])
                counts.append(int(mine.sum()))
                shards.append(str(name))
        if not shards:
            raise DatasetError(
                f"expected samples in the split {self._split!r} of {self._dataset}, found none; "
                f"shard more photos{' or a higher --val-percent' if self._split == 'val' else ''}"
            )
        self.shards = shards
        self.shard_counts = np.array(counts, np.int64)
        self._shard_of = np.concatenate(shard_of)
        self._offsets = np.concatenate(offsets)
        self._keys = np.concatenate(positions)

    def __len__(self) -> int:
        return len(self._offsets)

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """The keys of samples, by which `cc inspect` and the index know them."""
        return [str(key) for key in self._keys[positions]]

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        """Stored LAB of some samples. positions (B,) -> (B, 3, H, W) uint8."""
        batch = np.empty((len(positions), 3, self.size, self.size), np.uint8)
        for row, position in zip(batch, positions, strict=True):
            self._copy(int(position), row)
        return torch.from_numpy(batch)

    def _copy(self, position: int, out: NDArray[np.uint8]) -> None:
        shard, offset = int(self._shard_of[position]), int(self._offsets[position])
        data = self._map(shard)
        start = offset + len(self._header)
        if data[offset:start] != self._header or start + out.size > len(data):
            raise self._damaged(shard, f"does not match its index at byte {offset}")
        out.reshape(-1)[:] = np.frombuffer(data, np.uint8, out.size, start)

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            path = self._dataset / self.shards[shard]
            try:
                with path.open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise self._damaged(shard, f"cannot be read ({error})") from error
        return self._maps[shard]

    def _damaged(self, shard: int, what: str) -> DatasetError:
        """The error of a shard; without its index, `cc shard` does the unit again."""
        name = self.shards[shard]
        return DatasetError(
            f"the shard {self._dataset / name} {what}; "
            f"remove {index_path(self._dataset, int(name[-14:-8]))}, "
            "then run the same cc shard command again"
        )


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError as error:
        raise DatasetError(
            f"expected {path}, found no such file; run the same cc shard command again"
        ) from error
    except (OSError, pa.ArrowException) as error:
        detail = str(error).splitlines()[0]
        raise DatasetError(
            f"{path} is damaged: {detail}; remove it, then run the same cc shard command again"
        ) from error


def epoch_order(shard_counts: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The global order of an epoch: a permutation of all positions, from (seed, epoch) alone.

    shard_counts (S,) samples of each shard, in index order -> (sum(shard_counts),) positions.
    """
    starts = np.concatenate([[0], np.cumsum(shard_counts)])
    shards = np.random.default_rng([seed, epoch]).permutation(len(shard_counts))
    block_of = np.cumsum(shard_counts[shards]) // BLOCK_SAMPLES
    blocks = []
    for block in np.unique(block_of):
        members = shards[block_of == block]
        positions = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in members])
        rng = np.random.default_rng([seed, epoch, int(block)])
        blocks.append(rng.permutation(positions))
    return np.concatenate(blocks)


class TrainLoader:
    """Shuffled training batches of one rank.

    batch_size is that of the global batch; it must be divisible by ``world``.

    Raises:
        DatasetError: see :class:`Samples`; or fewer samples than one global batch.
        ValueError: the batch cannot be divided among the ranks.
    """

    def __init__(
        self, samples: Samples, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"expected a batch size divisible by the {world} workers, got {batch_size}"
            )
        if len(samples) < batch_size:
            raise DatasetError(
                f"expected at least one batch of {batch_size} training samples, "
                f"found {len(samples)}; shard more photos or set data.batch lower"
            )
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        """Steps an epoch, the same on every rank; what does not fill a batch waits an epoch."""
        return len(self._samples) // self._batch_size

    def positions(self, epoch: int) -> NDArray[np.int64]:
        """This rank's positions of an epoch: (steps, batch_size // world)."""
        order = epoch_order(self._samples.shard_counts, self._seed, epoch)
        share = self._batch_size // self._world
        batches = order[: len(self) * self._batch_size].reshape(len(self), self._world, share)
        return batches[:, self._rank]

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on, read ahead by a thread."""
        plan = self.positions(epoch)
        jobs = ((step, plan[step]) for step in range(start_step, len(plan)))
        for step, positions, lab_u8 in _read_ahead(self._samples, jobs):
            yield Batch(lab_u8, positions, epoch, step)


def val_batches(
    samples: Samples, batch_size: int, *, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """Every sample once, in index order, shared out among the ranks: (<= batch_size, 3, H, W)."""
    mine = np.arange(rank, len(samples), world)
    jobs = enumerate(mine[i : i + batch_size] for i in range(0, len(mine), batch_size))
    for _, _, lab_u8 in _read_ahead(samples, jobs):
        yield lab_u8


_Job = tuple[int, "NDArray[np.int64]"]


def _read_ahead(
    samples: Samples, jobs: Iterator[_Job]
) -> Iterator[tuple[int, NDArray[np.int64], Tensor]]:
    """Read jobs in a thread, at most ``PREFETCH`` batches ahead of the consumer."""
    ready: queue.Queue[tuple[int, NDArray[np.int64], Tensor] | BaseException | None]
    ready = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: tuple[int, NDArray[np.int64], Tensor] | BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for step, positions in jobs:
                if stop.is_set():
                    return
                put((step, positions, samples.read(positions)))
            put(None)
        except BaseException as error:  # handed to the consumer
            put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
