"""The journal of a study in an object store, on a real S3 server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import tune.search.journal
from colorcore.storage.location import open_store
from colorcore.storage.locks import WRITER, BusyError
from colorcore.storage.store import Store
from tests.servers.s3 import S3
from tune.search.journal import JOURNAL, MOST_PIECES, open_journal


@pytest.fixture
def out(s3_server: S3, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(tune.search.journal, "UPLOAD_S", 0.2)
    name = f"journal-{abs(hash(request.node.name)) % 10**8}"
    return open_store(s3_server.uri(s3_server.make_bucket(name), "study"))


def append(file: Path, *lines: str) -> None:
    with file.open("ab") as journal:
        journal.write("".join(f"{line}\n" for line in lines).encode())


def uploaded(out: Store) -> str:
    return b"".join(out.read(f"{JOURNAL}/{name}") for name in sorted(out.names(JOURNAL))).decode()


def wait_for(text: str, out: Store) -> None:
    end = time.monotonic() + 20
    while uploaded(out) != text:
        assert time.monotonic() < end, uploaded(out)
        time.sleep(0.05)


@pytest.mark.slow
def test_what_is_appended_is_uploaded_soon_and_read_back(out: Store) -> None:
    with open_journal(out) as journal:
        append(journal.file, "one", "two")
        wait_for("one\ntwo\n", out)
        append(journal.file, "three")
        journal.flush()
        assert uploaded(out) == "one\ntwo\nthree\n"
        with journal.file.open("ab") as file:
            file.write(b"unfinish")  # the process is killed here
    assert not out.exists(WRITER)
    with open_journal(out) as journal:
        assert journal.file.read_text() == "one\ntwo\nthree\n"
        append(journal.file, "four")
    assert uploaded(out) == "one\ntwo\nthree\nfour\n"


@pytest.mark.slow
def test_many_pieces_become_one(out: Store) -> None:
    lines = [f"line {number}" for number in range(MOST_PIECES + 5)]
    with open_journal(out) as journal:
        for line in lines:
            append(journal.file, line)
            journal.flush()
    text = "".join(f"{line}\n" for line in lines)
    first, *others = sorted(out.names(JOURNAL))
    assert len(others) >= MOST_PIECES
    kept = {name: out.read(f"{JOURNAL}/{name}") for name in others}
    with open_journal(out) as journal:
        assert journal.file.read_text() == text
    assert out.names(JOURNAL) == [first]
    # As after a kill before the others were removed.
    for name, data in kept.items():
        out.write(f"{JOURNAL}/{name}", data)
    with open_journal(out) as journal:
        assert journal.file.read_text() == text


def test_a_study_that_was_taken_over_writes_no_more(out: Store) -> None:
    def runs() -> None:
        with open_journal(out) as journal:
            append(journal.file, "mine")
            journal.flush()
            out.write(WRITER, json.dumps({"owner": "another"}).encode())
            append(journal.file, "too late")
            journal.flush()

    with pytest.raises(BusyError, match="another process is writing to"):
        runs()
    assert uploaded(out) == "mine\n"
    assert json.loads(out.read(WRITER)) == {"owner": "another"}


def test_a_local_study_has_one_writer(tmp_path: Path) -> None:
    store = open_store(tmp_path / "study")
    with open_journal(store) as journal:
        assert journal.file == tmp_path / "study" / JOURNAL
        journal.flush()
        with pytest.raises(BusyError, match=r"cc tune \(process .*\) is writing to .*study; wait"):
            open_journal(store).__enter__()
    with open_journal(store):
        pass
