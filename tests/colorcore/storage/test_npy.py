"""The header of .npy files against NumPy's."""

import io

import numpy as np
import pytest

from colorcore.storage.npy import npy_header


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 256, 256), (3, 4096, 4096), (7,)])
def test_npy_header_is_that_of_numpy(shape):
    buffer = io.BytesIO()
    np.save(buffer, np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (0, *shape[1:])))
    header = npy_header(shape)
    assert len(header) == 128
    read = io.BytesIO(header)
    assert np.lib.format.read_magic(read) == (1, 0)
    assert np.lib.format.read_array_header_1_0(read) == (shape, False, np.dtype("uint8"))
    small = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    buffer = io.BytesIO()
    np.save(buffer, small)
    assert npy_header(small.shape) + small.tobytes() == buffer.getvalue()
