"""Tars of photos as sources: photos come in order, and damage is reported by name."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.dataset.layout import ShardSettings
from colorcore.dataset.unit import SourcePhoto, write_unit
from colorcore.photos.refusal import PhotoRefused, Reason
from pipelines.sources.listing import list_photos
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, open_sources

BIG = 10**9


def tar_of(
    members: list[tuple[str, bytes]],
    format: int = tarfile.USTAR_FORMAT,  # noqa: A002
    **options: object,
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def as_img2dataset_writes(count: int) -> tuple[bytes, dict[str, bytes]]:
    """A tar of key.jpg, key.json and key.txt in turn, and the photos in it."""
    members, photos = [], {}
    for i in range(count):
        key = f"{i:09d}"
        photos[f"{key}.jpg"] = bytes([i]) * (100 + 517 * i)
        members += [
            (f"{key}.jpg", photos[f"{key}.jpg"]),
            (f"{key}.json", json.dumps({"key": key}).encode()),
            (f"{key}.txt", b"a caption"),
        ]
    return tar_of(members), photos


def read(path: Path, data: bytes | None = None, max_bytes: int = BIG) -> list[SourcePhoto]:
    if data is not None:
        path.write_bytes(data)
    sources = open_sources([path])
    return list(read_photos(sources, list(list_photos(sources, Counter())), max_bytes))


def good(photos: list[SourcePhoto]) -> dict[str, bytes]:
    return {p.source: p.content for p in photos if not isinstance(p.content, PhotoRefused)}


def bad(photos: list[SourcePhoto]) -> list[tuple[str, Reason, str]]:
    found = [(photo.source, photo.content) for photo in photos]
    return [(s, c.reason, c.detail) for s, c in found if isinstance(c, PhotoRefused)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000.tar"


# Whole


def test_the_photos_of_a_tar_come_in_its_order(path: Path) -> None:
    data, photos = as_img2dataset_writes(5)
    found = read(path, data)
    assert not bad(found)
    assert [(p.root, p.source) for p in found] == [(0, f"00000.tar#{name}") for name in photos]
    assert good(found) == {f"00000.tar#{name}": content for name, content in photos.items()}


def test_photos_and_tars_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b.tar").write_bytes(tar_of([("1.jpg", b"one"), ("2.png", b"two")]))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/D.TAR").write_bytes(tar_of([("x/3.WEBP", b"three")]))
    found = read(tmp_path)
    assert [(p.source, p.content) for p in found] == [
        ("a.jpg", b"a.jpg"),
        ("b.tar#1.jpg", b"one"),
        ("b.tar#2.png", b"two"),
        ("c.jpg", b"c.jpg"),
        ("in/D.TAR#x/3.WEBP", b"three"),
    ]
    again = [PlannedPhoto(0, b"c.jpg"), PlannedPhoto(0, b"b.tar"), PlannedPhoto(0, b"a.jpg")]
    found = list(read_photos(open_sources([tmp_path]), again, BIG))
    assert [p.content for p in found] == [b"c.jpg", b"one", b"two", b"a.jpg"]


def test_other_members_are_no_photos(path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (
            ("folder.jpg", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE), ("pipe.jpg", tarfile.FIFOTYPE),
            ("device.jpg", tarfile.CHRTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("readme", "a.json", ".jpg", "b.jpg.part", "real.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert [(p.source, p.content) for p in read(path, out.getvalue())] == [
        ("00000.tar#real.jpg", b"abc")
    ]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_names_in_any_script(path: Path, format: int) -> None:  # noqa: A002
    names = ["x" * 300 + ".jpg", "写真/ñ.jpg", "d/" * 120 + "a.png", "short.jpg"]
    found = read(path, tar_of([(name, name.encode()) for name in names], format))
    assert good(found) == {f"00000.tar#{name}": name.encode() for name in names}
    assert not bad(found)


def test_names_that_lead_elsewhere_or_are_no_text_are_names_alone(path: Path) -> None:
    raw = os.fsdecode(b"caf\xe9.jpg")
    names = ["../../up.jpg", "/abs.jpg", "a#b.jpg", raw]
    found = read(path, tar_of([(name, b"x") for name in names], tarfile.GNU_FORMAT))
    shown = ["../../up.jpg", "/abs.jpg", "a#b.jpg", r"caf\xe9.jpg"]
    assert [p.source for p in found] == [f"00000.tar#{name}" for name in shown]
    assert not bad(found)
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("blocks", [2, 3, 20, 2048])
def test_any_padding_of_zeros_is_an_end(path: Path, blocks: int) -> None:
    data = tar_of([("a.jpg", b"x" * 512)])[: 512 * 2] + bytes(512 * blocks)
    assert not bad(read(path, data))
    assert len(good(read(path, data))) == 1


def test_a_tar_of_nothing_has_no_photos(path: Path) -> None:
    assert read(path, bytes(10240)) == []
    assert read(path, tar_of([("a.txt", b"x")])) == []


def test_a_photo_that_is_too_large_is_refused_alone(path: Path) -> None:
    data = tar_of([("a.jpg", b"a" * 10), ("b.jpg", b"b" * 2000), ("c.jpg", b"c" * 11)])
    found = read(path, data, max_bytes=100)
    assert list(good(found)) == ["00000.tar#a.jpg", "00000.tar#c.jpg"]
    assert bad(found) == [
        ("00000.tar#b.jpg", Reason.TOO_LARGE, "2,000 bytes, expected at most 100")
    ]


# Damaged: every photo that is whole comes, and the tar is refused by name


def test_a_tar_that_is_cut_anywhere(path: Path) -> None:
    """Cut at every 100th byte: the photos before the cut are whole, followed by one refusal."""
    data, photos = as_img2dataset_writes(4)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        ends = {m.name: m.offset_data + m.size for m in tar if m.name.endswith(".jpg")}
        last = max(m.offset_data + 512 * -(-m.size // 512) for m in tar.getmembers())
    for cut in [*range(0, last, 100), *range(512, last + 1024, 512), last + 1023]:
        found = read(path, data[:cut])
        whole = {name for name, end in ends.items() if end <= cut}
        assert good(found) == {f"00000.tar#{name}": photos[name] for name in whole}, cut
        ((source, reason, detail),) = bad(found)
        assert found[-1].source == source == "00000.tar"
        assert reason is (Reason.TRUNCATED if whole else Reason.UNREADABLE) or cut >= 512
        assert reason in {Reason.TRUNCATED, Reason.UNREADABLE}
        assert detail
    assert not bad(read(path, data[: last + 1024]))


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", b"\xff" * 5000, b"PK\x03\x04" + bytes(9000)]
)
def test_what_is_no_tar(path: Path, data: bytes) -> None:
    ((source, reason, detail),) = bad(read(path, data))
    assert (source, reason) == ("00000.tar", Reason.UNREADABLE)
    assert "the tar is damaged after 0 photos: " in detail


def test_a_damaged_header_in_the_middle_is_no_end(path: Path) -> None:
    data = bytearray(tar_of([("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c")]))
    data[1024 + 5] ^= 1  # in the name of b.jpg: its checksum is wrong
    found = read(path, bytes(data))
    assert list(good(found)) == ["00000.tar#a.jpg"]
    assert bad(found) == [
        (
            "00000.tar",
            Reason.TRUNCATED,
            "the tar is damaged after 1 photos: expected its end or a header at byte 1,024",
        )
    ]


def test_tars_that_were_joined_as_files_are_said_to_go_on(path: Path) -> None:
    """`cat a.tar b.tar`: readers stop at the first end and would silently lose the second."""
    found = read(path, tar_of([("a.jpg", b"a")]) + tar_of([("b.jpg", b"b")]))
    assert list(good(found)) == ["00000.tar#a.jpg"]
    ((_, reason, _),) = bad(found)
    assert reason is Reason.TRUNCATED


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["a.jpg", "a.txt"])
@pytest.mark.parametrize("size", [10**6, 2**40, 2**80, -5, -5000])
def test_a_header_that_says_a_wrong_size(path: Path, name: str, size: int) -> None:
    """Skipping that many bytes read by read would take forever."""
    info = tarfile.TarInfo(name)
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    found = read(path, tar_of([("0.jpg", b"x")])[:1024] + header + bytes(20 * 512), max_bytes=1000)
    assert good(found) == {"00000.tar#0.jpg": b"x"}
    assert any(source == "00000.tar" for source, _, _ in bad(found))


SMALL = tar_of(
    [(f"{i}.jpg", bytes([i + 1]) * (300 * i + 10)) for i in range(3)], tarfile.PAX_FORMAT
)
WHOLE = {f"00000.tar#{i}.jpg": bytes([i + 1]) * (300 * i + 10) for i in range(3)}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5 * 512), st.integers(1, 255)), min_size=1, max_size=3),
    st.booleans(),
)
def test_no_damage_is_an_error_or_a_silent_loss(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], headers: bool
) -> None:
    """With flipped bytes either every photo comes or the tar is refused; nothing is raised."""
    data = bytearray(SMALL)
    for at, mask in flips:
        data[at % 512 if headers else at] ^= mask
    found = read(tmp_path_factory.mktemp("flip") / "00000.tar", bytes(data))
    assert len(good(found)) == 3 or bad(found)
    assert good(found).keys() <= WHOLE.keys()


def test_a_tar_that_is_gone_or_a_folder(tmp_path: Path) -> None:
    sources = open_sources([tmp_path])
    (tmp_path / "f.tar").mkdir()
    asked = [PlannedPhoto(0, name) for name in (b"gone.tar", b"f.tar", b"a\0.tar")]
    found = list(read_photos(sources, asked, BIG))
    assert bad(found) == [
        ("gone.tar", Reason.UNREADABLE, "No such file or directory"),
        ("f.tar", Reason.UNREADABLE, "Is a directory"),
        ("a\0.tar", Reason.UNREADABLE, "embedded null byte"),
    ]


@pytest.mark.timeout(120)
def test_a_pipe_named_like_a_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    ((source, reason, _),) = bad(read(tmp_path))
    assert (source, reason) == ("pipe.tar", Reason.UNREADABLE)


# As a unit


def test_a_tar_becomes_a_unit(scene, jpeg, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    members = [("1.jpg", jpeg(scene(1))), ("1.json", b"{}"), ("2.jpg", jpeg(scene(2)))]
    (tmp_path / "photos.tar").write_bytes(tar_of([*members, ("3.jpg", b"")]))
    found = read(tmp_path / "photos.tar")
    result = write_unit(tmp_path / "unit", 0, found, ShardSettings(size=32))
    assert result.photos == 3
    rows = pq.read_table(tmp_path / "unit/index/000000.parquet").to_pylist()
    assert [(row["key"], row["source"]) for row in rows] == [
        ("000000-00000", "photos.tar#1.jpg"),
        ("000000-00001", "photos.tar#2.jpg"),
    ]
    (refused,) = pq.read_table(tmp_path / "unit/rejected/000000.parquet").to_pylist()
    assert (refused["source"], refused["reason"]) == ("photos.tar#3.jpg", "empty")
