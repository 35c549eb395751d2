"""`cc inspect` of photos in folders, tars and buckets, before they are sharded."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from cli.main import main
from colorcore.dataset.layout import ShardSettings
from pipelines.errors import JobError, WrongCallError
from pipelines.inference import inspect_photos as module
from pipelines.inference.inspect_photos import (
    are_photos,
    inspect_photos,
    side_class,
    side_classes,
)
from pipelines.sharding.preview import dry_run
from tests.colorcore.photos.photo_files import encode
from tests.conftest import PhotoFolder, jpeg, scene
from tests.servers.s3 import S3


def tar(path: Path, photos: dict[str, bytes]) -> Path:
    """A tar as img2dataset writes it: each photo next to its facts and its caption."""
    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False) as writer:
        for name, data in photos.items():
            key, _, suffix = name.rpartition(".")
            writer.write({"__key__": key, suffix: data, "json": b"{}", "txt": b"words"})
    return path


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of ten photos, the last of which is cut; no two photos are equal."""
    top = tmp_path_factory.mktemp("tars")
    for number in range(3):
        photos = {f"{i:05d}.jpg": jpeg(scene(i)) for i in range(10 * number, 10 * number + 10)}
        tar(top / f"photos-{number}.tar", photos)
    path = top / "photos-2.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return top


# Counts


def test_the_photos_of_a_folder(photo_folder: PhotoFolder) -> None:
    found = inspect_photos([str(photo_folder.path)])
    files = [photo_folder.path / name for name in (*photo_folder.kept, *photo_folder.refused)]
    assert found.photos == len(files)
    assert found.bytes == sum(path.stat().st_size for path in files if path.exists())
    assert found.others == Counter(photo_folder.ignored)
    assert (found.tars, found.damaged) == (0, {})
    assert found.unreadable == 3  # empty, no photo, a link to nowhere
    sizes = {}
    for path in files:
        try:
            with Image.open(path) as opened:
                sizes[path] = min(opened.size)
        except OSError:
            continue
    assert found.formats == {"JPEG": len(sizes)}
    assert found.sides == Counter(side_class(side) for side in sizes.values())


def test_the_verdicts_are_those_of_a_dry_run(photo_folder: PhotoFolder) -> None:
    """With the default settings of `cc shard`; a dry run of all photos is checked elsewhere."""
    found = inspect_photos([str(photo_folder.path)])
    seen = dry_run([photo_folder.path], ShardSettings(), 1000)
    assert (found.preview.photos, found.preview.kept) == (seen.photos, seen.kept)
    assert found.preview.refused == seen.refused
    assert found.preview.colorfulness == seen.colorfulness
    assert found.kept == seen.kept


def test_the_photos_of_tars(tars: Path) -> None:
    found = inspect_photos([str(tars / "photos-{0..1}.tar")])
    assert (found.photos, found.tars, found.damaged) == (20, 2, {})
    assert found.others == {".json": 20, ".txt": 20}
    assert found.bytes == sum(len(jpeg(scene(number))) for number in range(20))
    assert found.preview.kept == 20


def test_a_damaged_tar_is_named_and_its_whole_photos_count(tars: Path) -> None:
    found = inspect_photos([str(tars)])
    assert found.tars == 3
    assert 20 < found.photos < 30
    ((name, detail),) = found.damaged.items()
    assert name == str(tars / "photos-2.tar")
    assert detail.startswith(f"the tar is damaged after {found.photos - 20} photos: ")


def test_formats_are_told_by_content(tmp_path: Path) -> None:
    photos = {kind: encode(kind, scene(1)) for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF")}
    tar(tmp_path / "a.tar", {f"{kind}.jpg": data for kind, data in photos.items()})
    found = inspect_photos([str(tmp_path / "a.tar")])
    assert found.formats == dict.fromkeys(photos, 1)
    assert found.sides == {"64 to 255": 5}


def test_sides_are_counted_in_classes() -> None:
    assert side_classes() == [
        "below 64", "64 to 255", "256 to 511", "512 to 1023", "1024 to 2047", "from 2048"
    ]  # fmt: skip
    for side, name in [(1, 0), (63, 0), (64, 1), (255, 1), (256, 2), (2047, 4), (2048, 5)]:
        assert side_class(side) == side_classes()[name]


def test_tars_in_a_bucket(tars: Path, s3_server: S3) -> None:
    bucket = s3_server.make_bucket("inspect")
    s3_server.put_folder(bucket, "in", tars)
    here = inspect_photos([str(tars)])
    for place in ("in", "in/photos-{0..2}.tar"):
        there = inspect_photos([s3_server.uri(bucket, place)])
        assert (there.photos, there.bytes, there.tars) == (here.photos, here.bytes, 3)
        assert list(there.damaged) == [s3_server.uri(bucket, "in/photos-2.tar")]
        assert there.preview.refused == here.preview.refused


# The sample


def test_each_photo_has_the_same_chance_and_few_are_judged(monkeypatch) -> None:
    """A photo enters with probability n/m; the expected number of judgements is n·(1 + ln(m/n))."""
    judged: list[int] = []
    monkeypatch.setattr(module, "judge", lambda photo, *_: judged.append(photo) or photo)
    counts: Counter[int] = Counter()
    rounds, photos, count = 3000, 20, 5
    for seed in range(rounds):
        sample = module._Sample(count, ShardSettings(), seed)
        for photo in range(photos):
            sample.offer(photo)  # type: ignore[arg-type]
        assert len(set(sample._verdicts)) == count
        counts.update(sample._verdicts)  # type: ignore[arg-type]
    share = np.array([counts[photo] for photo in range(photos)]) / rounds
    expected = count / photos
    assert np.abs(share - expected).max() < 5 * math.sqrt(expected * (1 - expected) / rounds)
    harmonic = sum(count / n for n in range(count + 1, photos + 1))
    assert len(judged) / rounds == pytest.approx(count + harmonic, rel=0.05)


def test_a_sample_projects_to_all(photo_folder: PhotoFolder, tmp_path: Path) -> None:
    found = inspect_photos([str(photo_folder.path)], sample=12, picture=tmp_path / "sheet.png")
    assert found.preview.photos == 12
    assert found.kept == round(found.photos * found.preview.kept / 12)
    again = inspect_photos([str(photo_folder.path)], sample=12)
    assert again.preview.kept_tiles == found.preview.kept_tiles
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 1000


# What has no photos


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "found none: it is empty; check the sources"),
        (
            {"a.npy": b"x"},
            "found none: skipped 1 .json, 1 .npy, 1 .txt; check the sources",
        ),
    ],
)
def test_a_tar_without_photos(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(JobError) as refused:
        inspect_photos([str(path)])
    assert str(refused.value) == f"expected photos in {path}, {said}"


@pytest.mark.parametrize("data", [b"", b"<html>404</html>" * 100])
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(JobError, match=r"found .*a\.tar: the tar is damaged after 0 photos: .*; c"):
        inspect_photos([str(tmp_path / "a.tar")])


def test_names_in_any_script(tmp_path: Path) -> None:
    tar(tmp_path / "Été 写真 a b.tar", {"naïve ñ/a b.jpg": jpeg(scene(1))})
    found = inspect_photos([str(tmp_path / "Été 写真 a b.tar")])
    assert [tile.name for tile in found.preview.kept_tiles] == ["a b.jpg"]


# The command


def test_what_is_taken_for_photos(
    tars: Path, dataset: Path, tmp_path: Path, photo_folder: PhotoFolder
) -> None:
    for name in ("x.pth.tar", "old.pt", "list.txt", "model/best/checkpoint.json", "model/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    photos = [
        tars,
        tars / "photos-0.tar",
        tars / "photos-{0..1}.tar",
        tmp_path / "list.txt",
        tmp_path / "gone.tar",
        photo_folder.path,
        photo_folder.path / "LOUD.JPG",
    ]
    assert [path for path in photos if not are_photos(str(path))] == []
    others = [dataset, tmp_path / "model", tmp_path / "x.pth.tar", tmp_path / "old.pt",
              tmp_path / "empty", tmp_path / "gone", "runs:/abc/model"]  # fmt: skip
    assert [path for path in others if are_photos(str(path))] == []


def test_the_command_shows_photos(tars: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names = [str(tars / f"photos-{number}.tar") for number in range(3)]
    assert main(["cc", "inspect", *names, "--sample", "8"]) == 0
    shown = capsys.readouterr()
    assert f"{names[2]}: the tar is damaged after" in shown.err
    assert "cc shard, of 8 random photos" in shown.out
    (others,) = [line for line in shown.out.splitlines() if line.startswith("other files ")]
    assert {word.strip(",") for word in others.split()} >= {".json", ".txt"}
    assert "photos, about" in shown.out
    assert "contact sheet: contact-sheet.png" in shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["contact-sheet.png"]
    assert main(["cc", "inspect", str(tars), "--json", "--picture", "mine.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["would_be_kept"] == found["judged"] == found["photos"] > 20
    assert list(found["damaged"]) == [names[2]]
    assert found["other_files"] == {".json": found["photos"], ".txt": found["photos"]}
    assert found["picture"] == "mine.png"


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["{tars}", "{dataset}"], "or photos, got 2 places, of which {dataset} holds no photos"),
        (["{tars}/photos-7.tar"], "found nothing at {tars}/photos-7.tar"),
        (["{tars}/photos-{0..5}.tar"], "the 6 files of {tars}/photos-{0..5}.tar, found 3; missing"),
        (["{tars}/nothing"], "expected a checkpoint folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    places: list[str], said: str, tars: Path, dataset: Path, capsys
) -> None:
    def fill(text: str) -> str:
        return text.replace("{tars}", str(tars)).replace("{dataset}", str(dataset))

    assert main(["cc", "inspect", "--no-picture", *map(fill, places)]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert fill(said) in line


def test_missing_sources_are_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(WrongCallError):
        inspect_photos([str(tmp_path / "gone.tar")])
