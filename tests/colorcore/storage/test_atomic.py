import threading

import pytest

from colorcore.storage.atomic import replace_bytes


def test_parents_are_made_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.json"
    replace_bytes(path, b"one")
    replace_bytes(path, b"")
    assert path.read_bytes() == b""
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "dataset.json"
    replace_bytes(path, b"old")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        replace_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    versions = [bytes([i]) * 200_000 for i in range(2)]
    replace_bytes(path, versions[0])
    seen = []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        replace_bytes(path, versions[i % 2])
    stop.set()
    reader.join()
    assert seen
    assert set(seen) <= set(versions)
