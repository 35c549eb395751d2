"""Lists of photos as sources (text, CSV, Parquet), and what their rows may name."""

from __future__ import annotations

import csv
import io
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.main import main
from colorcore.photos.refusal import PhotoRefused, Reason
from pipelines.errors import WrongCallError
from pipelines.sources.listing import list_photos
from pipelines.sources.lists import LIST_COLUMNS, check_lists, listed_photos
from pipelines.sources.reading import read_photos
from pipelines.sources.source import Source, open_sources

BIG = 10**9


def rows(path: Path) -> list[str]:
    """The rows of a list as they are planned."""
    found = list(list_photos(open_sources([path]), Counter()))
    assert {photo.root for photo in found} <= {0}
    return [os.fsdecode(photo.path) for photo in found]


def contents(path: Path) -> list[bytes | PhotoRefused]:
    sources = open_sources([path])
    photos = list(list_photos(sources, Counter()))
    return [read.content for read in read_photos(sources, photos, BIG)]


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# Text


def test_a_text_list(tmp_path: Path) -> None:
    lines = "b.jpg\n\n  a b/ñ.png  \r\n/abs/c.jpg\nb.jpg\n\t\nfolder/d.TAR"
    path = write(tmp_path / "photos.txt", lines)
    assert rows(path) == ["b.jpg", "a b/ñ.png", "/abs/c.jpg", "b.jpg", "folder/d.TAR"]


@pytest.mark.parametrize("name", ["l.txt", "l.TXT"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, name: str) -> None:
    assert rows(write(tmp_path / name, b"\xef\xbb\xbfa.jpg\nb.jpg\n")) == ["a.jpg", "b.jpg"]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write(tmp_path / name, b"photo")
    for suffix, head in (("txt", b""), ("csv", b"path\n")):
        path = write(tmp_path / f"l.{suffix}", head + b"caf\xe9.jpg\n")
        assert rows(path) == [name]
        assert contents(path) == [b"photo"]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_an_empty_list(tmp_path: Path, data: bytes, suffix: str) -> None:
    assert rows(write(tmp_path / f"l.{suffix}", data)) == []


# CSV


@pytest.mark.parametrize("name", [*LIST_COLUMNS, "PATH", "Image"])
def test_a_csv_list_by_the_name_of_its_column(tmp_path: Path, name: str) -> None:
    text = f'key,{name},caption\n1,a.jpg,one\n2,"b, c.jpg","a ""quoted""\nline"\n'
    text += "3,,none\n4\n5, d.jpg ,x\n"
    assert rows(write(tmp_path / "l.csv", text)) == ["a.jpg", "b, c.jpg", "d.jpg"]


def test_of_several_names_the_first_of_the_list_of_names_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "url,filename,path\nhttp://x/y.jpg,b.jpg,a.jpg\n")
    assert rows(path) == ["a.jpg"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("anything\na.jpg\nb\n", ["a.jpg", "b"]),
        ("a.jpg\nb.jpg\n", ["a.jpg", "b.jpg"]),
        ("A.JPG\nb.jpg\n", ["A.JPG", "b.jpg"]),
        ("a.tar\nb.tar\n", ["a.tar", "b.tar"]),
        ("folder/a\nfolder/b\n", ["folder/a", "folder/b"]),
        ("s3://bucket/a.jpg?region=x\ns3://bucket/b.jpg\n",
         ["s3://bucket/a.jpg?region=x", "s3://bucket/b.jpg"]),
        ("\n\npath\n\na.jpg\n", ["a.jpg"]),
        ("\ufeffpath\na.jpg\n", ["a.jpg"]),
        ("\ufeffpath,x\na.jpg,1\n", ["a.jpg"]),
        ("path\r\na.jpg\r\n", ["a.jpg"]),
    ],
)  # fmt: skip
def test_csv_files_with_one_column_or_odd_beginnings(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    assert rows(write(tmp_path / "l.csv", text)) == expected


def is_no_location(name: str) -> bool:
    """Whether a row names a file next to the list; one of an unknown scheme is refused."""
    return "://" not in name


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1).filter(
    is_no_location
)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(0, 2))
def test_what_python_writes_as_csv_comes_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], column: int
) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["x", "path", "z"][column - 1 :] + ["x", "path", "z"][: column - 1])
    place = (1 - (column - 1)) % 3
    for name in names:
        row = ["1", "2", "3"]
        row[place] = name
        writer.writerow(row)
    path = tmp_path_factory.mktemp("csv") / "l.csv"
    assert rows(write(path, out.getvalue())) == names


# Delimiters, encodings

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "id,path,label\n1,a.jpg,x;y\n2,写真 ñ.jpg,z\n"),
        ("l.csv", "id;path;label\n1;a.jpg;x,y\n2;写真 ñ.jpg;z\n"),
        ("l.csv", "id\tpath\n1\ta.jpg\n2\t写真 ñ.jpg\n"),
        ("l.tsv", "id\tpath\r\n1\ta.jpg\r\n2\t写真 ñ.jpg\r\n"),
        ("l.csv", '"id";"Path"\n"1";"a.jpg"\n"2";"写真 ñ.jpg"\n'),
        ("l.csv", "1;a.jpg;x\n2;写真 ñ.jpg;y\n"),
        ("l.csv", "a.jpg,0\n写真 ñ.jpg,1\n"),
        ("l.txt", "a.jpg\n写真 ñ.jpg\n"),
        ("l.txt", "path\tlabel\na.jpg\t1\n写真 ñ.jpg\t2\n"),
    ],
)
def test_lists_as_people_write_them(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    path = write(tmp_path / name, text.encode(encoding))
    assert rows(path) == ["a.jpg", "写真 ñ.jpg"]


def test_delimiters_within_names(tmp_path: Path) -> None:
    for text in ("path\na;1.jpg\nb;2.jpg\n", "path\na.jpg\nb;2.jpg\nc,3.jpg\n"):
        assert rows(write(tmp_path / "l.csv", text)) == text.split()[1:]


def test_names_with_nuls_between_them_are_not_utf16(tmp_path: Path) -> None:
    """As ``find -print0`` writes them: one row that no file can have, not another encoding."""
    path = write(tmp_path / "l.txt", b"00001.jpg\x0000002.jpg\x00")
    assert rows(path) == ["00001.jpg\x0000002.jpg\x00"]


NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
    .map(str.strip)
    .filter(bool)
    .filter(is_no_location),
    max_size=30,
)
DIALECTS = st.sampled_from(
    [
        {"delimiter": delimiter, "quoting": quoting, "lineterminator": end}
        for delimiter in ",;\t"
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)
        for end in ("\n", "\r\n")
    ]
)


@settings(max_examples=200, deadline=None)
@given(NAMES, NAMES, DIALECTS, st.sampled_from(ENCODINGS), st.integers(0, 3))
def test_what_python_writes_in_any_dialect_and_encoding_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    captions: list[str],
    dialect: dict[str, object],
    encoding: str,
    place: int,
) -> None:
    """With a header; ``place`` is the column of the names among three, or there is only one."""
    out = io.StringIO()
    writer = csv.writer(out, **dialect)  # type: ignore[arg-type]
    header = ["id", "path", "caption"] if place < 3 else ["path"]
    order = sorted(range(len(header)), key=lambda column: (column - place) % len(header))
    writer.writerow([header[column] for column in order])
    for number, name in enumerate(names):
        caption = captions[number % len(captions)] if captions else ""
        row = [str(number), name, f"{caption}\n{caption}"] if place < 3 else [name]
        writer.writerow([row[column] for column in order])
    path = tmp_path_factory.mktemp("csv") / "l.csv"
    assert rows(write(path, out.getvalue().encode(encoding))) == names


def test_a_long_csv_list_is_read_as_it_is_needed(tmp_path: Path) -> None:
    write(tmp_path / "l.csv", "id;path\n" + "".join(f"{i};{i}.jpg\n" for i in range(200_000)))
    (source,) = open_sources([tmp_path / "l.csv"])
    some = listed_photos(source)
    assert [next(some), next(some)] == ["0.jpg", "1.jpg"]
    tracemalloc.start()
    assert sum(1 for _ in some) == 199_998
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


# Rows without a file


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "a,path\n1,x.jpg\n", "1 files that it names; the columns are a, path, and"),
        ("l.csv", "a|path\n1|x.jpg\n", "1 files that it names; the columns are a|path, and"),
        ("l.txt", "x.jpg\ny.jpg\n", "2 files that it names; each line is one path, and"),
        ("l.txt", "x.jpg\n" * 1001, "first 1,000 files that it names"),
        ("l.txt", "x" * 5000, "1 files that it names"),
        ("l.txt", "x\x00.jpg", "1 files that it names"),
    ],
)
def test_a_list_without_any_existing_file(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(WrongCallError) as error:
        check_lists(open_sources([tmp_path, path]))
    message = str(error.value)
    assert message.startswith(f"expected a list of photos in {path}, found none of the ")
    assert said in message
    assert "the first row is " in message
    assert f"looked for at {tmp_path}/" in message
    assert "\n" not in message


@pytest.mark.parametrize("words", [["colorize", "no-model"], ["shard", "--dry-run=3"], ["inspect"]])
def test_commands_refuse_such_a_list_before_they_read(
    words: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "l.csv").write_text("id,path\n1,x.jpg\n2,y.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert main(["cc", *words, "l.csv"]) == 2
    assert "found none of the 2 files that it names; the columns are id" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["l.csv"]


def test_a_list_with_one_existing_file_passes(tmp_path: Path) -> None:
    write(tmp_path / "b.jpg", b"photo")
    path = write(tmp_path / "l.txt", "".join(f"{i}.jpg\n" for i in range(900)) + "b.jpg\n")
    check_lists(open_sources([path, write(tmp_path / "empty.txt", "")]))


def test_rows_without_a_path_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "id,path\n1,a.jpg\n2,\n\n3\n,\n")
    pq.write_table(pa.table({"path": ["a.jpg", None, ""]}), tmp_path / "l.parquet")
    for place in (path, tmp_path / "l.parquet"):
        ignored: Counter[str] = Counter()
        assert len(list(list_photos(open_sources([place]), ignored))) == 1
        assert ignored == {"(rows without a path)": 2}


# Parquet


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["path", "URL", "anything"])
def test_a_parquet_list(tmp_path: Path, kind: pa.DataType, name: str) -> None:
    values = ["b.jpg", "", None, "é/a.jpg", "b.jpg"]
    coded = [v.encode() if v is not None and "binary" in str(kind) else v for v in values]
    columns = {name: pa.array(coded, kind)}
    if name != "anything":
        columns = {"key": pa.array(range(5)), **columns, "caption": pa.array(["x"] * 5)}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    assert rows(tmp_path / "l.parquet") == ["b.jpg", "é/a.jpg", "b.jpg"]


def test_bytes_in_a_parquet_list_need_be_no_text(tmp_path: Path) -> None:
    table = pa.table({"path": pa.array([b"caf\xe9.jpg"], pa.binary())})
    pq.write_table(table, tmp_path / "l.parquet")
    write(tmp_path / os.fsdecode(b"caf\xe9.jpg"), b"photo")
    assert contents(tmp_path / "l.parquet") == [b"photo"]


def test_a_long_parquet_list_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(20_000)]
    pq.write_table(pa.table({"path": names}), tmp_path / "l.parquet", row_group_size=3_000)
    assert rows(tmp_path / "l.parquet") == names
    (source,) = open_sources([tmp_path / "l.parquet"])
    some = listed_photos(source)
    assert [next(some), next(some)] == names[:2]
    some.close()


# Entries


def test_entries_are_relative_to_the_list_or_absolute_or_uris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lists/a.jpg", "lists/in/b.jpg", "c.jpg", "d e/é%41.jpg", "e.jpg"):
        write(tmp_path / name, name.encode())
    entries = [
        "a.jpg", "in/b.jpg", "../c.jpg", "./a.jpg",
        str(tmp_path / "c.jpg"),
        (tmp_path / "d e/é%41.jpg").as_uri(),
        (tmp_path / "e.jpg").as_uri(),
        "gone.jpg",
    ]  # fmt: skip
    path = write(tmp_path / "lists" / "l.txt", "\n".join(entries))
    monkeypatch.chdir("/")
    *read, gone = contents(path)
    assert read == [
        b"lists/a.jpg", b"lists/in/b.jpg", b"c.jpg", b"lists/a.jpg", b"c.jpg",
        "d e/é%41.jpg".encode(), b"e.jpg",
    ]  # fmt: skip
    assert isinstance(gone, PhotoRefused)
    assert (gone.reason, gone.detail) == (Reason.UNREADABLE, "no such file")


def test_a_list_beside_its_photos_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jpg", b"photo")
    write(tmp_path / "l.txt", "a.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert contents(Path("l.txt")) == [b"photo"]
    sources = [source.absolute() for source in open_sources(["l.txt"])]
    monkeypatch.chdir("/")
    photos = list(list_photos(sources, Counter()))
    assert [read.content for read in read_photos(sources, photos, BIG)] == [b"photo"]


def test_where_entries_are_is_shown_whole(tmp_path: Path) -> None:
    write(tmp_path / "l.txt", "in/a.jpg\n/abs/b.jpg\n")
    (source,) = open_sources([tmp_path / "l.txt"])
    places = [source.show(photo) for photo in list_photos([source], Counter())]
    assert places == [str(tmp_path / "in/a.jpg"), "/abs/b.jpg"]


def test_lists_inside_folders_are_no_sources(tmp_path: Path) -> None:
    """Lists are read only when they are named as a source."""
    write(tmp_path / "l.txt", "a.jpg\n")
    write(tmp_path / "a.jpg", b"x")
    ignored: Counter[str] = Counter()
    found = list(list_photos(open_sources([tmp_path]), ignored))
    assert [photo.path for photo in found] == [b"a.jpg"]
    assert ignored == {".txt": 1}


# What is refused


def test_no_column_of_photos(tmp_path: Path) -> None:
    write(tmp_path / "l.csv", "a,b\n1,2\n")
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "l.parquet")
    for name in ("l.csv", "l.parquet"):
        with pytest.raises(WrongCallError, match="expected a column of photos in") as error:
            rows(tmp_path / name)
        message = str(error.value)
        assert str(tmp_path / name) in message
        assert f"found a, b; name it one of {', '.join(LIST_COLUMNS)}" in message
        assert "\n" not in message


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_a_damaged_parquet_list(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"path": [f"{i}.jpg" for i in range(100)]}), path)
    data = path.read_bytes()
    path.write_bytes({"text": b"a.jpg\nb.jpg\n", "cut": data[:-20], "empty": b""}[damage])
    with pytest.raises(WrongCallError, match=r"the list .*l\.parquet cannot be read: .+") as error:
        rows(path)
    assert "\n" not in str(error.value)


def test_a_parquet_list_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "l.parquet"
    table = pa.table({"path": [f"{i * 7919 % 10_007}.jpg" for i in range(5000)]})
    pq.write_table(table, path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(WrongCallError, match="cannot be read: "):
        rows(path)


def test_a_csv_list_with_an_endless_field(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", 'path,x\n"' + "a" * 200_000)
    with pytest.raises(WrongCallError, match=r"the list .*l\.csv cannot be read: field larger"):
        rows(path)


def test_a_list_that_goes_away(tmp_path: Path) -> None:
    path = write(tmp_path / "l.txt", "a.jpg\n")
    sources: list[Source] = open_sources([path])
    path.unlink()
    with pytest.raises(WrongCallError, match=r"cannot be read: .*No such file"):
        list(list_photos(sources, Counter()))
