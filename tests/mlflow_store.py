"""Empty MLflow stores in SQLite, copied from one, because creating the tables takes seconds."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from pipelines.tracking.store import sqlite_uri


def new_store(folder: Path) -> str:
    """Create a store in a folder, under the name that `cc train` uses; returns its URI."""
    shutil.copyfile(_template(), folder / "mlflow.db")
    return sqlite_uri(folder)


@functools.cache
def _template() -> Path:
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    file = Path(tempfile.mkdtemp()) / "mlflow.db"
    engine = create_sqlalchemy_engine(f"sqlite:///{file}")
    _initialize_tables(engine)
    engine.dispose()
    return file
