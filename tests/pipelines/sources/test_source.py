"""Sources on the command line: what each location is, and local paths and URIs."""

from collections import Counter
from pathlib import Path

import pytest

from colorcore.storage.local import LocalStore
from colorcore.storage.store import StorageError
from pipelines.errors import JobError, WrongCallError
from pipelines.sources.listing import list_photos
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, Source, local_path, open_sources
from tests.pipelines.sources.files import BIG, make


def test_sources_are_checked(tmp_path):
    make(tmp_path, "a.jpg", "b.CSV", "c.tar")
    given = [str(tmp_path), str(tmp_path / "a.jpg"), tmp_path / "b.CSV", str(tmp_path / "c.tar")]
    here = LocalStore(tmp_path)
    assert open_sources(given) == [
        Source(str(tmp_path), "folder", here),
        Source(str(tmp_path / "a.jpg"), "file", here, "a.jpg"),
        Source(str(tmp_path / "b.CSV"), "list", here, "b.CSV"),
        Source(str(tmp_path / "c.tar"), "file", here, "c.tar"),
    ]
    missing = str(tmp_path / "b")
    with pytest.raises(WrongCallError, match="expected a folder of photos, a photo, a list") as e:
        open_sources([*given, missing])
    assert f"found nothing at {missing}" in str(e.value)
    assert isinstance(e.value, JobError)


def test_absolute_sources_outlive_a_change_of_folder(tmp_path, monkeypatch):
    make(tmp_path / "photos", "a.jpg")
    monkeypatch.chdir(tmp_path)
    (source,) = open_sources(["photos"])
    assert source.location == "photos"
    absolute = source.absolute()
    monkeypatch.chdir("/")
    (read,) = read_photos([absolute], [PlannedPhoto(0, b"a.jpg")], BIG)
    assert read.data() == b"x"
    assert (absolute.location, absolute.kind) == ("photos", "folder")


def test_other_uris_are_no_local_path():
    """Some options must be local, such as --out of cc colorize."""
    uri = "s3://bucket/photos?endpoint_override=localhost:1&scheme=http"
    with pytest.raises(WrongCallError) as error:
        local_path(uri, "OUT")
    assert f"for OUT, got {uri}" in str(error.value)
    assert "copy it here first" in str(error.value)


@pytest.mark.parametrize("uri", ["https://host/a.jpg", "what://b/p"])
def test_uris_that_nothing_opens(uri: str):
    with pytest.raises(StorageError, match="cannot open") as error:
        open_sources([uri])
    assert uri.partition("://")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_file_uris_are_local(tmp_path):
    make(tmp_path, "a b/ü.jpg")
    assert local_path("file:///a/b.jpg", "SOURCE") == Path("/a/b.jpg")
    uri = (tmp_path / "a b").as_uri()
    assert " " not in uri
    assert open_sources([uri]) == [Source(uri, "folder", LocalStore(tmp_path / "a b"))]
    assert [photo.source for photo in list_photos(open_sources([uri]), Counter())] == ["ü.jpg"]


@pytest.mark.parametrize("path", ["photos", "/a/b", "./c:/d", "100%20x", "a:b", "~x"])
def test_paths_are_taken_as_they_are(path: str):
    assert local_path(path, "DATASET") == Path(path)
