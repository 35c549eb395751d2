"""A dataset's shards as a stock webdataset pipeline, for training loops outside colorcore.

webdataset reads the tars, splits, shuffles and decodes. This module adds what it lacks:

- Equal shares. webdataset deals whole shards to ranks, so ranks get different numbers of samples,
  which hangs DDP. Here an epoch is cut into as many pieces as there are ranks and workers, through
  the middle of shards if need be, and webdataset deals out the pieces.
- Complete epochs. webdataset skips the rest of a truncated tar in silence. Here each sample is
  expected by its key in the dataset's index, which also leaves out copies, as the loader does.
- Stores. Shards are read through :class:`~colorcore.storage.store.Store`, with its credentials and
  retries, not through command line tools.
- Decoding of zstd, and of stored LAB to float tensors.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from colorcore.color.lab import decode_lab
from colorcore.dataset.layout import DatasetError
from colorcore.dataset.samples import Samples
from colorcore.storage.location import absolute_store
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from webdataset import FluidWrapper

Piece = tuple[int, int]
"""Where a piece begins in the epoch's order, and its number of samples."""


def webdataset(
    dataset: str | Path | Store,
    split: str = "train",
    *,
    shuffle: int = 1000,
    seed: int = 0,
    epoch: int = 0,
    equal: bool = True,
) -> FluidWrapper:
    """One epoch of a dataset's split as a webdataset pipeline.

    The pipeline is a ``torch.utils.data.IterableDataset`` with webdataset's methods (``map``,
    ``to_tuple``, ``batched``, …). It yields dicts:

    - ``L``: (1, H, W) float32, CIELAB lightness 0..100
    - ``ab``: (2, H, W) float32, CIELAB a and b, -128..127
    - ``json``: source, width, height, colorfulness and sha256 of the photo
    - ``__key__``, ``__url__``: the sample's key and its shard

    colorcore's models take ``normalize_L(L)``, and its losses compare ``ab``
    (``colorcore.color.lab``).

    Samples are split over the ranks that torchrun (RANK, WORLD_SIZE) or ``torch.distributed``
    defines, and over the workers of a DataLoader. All ranks need the same number of workers.
    Each iteration yields the same samples in the same order, whatever happened before: for the
    next epoch, call this function again with the next ``epoch``.

    Args:
        dataset: a path or a URI such as ``s3://bucket/photos.data``. Remote shards are streamed,
            not cached.
        split: ``"train"`` or ``"val"``.
        shuffle: number of samples from which each worker draws the next one (200 kB each at
            256 px). The shards' order is shuffled too. 0 keeps the order of the index.
        seed: with ``epoch``, determines the order, for each number of ranks and workers.
        epoch: number of the epoch.
        equal: whether all ranks get the same number of samples, as DDP needs. The remainder, fewer
            samples than there are ranks, is then left out. Without it, each sample is yielded
            exactly once, and some ranks get one more than others.

    Raises:
        DatasetError: the dataset is missing or unfinished, or the split has no samples; while
            iterating: a shard is damaged or misses samples, or there are fewer samples than ranks.
        StorageError: a remote store does not answer.
    """
    from webdataset import FluidWrapper, split_by_node, split_by_worker

    order = _Epoch(absolute_store(dataset), split, bool(shuffle), seed, epoch, equal)
    stock = FluidWrapper(order.pieces).compose(split_by_node, split_by_worker, order.read)
    # Shuffled before decoding: a stored sample takes a quarter of the memory of its tensors.
    return stock.shuffle(shuffle, seed=f"{seed}/{epoch}").decode(unpack).map(order.tensors)


def unpack(key: str, data: bytes) -> Any:
    """A handler for webdataset's ``decode``: decompress ``.zst``, for the next handlers to decode.

    Returns None for other members, as handlers do.
    """
    if not key.endswith(".zst"):
        return None
    from webdataset import Continue

    with pa.input_stream(pa.BufferReader(data), compression="zstd") as stream:
        return Continue(key.removesuffix(".zst"), stream.read())


class _Epoch:
    """The stages of the pipeline that know the dataset."""

    def __init__(
        self, dataset: Store, split: str, shuffled: bool, seed: int, epoch: int, equal: bool
    ) -> None:
        self._settings = (dataset, split, shuffled, seed, epoch, equal)
        self._dataset, self._equal = dataset, equal
        self._samples = Samples(dataset, split)
        self._counts = self._samples.shard_counts
        self._total = len(self._samples)
        self._order: NDArray[np.int64] = np.arange(len(self._counts))
        self._start = 0
        if shuffled:
            rng = np.random.default_rng([seed, epoch])
            self._order = rng.permutation(len(self._counts))
            # The order also begins somewhere else in each epoch: otherwise each rank would get the
            # same part of a dataset of one shard, and the same samples would always be left out.
            self._start = int(rng.integers(self._total))
        self._ends = np.cumsum(self._counts[self._order])
        self._launched = (0, 1)

    def __getstate__(self) -> tuple[Any, ...]:
        """Settings and place among the ranks, for a worker that is started instead of forked."""
        from webdataset.utils import pytorch_worker_info

        rank, world, _, _ = pytorch_worker_info()
        return (self._settings, (rank, world))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        settings, launched = state
        self.__init__(*settings)  # type: ignore[misc]  # opens the samples again
        self._launched = launched

    def pieces(self) -> Iterator[Piece]:
        """The epoch in one piece per rank and worker, in the order in which webdataset deals."""
        from webdataset.utils import pytorch_worker_info

        # The same function that split_by_node and split_by_worker ask.
        rank, world, _, workers = pytorch_worker_info()
        if self._launched[1] > 1 and world == 1:
            expected = "rank {} of {}".format(*self._launched)
            raise RuntimeError(
                f"expected {expected} in this DataLoader worker, found rank {rank} of 1, because "
                "it was not forked and does not know the process group; set RANK and WORLD_SIZE, "
                "as torchrun does, or pass multiprocessing_context='fork'"
            )
        if self._equal and self._total < world:
            raise DatasetError(
                f"expected at least one sample for each of the {world} ranks, found {self._total} "
                f"in {self._dataset.show()}; shard more photos or use fewer ranks"
            )
        at = self._start
        for worker in range(workers):
            for rank in range(world):
                share = self._total // world
                share += not self._equal and rank < self._total % world
                size = share // workers + (worker < share % workers)
                yield at, size
                at += size

    def read(self, pieces: Iterable[Piece]) -> Iterator[dict[str, Any]]:
        """The samples of pieces: the members' bytes by suffix, as webdataset groups them."""
        for at, size in pieces:
            for shard, first, stop in self._parts(at, size):
                yield from self._part(shard, first, stop)

    def tensors(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A decoded sample with L and ab instead of stored LAB."""
        array = sample.pop("lab.npy", sample.pop("lab.npy.zst", None))
        size = self._samples.size
        if array.shape != (3, size, size) or array.dtype != np.uint8:
            raise DatasetError(
                f"expected (3, {size}, {size}) uint8 in the sample {sample['__key__']} of "
                f"{sample['__url__']}, found {array.shape} {array.dtype}; shard the photos again"
            )
        lab = decode_lab(torch.from_numpy(array))
        return {**sample, "L": lab[:1], "ab": lab[1:]}

    def _parts(self, at: int, size: int) -> Iterator[tuple[int, int, int]]:
        """The shards of a piece, with the first and last sample (exclusive) in each."""
        while size:
            at %= self._total
            place = int(np.searchsorted(self._ends, at, side="right"))
            shard = int(self._order[place])
            first = at - int(self._ends[place] - self._counts[shard])
            count = min(size, int(self._counts[shard]) - first)
            yield shard, first, first + count
            at += count
            size -= count

    def _part(self, shard: int, first: int, stop: int) -> Iterator[dict[str, Any]]:
        """Neighbouring samples of a shard; all of them, or an error."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        offset, keys = self._samples.span(shard, first, stop)
        name = self._samples.shards[shard].as_py()
        suffixes = {"json", self._samples.suffix.removeprefix(".")}
        found = 0
        try:
            with self._dataset.stream(name) as file:
                # A tar may be read from any of its members on.
                file.seek(offset)
                stream = {"url": self._dataset.show(name), "stream": file}
                for sample in group_by_keys(tar_file_expander([stream])):
                    # Other keys are those of copies.
                    if sample["__key__"] == keys[found] and suffixes <= sample.keys():
                        yield sample
                        found += 1
                        if found == len(keys):
                            return
        except (tarfile.TarError, OSError, ValueError) as error:
            # webdataset appends the stream and the location to an error's arguments.
            detail = getattr(error, "strerror", None) or str(error.args[0]).partition(" @ ")[0]
            raise self._samples.damaged(
                shard, f"cannot be read after {found} of {len(keys)} samples ({detail})"
            ) from error
        raise self._samples.damaged(
            shard, f"does not match its index: expected {len(keys)} samples, found {found}"
        )
