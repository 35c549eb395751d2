"""The job of `cc doctor`: check the machine and a dataset, then run the precursor's proofs.

Every check runs, whatever the ones before it found; a check that raises has failed. The proofs
are separate lines and use made-up photos where no sound dataset is given, which tells faults of
the infrastructure from faults of the data or the model.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.dataset.layout import SPLITS, DatasetError, DatasetInfo, ShardSettings, write_info
from colorcore.loading import best_device
from colorcore.photos.write import save_picture
from colorcore.storage.location import absolute_store, open_store
from colorcore.storage.store import StorageError, Store
from pipelines.doctor.dataset import dataset_checks
from pipelines.doctor.finding import Finding, Verdict, fail, from_error, ok
from pipelines.doctor.machine import machine_checks
from pipelines.doctor.precursor import Proof, ProofError, proofs
from pipelines.doctor.verify import Damage
from pipelines.doctor.verify import verify as verify_dataset
from pipelines.errors import JobError, WrongCallError
from pipelines.sharding.merge_tasks import merge_units
from pipelines.sharding.plan import plan_units
from pipelines.sharding.task import shard_unit
from pipelines.sources.source import open_sources

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEEDED_FOR_PHOTOS = frozenset({"dataset", "shards", "samples", "every sample"})
"""Checks of a dataset that must pass for the precursor to use its photos."""
MADE_UP = 96
MADE_UP_SIZE = 64
PROOFS = 8
"""Estimate of the precursor's lines, for the progress bar."""
OWN_ERRORS = (DatasetError, StorageError, JobError)
"""Errors whose message is written for the user."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """All lines of the table, in order, and with ``verify`` all damaged places of the dataset."""

    lines: list[Line]
    damage: list[Damage] = field(default_factory=list)

    def count(self, verdict: Verdict) -> int:
        """The number of lines with a verdict."""
        return sum(line.verdict == verdict for line in self.lines)

    def facts(self) -> dict[str, Any]:
        """All lines and their counts, as one JSON object."""
        counts = {verdict.lower(): self.count(verdict) for verdict in ("ok", "warn", "FAIL")}
        facts = {**counts, "checks": [asdict(line) for line in self.lines]}
        return {**facts, "damage": [asdict(place) for place in self.damage]}


def examine(
    dataset: str | Path | None,
    *,
    tracking_uri: str,
    address: str | None = None,
    quick: bool = False,
    verify: bool = False,
    on_check: Callable[[int, int, str], None] = lambda _done, _total, _name: None,
) -> Health:
    """Run all checks; ``quick`` skips those that start processes (Ray and the DDP proof).

    ``verify`` reads every sample of the dataset.

    Raises:
        WrongCallError: there is no dataset to verify.
        StorageError: the dataset's location cannot be opened as it is written.
    """
    if verify and dataset is None:
        raise WrongCallError(
            "expected a dataset with --verify, got none: cc doctor DATASET --verify"
        )
    store = None if dataset is None else absolute_store(dataset)
    checks = machine_checks(
        address=address,
        tracking_uri=tracking_uri,
        folder=Path.cwd(),
        ray=not quick or address is not None,
    )
    if store is not None:
        checks += dataset_checks(store)
        if verify:
            checks.append(("every sample", lambda: verify_all(store)))
    total = len(checks) + PROOFS
    lines: list[Line] = []
    damage: list[Damage] = []

    def verify_all(store: Store) -> Finding:
        def note(done: int, units: int, note: str) -> None:
            on_check(len(lines), total, f"every sample: {done:,} of {units:,} units, {note}")

        verified = verify_dataset(store, note)
        damage.extend(verified.damage)
        return verified.finding(store)

    def run(name: str, check: Callable[[], Finding]) -> Line:
        on_check(len(lines), max(total, len(lines) + 1), name)
        lines.append(_line(name, check))
        return lines[-1]

    sound = store is not None
    for name, check in checks:
        line = run(name, check)
        sound = sound and not (line.verdict == "FAIL" and name in NEEDED_FOR_PHOTOS)
    with tempfile.TemporaryDirectory(prefix="colorcore-doctor-") as scratch:
        place = Path(scratch)
        photos = store if store is not None and sound else open_store(place / "made-up")
        if photos is not store:
            run("precursor: made-up photos", lambda: make_up(place / "made-up"))
        wanted: list[Proof] = []
        if lines[-1].verdict != "FAIL" or photos is store:
            found = run("precursor: data", lambda: _open(photos, place, wanted, ranks=not quick))
            if found.verdict == "ok":  # only a failure to open the photos is worth a line
                lines.pop()
        for name, proof in wanted:
            run(f"precursor: {name}", partial(_prove, proof))
    on_check(len(lines), len(lines), "")
    return Health(lines, damage)


def make_up(dataset: Path) -> Finding:
    """Shard made-up JPEG, PNG and WebP photos in this process."""
    photos = dataset.with_name("photos")
    photos.mkdir()
    for seed in range(MADE_UP):
        suffix = (".jpg", ".png", ".webp")[seed % 3]
        save_picture(photos / f"{seed:03d}{suffix}", made_up_photo(seed))
    settings = ShardSettings(size=MADE_UP_SIZE, photos_per_unit=32, val_percent=10)
    info = DatasetInfo(settings=settings, sources=(str(photos),))
    write_info(dataset, info)
    store, sources = open_store(dataset), open_sources([photos])
    for planned in plan_units(store, sources, settings.photos_per_unit, Counter()):
        shard_unit((store, sources, settings), planned.unit, planned.plan)
    finished = merge_units(store, info)
    kept = sum((finished.counts or {}).get(split, 0) for split in SPLITS)
    if kept != MADE_UP:
        return fail(
            f"{kept} of {MADE_UP} made-up photos were kept; refused: {finished.refused}",
            "reinstall OpenCV and Pillow in the tested versions: make setup",
        )
    return ok(f"{kept} JPEG, PNG and WebP files sharded at {MADE_UP_SIZE} px")


def made_up_photo(seed: int) -> NDArray[np.uint8]:
    """Smooth fields of random colours, darker or lighter: (96, 128, 3) uint8 sRGB."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (3, 4, 3)).astype(np.float32) ** rng.uniform(0.8, 1.0)
    fields = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(fields), 0, 255).astype(np.uint8)


def _open(photos: Store, place: Path, wanted: list[Proof], *, ranks: bool) -> Finding:
    wanted += proofs(photos, best_device(), place, ranks=ranks)
    return ok("opened")


def _prove(proof: Callable[[], str]) -> Finding:
    return ok(proof())


def _line(name: str, check: Callable[[], Finding]) -> Line:
    """Run one check; an exception is a failure, and never stops the checks after it."""
    try:
        found = check()
    except ProofError as error:
        found = fail(error.found, error.advice)
    except OWN_ERRORS as error:
        found = from_error(error)
    except Exception as error:
        text = " ".join(str(error).split())
        found = fail(
            f"{type(error).__name__}: {text}" if text else type(error).__name__,
            "unexpected error; please report it with the output of cc doctor --json",
        )
    return Line(name, found.verdict, found.found, found.advice)
