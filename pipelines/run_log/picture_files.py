"""Pictures of a run as files: the picture as PNG, and the thumbnail that MLflow shows."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.run_log.spool import PICTURE_FOLDER, Record, Spool
from pipelines.tracking.mlflow_internals import THUMBNAIL, picture_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Name = tuple[str, int]
"""The key and the step under which MLflow shows a picture."""


def save_drawn(
    spool: Spool, run_id: str, rgb: NDArray[np.uint8], names: Sequence[Name], at: int
) -> list[Record]:
    """Write a picture (H, W, 3) and its thumbnail into a spool, once for each name.

    Returns one record per name.

    Raises:
        OSError: they cannot be written.
    """
    from PIL import Image

    folder = spool.folder / PICTURE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(rgb)
    records: list[Record] = []
    for key, step in names:
        # The same picture always gets the same file names, so that sending it twice replaces it.
        mark = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}/{at}")
        files = picture_files(key, step, at, str(mark))
        if records:
            for there, file in zip(records[0]["files"], files, strict=True):
                shutil.copyfile(folder / there, folder / file)
        else:
            picture.save(folder / files[0], compress_level=1)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            picture.save(folder / files[1])
        records.append({"kind": "picture", "at": at, "step": step, "files": files})
    return records
