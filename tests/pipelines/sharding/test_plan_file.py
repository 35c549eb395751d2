"""The plan's files on disk, read back with PyArrow."""

import pyarrow.parquet as pq
import pytest

from colorcore.dataset.layout import (
    DatasetError,
    done_units,
    index_name,
    unit_name,
)
from pipelines.sharding.plan_file import PlanFile, plan_name, plans, write_plan
from pipelines.sources.source import PlannedPhoto

# The plan


def test_plans_keep_bytes_that_are_no_text(tmp_path):
    photos = [PlannedPhoto(0, b"caf\xe9/\xff.jpg"), PlannedPhoto(3, "写真 ñ.jpg".encode())]
    photos += [PlannedPhoto(1, b"new\nline.jpg"), PlannedPhoto(0, b"")]
    write_plan(tmp_path, 5, [photos])
    assert PlanFile(tmp_path, 5).slice(5) == photos
    assert photos[0].source == r"caf\xe9/\xff.jpg"
    assert photos[1].source == "写真 ñ.jpg"


def test_a_plan_file_has_a_row_group_a_unit(tmp_path):
    slices = [
        [PlannedPhoto(0, f"{u}-{i}.jpg".encode()) for i in range(u % 3 + 1)] for u in range(5)
    ]
    write_plan(tmp_path, 7, slices)
    write_plan(tmp_path, 12, [[PlannedPhoto(2, b"z.jpg")]])
    assert plans(tmp_path) == [7, 12]
    file = PlanFile(tmp_path, 7)
    assert (file.first, file.photos) == (7, [1, 2, 3, 1, 2])
    assert [file.slice(7 + number) for number in range(5)] == slices
    parquet = pq.ParquetFile(tmp_path / plan_name(7))
    for group, photos in enumerate(slices):
        rows = parquet.read_row_group(group).to_pylist()
        assert rows == [{"root": photo.root, "path": photo.path} for photo in photos]
    assert PlanFile(tmp_path, 12).slice(12) == [PlannedPhoto(2, b"z.jpg")]


def test_a_damaged_plan_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"000000\.parquet is damaged: .*No such file"):
        PlanFile(tmp_path, 0)
    write_plan(tmp_path, 0, [[PlannedPhoto(0, b"a.jpg")]])
    whole = (tmp_path / plan_name(0)).read_bytes()
    (tmp_path / plan_name(0)).write_bytes(whole[:-9])
    with pytest.raises(DatasetError, match=r"units/000000\.parquet is damaged: ") as error:
        PlanFile(tmp_path, 0)
    assert "\n" not in str(error.value)


def test_units_are_listed_in_order(tmp_path):
    (tmp_path / "index").mkdir()
    for unit in (10, 2, 1_234_567, 0):
        (tmp_path / index_name(unit)).touch()
        write_plan(tmp_path, unit, [[]])
    (tmp_path / "index" / ".000003.parquet.part").touch()
    (tmp_path / "units" / ".000003.parquet.part").touch()
    assert done_units(tmp_path) == plans(tmp_path) == [0, 2, 10, 1_234_567]
    assert plan_name(2) == f"units/{unit_name(2)}.parquet" == "units/000002.parquet"
    assert done_units(tmp_path / "nowhere") == []
