"""The plan: planned slices stay, and new photos are planned once, wherever they appear."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.storage.local import LocalStore
from pipelines.errors import WrongCallError
from pipelines.sharding import plan as module
from pipelines.sharding.plan import Listing, PlannedUnit, plan_units, planning
from pipelines.sharding.plan_file import PlanFile, plans
from pipelines.sources.listing import list_photos
from pipelines.sources.source import PlannedPhoto, open_sources


def make(top: Path, *names: str) -> Path:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return top


def planned(dataset: Path, *sources: Path, size: int = 3) -> list[PlannedUnit]:
    """Run one uninterrupted call."""
    return list(plan_units(LocalStore(dataset), open_sources(sources), size, Counter()))


def slices(dataset: Path) -> list[list[str]]:
    """Every unit's slice, read with PyArrow only."""
    found = []
    for first in plans(dataset):
        parquet = pq.ParquetFile(dataset / f"units/{first:06d}.parquet")
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group).to_pylist()
            found.append([f"{row['root']}:{os.fsdecode(row['path'])}" for row in rows])
    return found


def plan_files(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (dataset / "units").iterdir()}


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two units per plan file."""
    monkeypatch.setattr(module, "PLAN_UNITS", 2)


# Slices


def test_photos_are_cut_in_their_order(tmp_path: Path) -> None:
    top = make(tmp_path / "p", *(f"{i}.jpg" for i in range(8)))
    units = planned(tmp_path / "d", top)
    assert units == [PlannedUnit(0, 0, 3), PlannedUnit(1, 0, 3), PlannedUnit(2, 0, 2)]
    names = [f"0:{i}.jpg" for i in range(8)]
    assert slices(tmp_path / "d") == [names[:3], names[3:6], names[6:]]


def test_slices_go_on_over_the_sources(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", "a.jpg", "b.jpg"), make(tmp_path / "two", "a.jpg", "c.jpg")
    planned(tmp_path / "d", one, two, one)
    assert slices(tmp_path / "d") == [
        ["0:a.jpg", "0:b.jpg", "1:a.jpg"],
        ["1:c.jpg", "2:a.jpg", "2:b.jpg"],
    ]


def test_tars_are_units_of_their_own(tmp_path: Path) -> None:
    top = make(
        tmp_path / "p", "a.jpg", "b.TAR", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.tar", "h.tar"
    )
    units = planned(tmp_path / "d", top)
    assert slices(tmp_path / "d") == [
        ["0:a.jpg"], ["0:b.TAR"], ["0:c.jpg", "0:d.jpg", "0:e.jpg"], ["0:f.jpg"],
        ["0:g.tar"], ["0:h.tar"],
    ]  # fmt: skip
    assert [unit.photos for unit in units] == [1, 1, 3, 1, 1, 1]


def test_no_photos_no_plan(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    assert planned(tmp_path / "d", tmp_path / "p") == []
    assert plans(tmp_path / "d") == []


def test_a_second_call_writes_nothing(tmp_path: Path, small_files: None) -> None:
    top = make(tmp_path / "p", *(f"{i:02d}.jpg" for i in range(14)), "05.tar", "x/y.jpg")
    first = planned(tmp_path / "d", top)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "d/units").iterdir()}
    assert len(before) > 2
    assert planned(tmp_path / "d", top) == first
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "d/units").iterdir()}
    assert after == before


def test_each_plan_file_is_there_before_its_units_are_told(
    tmp_path: Path, small_files: None
) -> None:
    top = make(tmp_path / "p", *(f"{i:02d}.jpg" for i in range(20)))
    for unit in plan_units(LocalStore(tmp_path / "d"), open_sources([top]), 3, Counter()):
        file = PlanFile(tmp_path / "d", unit.plan)
        assert len(file.slice(unit.unit)) == unit.photos
        assert plans(tmp_path / "d")[-1] == unit.plan


# Interruptions


@pytest.mark.parametrize("units", range(10))
def test_an_interrupted_listing_goes_on_with_the_same_slices(
    tmp_path: Path, small_files: None, units: int
) -> None:
    """Stopped twice, after any number of units: the files are the same, byte for byte."""
    names = [*(f"{i:02d}.jpg" for i in range(17)), "03.tar", "09/1.jpg", "09/2.tar", "09/3.jpg"]
    top = make(tmp_path / "p", *names)
    listed = make(tmp_path / "l", "1.jpg", "2.jpg", "3.jpg", "4.jpg") / "list.txt"
    listed.write_text("4.jpg\n2.jpg\n3.jpg\n1.jpg\n2.jpg\n")
    sources = [top, listed, top]
    expected = planned(tmp_path / "whole", *sources)
    assert len(expected) > 18
    opened = open_sources(sources)
    for taken in (units, units + 5):
        listing = plan_units(LocalStore(tmp_path / "d"), opened, 3, Counter())
        assert [next(listing) for _ in range(taken)] == expected[:taken]
        listing.close()
    if not units:
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d/units/.000002.parquet.part").write_bytes(b"half a file")
    assert planned(tmp_path / "d", *sources) == expected
    if not units:
        (tmp_path / "d/units/.000002.parquet.part").unlink(missing_ok=True)
    assert plan_files(tmp_path / "d") == plan_files(tmp_path / "whole")


# Photos that come later

PARTS = ["a", "a.b", "a b", "b", "a-", "é", "A"]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)
NAMES = st.tuples(PATHS, st.sampled_from([".jpg", ".png", ".tar"])).map("".join)


@settings(max_examples=50, deadline=None)
@given(
    st.sets(NAMES, min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_photos_added_anywhere_are_planned_once(
    names: set[str], calls: int, size: int, plan_file: int, removed: int, random
) -> None:
    """Over several calls, interrupted or not, while some photos disappear."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PLAN_UNITS", plan_file)
        top, dataset = Path(folder, "photos"), Path(folder, "dataset")
        waiting = sorted(names)
        random.shuffle(waiting)
        top.mkdir()
        before: list[list[str]] = []
        present: set[str] = set()
        for call in range(calls, 0, -1):
            now = waiting[: -(-len(waiting) // call)]
            waiting = waiting[len(now) :]
            for name in random.sample(sorted(present), min(removed, len(present))):
                (top / name).unlink()
                present.discard(name)
            make(top, *now)
            present |= set(now)
            interrupted = plan_units(LocalStore(dataset), open_sources([top]), size, Counter())
            for _ in range(random.randint(0, 5)):
                next(interrupted, None)
            interrupted.close()
            units = planned(dataset, top, size=size)
            after = slices(dataset)
            assert after[: len(before)] == before  # what is planned stays
            assert [unit.photos for unit in units] == [len(photos) for photos in after]
            assert [unit.unit for unit in units] == list(range(len(after)))
            everything = [name for photos in after for name in photos]
            assert len(set(everything)) == len(everything)  # nothing twice
            assert {f"0:{name}" for name in present} <= set(everything)  # nothing lost
            for photos in after:
                assert len(photos) <= size
                assert len(photos) == 1 or not any(name.endswith(".tar") for name in photos)
            before = after
        assert {name for photos in before for name in photos} == {f"0:{name}" for name in names}


@settings(max_examples=50, deadline=None)
@given(st.sets(NAMES, min_size=2, max_size=30))
def test_the_order_of_the_plan_is_that_of_the_listing(names: set[str]) -> None:
    """The merge with the plan relies on this order."""
    with tempfile.TemporaryDirectory() as folder:
        sources = open_sources([make(Path(folder), *names)])
        found = list(list_photos(sources, Counter()))
        assert found == sorted(found, key=lambda photo: module._order(sources, photo))
        assert len(found) == len(names)


def test_a_folder_that_takes_the_place_of_a_photo(tmp_path: Path) -> None:
    top = make(tmp_path / "p", "a.jpg", "b.jpg")
    planned(tmp_path / "d", top, size=1)
    (top / "a.jpg").unlink()
    make(top, "a.jpg/1.jpg")
    planned(tmp_path / "d", top, size=1)
    assert slices(tmp_path / "d") == [["0:a.jpg"], ["0:b.jpg"], ["0:a.jpg/1.jpg"]]


def test_new_photos_of_each_source(tmp_path: Path, small_files: None) -> None:
    """Before, between and after the planned ones, over three later calls."""
    one = make(tmp_path / "one", "b.jpg", "d.jpg")
    two = make(tmp_path / "two", "b.jpg")
    planned(tmp_path / "d", one, two, size=2)
    make(one, "a.jpg", "e.jpg")
    make(two, "a.jpg")
    planned(tmp_path / "d", one, two, size=2)
    make(one, "c.jpg", "f.jpg")
    planned(tmp_path / "d", one, two, size=2)
    make(two, "z.jpg")
    planned(tmp_path / "d", one, two, size=2)
    assert slices(tmp_path / "d") == [
        ["0:b.jpg", "0:d.jpg"], ["1:b.jpg"],
        ["0:a.jpg", "0:e.jpg"], ["1:a.jpg"],
        ["0:c.jpg", "0:f.jpg"],
        ["1:z.jpg"],
    ]  # fmt: skip


def test_no_more_than_a_slice_a_call_is_held(
    tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later call reads each slice once, and the first and last of each file once more."""
    top = make(tmp_path / "p", *(f"{i:03d}.jpg" for i in range(60)))
    planned(tmp_path / "d", top)
    reads: list[int] = []
    read = PlanFile.slice

    def watched(self: PlanFile, unit: int) -> list[PlannedPhoto]:
        reads.append(unit)
        return read(self, unit)

    monkeypatch.setattr(PlanFile, "slice", watched)
    planned(tmp_path / "d", top)
    assert sorted(set(reads)) == list(range(20))
    assert max(Counter(reads).values()) <= 2


# Lists


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A list that is not sorted and names a photo twice."""
    make(tmp_path / "l", *(f"{name}.jpg" for name in "abcdefg"))
    path = tmp_path / "l" / "list.txt"
    path.write_text("c.jpg\na.jpg\nc.jpg\nb.jpg\n")
    return path


def test_rows_keep_their_order(listed: Path, tmp_path: Path) -> None:
    planned(tmp_path / "d", listed, size=2)
    assert slices(tmp_path / "d") == [["0:c.jpg", "0:a.jpg"], ["0:c.jpg", "0:b.jpg"]]


@pytest.mark.parametrize("beside", [[], ["folder"]])
def test_rows_that_are_appended_are_new(listed: Path, tmp_path: Path, beside: list[str]) -> None:
    """Appended twice, with a second source after the list, and with a repeated photo."""
    sources = [listed, *(make(tmp_path / name, "m.jpg") for name in beside)]
    planned(tmp_path / "d", *sources)
    before = slices(tmp_path / "d")
    for added in (["g.jpg", "a.jpg"], ["a.jpg"], ["b.jpg", "c.jpg", "c.jpg", "d.jpg"]):
        with listed.open("a") as file:
            file.write("".join(f"{name}\n" for name in added))
        planned(tmp_path / "d", *sources)
        after = slices(tmp_path / "d")
        assert after[: len(before)] == before
        new = [name for photos in after[len(before) :] for name in photos]
        assert new == [f"0:{name}" for name in added]
        assert planned(tmp_path / "d", *sources)
        assert slices(tmp_path / "d") == after
        before = after


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("c.jpg\na.jpg\nc.jpg\n", "b.jpg is missing"),
        ("", "c.jpg is missing"),
        ("c.jpg\na.jpg\nb.jpg\n", "expected c.jpg, found b.jpg"),
        ("c.jpg\ng.jpg\nc.jpg\nb.jpg\n", "expected a.jpg, found g.jpg"),
        ("g.jpg\nc.jpg\na.jpg\nc.jpg\nb.jpg\n", "expected c.jpg, found g.jpg"),
    ],
)
@pytest.mark.parametrize("beside", [[], ["folder"]])
def test_rows_that_change_are_refused_by_name(
    listed: Path, tmp_path: Path, rows: str, said: str, beside: list[str]
) -> None:
    sources = [listed, *(make(tmp_path / name, "m.jpg") for name in beside)]
    planned(tmp_path / "d", *sources)
    before = plan_files(tmp_path / "d")
    listed.write_text(rows)
    with pytest.raises(WrongCallError, match="has changed: ") as error:
        planned(tmp_path / "d", *sources)
    assert said in str(error.value)
    assert str(listed) in str(error.value)
    assert "keep its rows and add new ones at the end, or choose another dataset" in str(
        error.value
    )
    assert plan_files(tmp_path / "d") == before


# The thread


def test_the_listing_tells_every_unit_in_order(tmp_path: Path) -> None:
    top = make(tmp_path / "p", *(f"{i:02d}.jpg" for i in range(10)))
    ignored: Counter[str] = Counter()
    make(top, "x.txt")
    with planning(LocalStore(tmp_path / "d"), open_sources([top]), 3, ignored) as listing:
        units = []
        while (unit := listing.next(10)) is not None:
            units.append(unit)
        assert listing.ended
        assert listing.next(None) is None
    assert units == planned(tmp_path / "d", top)
    assert ignored == {".txt": 1}


@pytest.mark.parametrize("error", [WrongCallError("a list"), OSError("full"), KeyboardInterrupt()])
def test_the_listing_passes_errors_on(error: BaseException) -> None:
    def units() -> Iterator[PlannedUnit]:
        yield PlannedUnit(0, 0, 1)
        raise error

    listing = Listing(units())
    assert listing.next(10) == PlannedUnit(0, 0, 1)
    with pytest.raises(type(error)) as caught:
        listing.next(10)
    assert caught.value is error
    assert listing.ended
    assert listing.next(None) is None
    listing.stop()


def test_the_listing_waits_no_longer_than_it_is_told() -> None:
    go = threading.Event()

    def units() -> Iterator[PlannedUnit]:
        go.wait()
        yield PlannedUnit(0, 0, 1)

    listing = Listing(units())
    assert listing.next(0) is None
    assert not listing.ended
    go.set()
    assert listing.next(10) == PlannedUnit(0, 0, 1)
    assert listing.next(10) is None
    assert listing.ended
    listing.stop()


@pytest.mark.timeout(120)
def test_the_listing_stops_with_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED_AHEAD", 5)
    made = []
    full = threading.Event()

    def units() -> Iterator[PlannedUnit]:
        for unit in range(1000):
            made.append(unit)
            if unit == 5:
                full.set()
            yield PlannedUnit(unit, 0, 1)

    listing = Listing(units())
    full.wait()
    listing.stop()
    assert not listing._thread.is_alive()
    assert len(made) <= 7
