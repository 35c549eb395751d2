"""Small file systems for tests of full and read-only disks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A file system in memory at a folder, during the block; skips where none can be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    # Nobody but root may mount, and root in a container may not either.
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root, and a machine that lets it")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)
