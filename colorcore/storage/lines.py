"""Files of lines that processes append to, any of which may be killed in the middle of a line."""

from __future__ import annotations

import os
from pathlib import Path

_PIECE = 1 << 16


def cut_unfinished_line(path: Path) -> None:
    """Cut off whatever follows the last newline; a file that does not exist stays that way.

    Call this before appending, or the next line continues the unfinished one.

    Raises:
        OSError: the file cannot be changed.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _PIECE)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
