"""Pictures of a run as files: PNG, and the thumbnail that MLflow shows."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.run_log.spool import PICTURES, Record, Spool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
THUMBNAIL = 256
"""Longer side in pixels of the copy that MLflow's grid of pictures shows."""
Name = tuple[str, int]
"""What a picture is found by: a key and a step."""


def save_drawn(
    spool: Spool, run_id: str, rgb: NDArray[np.uint8], names: Sequence[Name], at: int
) -> list[Record]:
    """Write a picture and its thumbnail into a spool, by the names that MLflow's pages look for.

    Returns a record for each name.

    Raises:
        OSError: they cannot be written.
    """
    from PIL import Image

    folder = spool.folder / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(rgb)
    records: list[Record] = []
    for key, step in names:
        mark = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}/{at}")
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{at}+{mark}"
        files = [f"{name}.png", f"{name}+compressed.webp"]
        if records:
            for there, file in zip(records[0]["files"], files, strict=True):
                shutil.copyfile(folder / there, folder / file)
        else:
            picture.save(folder / files[0], compress_level=1)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            picture.save(folder / files[1])
        records.append({"kind": "picture", "at": at, "step": step, "files": files})
    return records
