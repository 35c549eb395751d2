"""Writing one unit: a slice of photos -> tars, histogram, rejections, and the index last.

``colorcore.dataset.layout`` defines the names and schemas of a unit's files; this module writes
them. They are a pure function of the slice, the photos' bytes and the settings, so a unit can be
redone anywhere, byte for byte.

A photo goes through four types: ``SourcePhoto`` (its bytes), ``DecodedPhoto`` (its pixels),
``Sample`` (stored LAB at the dataset's size) and, once a dataset is finished, a row of ``Samples``.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colorcore.dataset.layout import (
    INDEX_SCHEMA,
    REJECTED_SCHEMA,
    SPLITS,
    SampleSettings,
    ShardSettings,
    UnitResult,
    histogram_name,
    index_name,
    rejected_name,
    unit_name,
    write_table,
)
from colorcore.dataset.sample import Sample, make_sample
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.photos.thumbnail import PER_REASON, thumbnail_of_refused
from colorcore.storage.atomic import start_writing
from colorcore.storage.local import LocalStore
from colorcore.storage.npy import npy_bytes, npy_header
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARD_SAMPLES = 1000
"""Samples per shard (197 MB at 256 x 256)."""
ZSTD_LEVEL = 1
_TAR_BLOCK = 512
_COPY = 1 << 20
_WRITE_BEHIND = 4 << 20
"""Bytes of a tar after which the disk is told to begin with them."""


@dataclass(frozen=True, slots=True)
class SourcePhoto:
    """A photo's bytes, or the reason why they could not be read; ``source`` is its path as text."""

    root: int
    source: str
    content: bytes | PhotoRefused

    def data(self) -> bytes:
        """The photo's bytes.

        Raises:
            PhotoRefused: they could not be read.
        """
        if isinstance(self.content, PhotoRefused):
            raise self.content
        return self.content


class SampleMaker:
    """Makes samples from photos, and refuses exact copies of earlier ones."""

    def __init__(self, settings: SampleSettings) -> None:
        self._settings = settings
        self._seen: set[str] = set()

    def make(self, photo: SourcePhoto) -> Sample:
        """The photo's sample.

        Raises:
            PhotoRefused: with the reason; the photo must not get into a shard.
        """
        sample = make_sample(photo.data(), self._settings)
        if sample.sha256 in self._seen:
            raise PhotoRefused(Reason.DUPLICATE, "the same bytes as an earlier photo")
        self._seen.add(sample.sha256)
        return sample


def write_unit(
    scratch: Path,
    unit: int,
    photos: Iterable[SourcePhoto],
    settings: ShardSettings,
    *,
    write_behind: bool = False,
) -> UnitResult:
    """Turn one slice of photos into one unit's files, under the folder ``scratch``.

    With ``write_behind`` the disk begins with the tars at once, so that syncing them is short.

    The caller publishes them with :func:`publish_unit`.
    """
    here = LocalStore(scratch, sync=False)  # publishing them syncs them
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    reasons: Counter[Reason] = Counter()
    maker = SampleMaker(settings)
    histogram = np.zeros((256, 256), np.float64)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(
                    scratch / split,
                    unit_name(unit),
                    settings.compress,
                    write_behind=write_behind,
                )
            )
            for split in SPLITS
        }
        for position, photo in enumerate(photos):
            origin = {"root": photo.root, "source": photo.source}
            try:
                sample = maker.make(photo)
            except PhotoRefused as refusal:
                reason = refusal.reason
                reasons[reason] += 1
                picture = None
                # A thumbnail decodes the photo once more, which a few per reason can afford.
                if reasons[reason] <= PER_REASON:
                    picture = thumbnail_of_refused(photo.content, reason, settings.limits)
                rejected.append(
                    {
                        **origin,
                        "reason": reason.value,
                        "detail": refusal.detail,
                        "thumbnail": picture,
                    }
                )
                continue
            # Keys count all photos of the slice, refused ones too: they stay the same when a
            # threshold changes what is kept.
            key = f"{unit_name(unit)}-{position:05d}"
            place = writers[sample.split].add(key, sample, photo.source)
            rows.append({"key": key, "split": sample.split, **place, **origin, **sample.facts()})
            if sample.split == "train":  # the palette must not know the validation photos
                count_cells(sample.lab_u8, histogram)
    write_table(here, rejected_name(unit), pa.Table.from_pylist(rejected, REJECTED_SCHEMA))
    here.write(histogram_name(unit), npy_bytes(histogram.astype(np.int64)))
    write_table(here, index_name(unit), pa.Table.from_pylist(rows, INDEX_SCHEMA))
    return UnitResult(
        unit=unit,
        kept={split: sum(row["split"] == split for row in rows) for split in SPLITS},
        refused={reason.value: count for reason, count in sorted(reasons.items())},
    )


def publish_unit(scratch: Path, dataset: Store, unit: int) -> None:
    """Move a unit's files from ``scratch`` into the dataset, each in one step, the index last.

    A store returns from ``put_all`` when the files survive a power cut, so an index implies them.

    A unit that is redone after its photos changed may have fewer shards than before; the surplus
    ones are removed.
    """
    # The index marks the unit as done. A worker killed before this point leaves files without an
    # index, and the next run overwrites them.
    index = scratch / index_name(unit)
    paths = sorted(path for path in scratch.rglob("*") if path.is_file() and path != index)
    dataset.put_all({path.relative_to(scratch).as_posix(): path for path in paths})
    for name in _surplus_shards(scratch, dataset, unit):
        dataset.remove(name)
    dataset.put(index, index_name(unit))


def _surplus_shards(scratch: Path, dataset: Store, unit: int) -> Iterator[str]:
    rows = pq.read_table(scratch / index_name(unit), columns=["shard"])["shard"]
    mine = set(rows.to_pylist())
    # Counted up from this unit's own shards: listing the folder would list those of all units.
    for split in SPLITS:
        number = sum(name.startswith(f"{split}/") for name in mine)
        while dataset.exists(name := f"{split}/{unit_name(unit)}-{number:03d}.tar"):
            yield name
            number += 1


class ShardWriter:
    """Writes samples into the tars of one unit and split, and returns the place of each."""

    def __init__(
        self, folder: Path, unit: str, compress: str = "none", *, write_behind: bool = False
    ) -> None:
        self._folder, self._unit, self._write_behind = folder, unit, write_behind
        self._begun = 0
        self._codec = pa.Codec("zstd", ZSTD_LEVEL) if compress == "zstd" else None
        self._open_files = ExitStack()
        self._count = 0
        self._name = ""
        self._file: BinaryIO
        self._summed = _Summed(io.BytesIO())
        self._tar: tarfile.TarFile

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def add(self, key: str, sample: Sample, source: str) -> dict[str, Any]:
        """Append a sample and return its index columns shard, offset, length and crc32.

        ``offset`` and ``length`` locate the array's file within the tar, in bytes: the loader reads
        it from a memory map without parsing the tar. ``crc32`` is that of all bytes that the sample
        adds to the tar: headers, array, facts and padding.
        """
        if self._count % SHARD_SAMPLES == 0:
            self._open(self._count // SHARD_SAMPLES)
        self._count += 1
        # A .npy file instead of raw pixels: stock webdataset decodes it without knowing the size.
        self._summed.crc32 = 0
        array = npy_header(sample.lab_u8.shape) + sample.lab_u8.tobytes()
        if self._codec is not None:
            array = self._codec.compress(array, asbytes=True)
        offset = self._add_file(key + (".lab.npy.zst" if self._codec else ".lab.npy"), array)
        facts = json.dumps({"source": source, **sample.facts()}, ensure_ascii=False)
        self._add_file(f"{key}.json", facts.encode())
        crc32 = self._summed.crc32
        return {"shard": self._name, "offset": offset, "length": len(array), "crc32": crc32}

    def _open(self, number: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._unit}-{number:03d}.tar"
        self._name = f"{self._folder.name}/{path.name}"
        self._open_files.close()
        self._file = self._open_files.enter_context(path.open("wb"))
        self._begun = 0
        self._summed = _Summed(self._file)
        self._tar = self._open_files.enter_context(
            tarfile.TarFile(
                fileobj=self._summed, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPY
            )
        )

    def _add_file(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime 0 and no owner: the same bytes every time
        info.size = len(data)
        # A USTAR header is exactly one block; names this short never need a second one.
        offset = self._file.tell() + _TAR_BLOCK
        self._tar.addfile(info, io.BytesIO(data))
        if self._write_behind and offset - self._begun >= _WRITE_BEHIND:
            self._file.flush()
            start_writing(self._file.fileno(), self._begun, offset - self._begun)
            self._begun = offset
        return offset


class _Summed(io.RawIOBase):
    """Passes what is written on to a file, and adds it to a checksum.

    CRC-32 finds every change of up to 32 neighbouring bits, and all others but one in 4·10⁹. zlib's
    takes 0.05 ms for a sample of 256 px, half of what SHA-256 does.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.crc32 = file, 0

    def write(self, data: Any) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def count_cells(lab_u8: NDArray[np.uint8], histogram: NDArray[np.float64]) -> None:
    """Add a sample's pixels to a (256, 256) histogram of stored (a, b) cells, in place.

    Exact: float64 counts whole numbers up to 2⁵³, and OpenCV's float32 those of one sample.
    """
    counts = cv2.calcHist(list(lab_u8[1:]), [0, 1], None, [256, 256], [0, 256, 0, 256])
    cv2.accumulate(counts, histogram)
