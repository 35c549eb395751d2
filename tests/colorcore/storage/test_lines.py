from __future__ import annotations

from pathlib import Path

import pytest

from colorcore.storage.lines import cut_unfinished_line


@pytest.mark.parametrize(
    ("there", "left"),
    [
        (b"", b""),
        (b"one\ntwo\n", b"one\ntwo\n"),
        (b"one\ntw", b"one\n"),
        (b"on", b""),
        (b"one\n" + b"x" * 200_000, b"one\n"),  # longer than what is read at a time
        (b"x" * 200_000, b""),
        (b"x" * 200_000 + b"\n", b"x" * 200_000 + b"\n"),
    ],
)
def test_an_unfinished_line_is_cut_off(there: bytes, left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(there)
    cut_unfinished_line(path)
    assert path.read_bytes() == left


def test_a_missing_file_stays_missing(tmp_path: Path) -> None:
    cut_unfinished_line(tmp_path / "lines")
    assert not (tmp_path / "lines").exists()
