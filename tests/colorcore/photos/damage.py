"""Files with damage of every kind, for tests that try hundreds of them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

HUNDREDS = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
"""The same examples every time; a file is a large one."""


@st.composite
def damaged(draw: st.DrawFn, files: dict[str, bytes]) -> bytes:
    """One of the files, with changed bytes at its head and anywhere, and a part cut out."""
    data = bytearray(files[draw(st.sampled_from(sorted(files)))])
    byte = st.integers(0, 255)
    head = draw(st.lists(st.tuples(st.floats(0, 0.02), byte), max_size=4))
    anywhere = draw(st.lists(st.tuples(st.floats(0, 1), byte), max_size=8))
    for where, value in head + anywhere:
        data[min(int(where * len(data)), len(data) - 1)] = value
    at, keep = int(draw(st.floats(0, 1)) * len(data)), draw(st.floats(0.3, 1.5))
    return bytes(data[:at] + data[at + max(0, int(len(data) * (1 - keep))) :])
