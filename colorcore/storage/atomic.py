"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def replace_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary name beside ``path``, then rename; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)
