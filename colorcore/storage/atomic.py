"""Writing files so that a reader sees the old content or the new content, never a part."""

from __future__ import annotations

from pathlib import Path


def replace_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary file in the same folder, then rename it; creates parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)
