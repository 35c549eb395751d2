"""Writing one unit: a slice of photos -> tars, histogram, rejections, and the index last.

What a unit's files are called and hold is ``colorcore.dataset``'s business; this module makes
them. It is a pure function of the slice, the photos' bytes and the settings.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import pyarrow as pa

from colorcore.dataset import (
    INDEX_SCHEMA,
    REJECTED_SCHEMA,
    SPLITS,
    PlannedPhoto,
    ShardSettings,
    UnitResult,
    histogram_path,
    index_path,
    npy_header,
    rejected_path,
    unit_name,
    write_table,
)
from colorcore.files import replace_bytes
from colorcore.refusal import PhotoRefused, Reason
from colorcore.sample import Sample, make_sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARD_SAMPLES = 1000
"""A shard is closed after this many samples (197 MB at 256 x 256)."""
_TAR_BLOCK = 512
_COPY = 1 << 20


def write_unit(
    scratch: Path,
    unit: int,
    photos: Iterable[PlannedPhoto],
    read: Callable[[PlannedPhoto], bytes],
    settings: ShardSettings,
) -> UnitResult:
    """Turn one slice of photos into one unit's files, under the folder ``scratch``.

    ``read`` gives a photo's bytes; an ``OSError`` or :class:`PhotoRefused` from it refuses that
    photo. Publishing the files is the caller's business (:func:`publish_unit`).
    """
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    seen: set[str] = set()
    histogram = np.zeros((256, 256), np.int64)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(scratch / split, unit_name(unit)))
            for split in SPLITS
        }
        for position, photo in enumerate(photos):
            origin = {"root": photo.root, "source": photo.source}
            try:
                sample = make_sample(_read(photo, read), settings)
                if sample.sha256 in seen:
                    raise PhotoRefused(Reason.DUPLICATE, "the same bytes as an earlier photo")
            except PhotoRefused as refusal:
                rejected.append(
                    {**origin, "reason": refusal.reason.value, "detail": refusal.detail}
                )
                continue
            seen.add(sample.sha256)
            key = f"{unit_name(unit)}-{position:05d}"
            place = writers[sample.split].add(key, sample, photo.source)
            rows.append({"key": key, "split": sample.split, **place, **origin, **sample.facts()})
            if sample.split == "train":
                count_cells(sample.lab_u8, histogram)
    write_table(rejected_path(scratch, unit), pa.Table.from_pylist(rejected, REJECTED_SCHEMA))
    buffer = io.BytesIO()
    np.save(buffer, histogram)
    replace_bytes(histogram_path(scratch, unit), buffer.getvalue())
    write_table(index_path(scratch, unit), pa.Table.from_pylist(rows, INDEX_SCHEMA))
    return UnitResult(
        unit=unit,
        kept={split: sum(row["split"] == split for row in rows) for split in SPLITS},
        refused=dict(sorted(Counter(row["reason"] for row in rejected).items())),
        index_sha256=hashlib.sha256(index_path(scratch, unit).read_bytes()).hexdigest(),
    )


def publish_unit(scratch: Path, dataset: Path, unit: int) -> None:
    """Move a unit's files from ``scratch`` into the dataset, on one file system, index last."""
    index = index_path(scratch, unit)
    for path in sorted(path for path in scratch.rglob("*") if path.is_file() and path != index):
        _move(path, dataset / path.relative_to(scratch))
    _move(index, index_path(dataset, unit))


class ShardWriter:
    """Writes samples into the tars of one unit and split, and knows where each one lies."""

    def __init__(self, folder: Path, unit: str) -> None:
        self._folder, self._unit = folder, unit
        self._open_files = ExitStack()
        self._count = 0
        self._name = ""
        self._file: BinaryIO
        self._tar: tarfile.TarFile

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def add(self, key: str, sample: Sample, source: str) -> dict[str, Any]:
        """Append a sample; returns its index columns shard, offset and length.

        ``offset`` and ``length`` are those of the .npy file within the tar, in bytes.
        """
        if self._count % SHARD_SAMPLES == 0:
            self._open(self._count // SHARD_SAMPLES)
        self._count += 1
        array = npy_header(sample.lab_u8.shape) + sample.lab_u8.tobytes()
        offset = self._add_file(f"{key}.lab.npy", array)
        facts = json.dumps({"source": source, **sample.facts()}, ensure_ascii=False)
        self._add_file(f"{key}.json", facts.encode())
        return {"shard": self._name, "offset": offset, "length": len(array)}

    def _open(self, number: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._unit}-{number:03d}.tar"
        self._name = f"{self._folder.name}/{path.name}"
        self._open_files.close()
        self._file = self._open_files.enter_context(path.open("wb"))
        self._tar = self._open_files.enter_context(
            tarfile.TarFile(
                fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPY
            )
        )

    def _add_file(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime 0, no owner: the same bytes every time
        info.size = len(data)
        offset = self._file.tell() + _TAR_BLOCK
        self._tar.addfile(info, io.BytesIO(data))
        return offset


def count_cells(lab_u8: NDArray[np.uint8], histogram: NDArray[np.int64]) -> None:
    """Add a sample's pixels to a (256, 256) histogram of stored (a, b) cells, in place."""
    cells = (lab_u8[1].astype(np.uint16) << 8) | lab_u8[2]
    histogram += np.bincount(cells.ravel(), minlength=65536).reshape(256, 256)


def _read(photo: PlannedPhoto, read: Callable[[PlannedPhoto], bytes]) -> bytes:
    try:
        return read(photo)
    except OSError as error:
        raise PhotoRefused(Reason.UNREADABLE, error.strerror or type(error).__name__) from error


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
