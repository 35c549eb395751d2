"""A dataset is refused where its files could replace photos of a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from colorcore.storage.location import open_store
from pipelines.errors import WrongCallError
from pipelines.sources.overlap import refuse_overlap
from pipelines.sources.source import Source, open_sources
from tests.pipelines.sources.files import make


@pytest.fixture
def top(tmp_path: Path) -> Path:
    make(tmp_path, "photos/a.jpg", "photos/sub/b.jpg", "photos/00000.tar", "photos/00001.tar")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/new").mkdir()
    (tmp_path / "other").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "dataset"),
    [
        ("photos", "photos"),
        ("link", "photos"),
        ("photos", "link"),
        ("photos/sub", "photos"),
        ("link/sub", "photos"),
        ("photos", "."),
        ("photos/a.jpg", "photos"),
        ("photos/00000.tar", "link"),
        ("photos/{00000..00001}.tar", "photos"),
        ("photos/{00000..00001}.tar", "photos/../link/."),
    ],
)
def test_a_source_in_the_dataset(top: Path, source: str, dataset: str) -> None:
    with pytest.raises(WrongCallError, match="expected a dataset outside") as error:
        refuse_overlap(open_sources([f"{top}/{source}"]), open_store(top / dataset))
    assert f"{top}/{source}" in str(error.value)
    assert str(top / dataset) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "dataset"),
    [
        ("photos", "photos/new"),
        ("photos", "photos/not-yet"),
        ("photos", "photos2"),
        ("photos", "other"),
        ("photos/sub", "photos/new"),
        ("photos/{00000..00001}.tar", "photos/new"),
    ],
)
def test_a_dataset_beside_or_inside_its_source(top: Path, source: str, dataset: str) -> None:
    refuse_overlap(open_sources([f"{top}/{source}"]), open_store(top / dataset))


@pytest.mark.parametrize("target", ["photos", "photos/sub", "."])
def test_a_folder_of_the_dataset_that_leads_to_photos(top: Path, target: str) -> None:
    (top / "other/train").symlink_to(top / target)
    with pytest.raises(WrongCallError, match=r"found the source .*photos in .*other/train; choose"):
        refuse_overlap(open_sources([top / "photos"]), open_store(top / "other"))


def test_a_folder_of_the_dataset_on_another_disk(top: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (top / "other/train").symlink_to(tmp_path / "disk")
    refuse_overlap(open_sources([top / "photos"]), open_store(top / "other"))


@pytest.mark.parametrize(
    ("source", "dataset", "refused"),
    [
        ("s3://b/photos", "s3://b/photos", True),
        ("s3://b/photos/2026", "s3://b/photos", True),
        ("s3://b/photos", "s3://b/photos/data", False),
        ("s3://b/photos", "s3://b/photos2", False),
        ("s3://b/photos2", "s3://b/photos", False),
    ],
)
def test_prefixes_of_a_bucket(source: str, dataset: str, refused: bool) -> None:
    sources = [Source(source, "folder", open_store(source))]
    if not refused:
        refuse_overlap(sources, open_store(dataset))
        return
    with pytest.raises(WrongCallError, match="choose another folder"):
        refuse_overlap(sources, open_store(dataset))
