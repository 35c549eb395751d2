"""A PostgreSQL cluster of its own on a free port of loopback, gone with the tests."""

from __future__ import annotations

import functools
import glob
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers.child import Parent, child

USER = "colorcore"


@dataclass(frozen=True)
class Postgres:
    """A running cluster whose one user needs a password (scram-sha-256)."""

    port: int
    password: str

    @property
    def uri(self) -> str:
        """As SQLAlchemy takes it, the password in it."""
        return f"postgresql+psycopg2://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a question."""
        import psycopg2

        with (
            closing(psycopg2.connect(self.uri.replace("+psycopg2", ""))) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return cursor.fetchall()

    def dump(self) -> str:
        """All that stands in all tables, as text."""
        tables = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = {name: self.query(f'SELECT * FROM "{name}"') for (name,) in tables}  # noqa: S608
        return "\n".join(f"{name}: {row}" for name in rows for row in rows[name])


@functools.cache
def why_no_postgres() -> str:
    """What this machine lacks for a cluster; empty if it has all."""
    if _binary("postgres") is None or _binary("initdb") is None:
        return "PostgreSQL: needs `postgres` and `initdb`; install the package postgresql"
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "PostgreSQL: needs psycopg2; pip install 'colorcore[server]'"
    return ""


@contextmanager
def serve_postgres() -> Iterator[Postgres]:
    """An empty cluster; its data go with it. Skips where there is no PostgreSQL."""
    if reason := why_no_postgres():  # the function above says what is missing
        pytest.skip(reason)
    with child("tests.servers.postgres") as server:
        yield Postgres(server.hello["port"], server.hello["password"])


def _binary(name: str) -> str | None:
    """In PATH, or where Debian puts what only its own scripts call."""
    versions = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))  # noqa: PTH207
    return shutil.which(name) or (versions[-1] if versions else None)


def main() -> None:
    parent = Parent()
    folder, password = Path(tempfile.mkdtemp(prefix="pg-")), secrets.token_hex(16)
    # PostgreSQL refuses to run as root.
    become: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    try:
        (folder / "password").write_text(password)
        if become:
            shutil.chown(folder / "password", **become)
            shutil.chown(folder, **become)
        given = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}, **become}
        options = ["--no-sync", "--auth=scram-sha-256", "--pwfile=password", "--encoding=UTF8"]
        subprocess.run(
            [str(_binary("initdb")), "--pgdata=data", f"--username={USER}", *options],
            check=True,
            stdout=sys.stderr,
            **given,
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = ["-c", "unix_socket_directories=", "-c", "fsync=off"]
        server = subprocess.Popen(
            [str(_binary("postgres")), "-D", "data", "-h", "127.0.0.1", "-p", str(port), *options],
            stdout=sys.stderr,
            **given,
        )
        try:
            _wait(Postgres(port, password), server)
            parent.send(port=port, password=password)
            for _ in parent.requests():
                pass
        finally:
            server.send_signal(signal.SIGINT)  # at once, without waiting for clients
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(postgres: Postgres, server: subprocess.Popen[bytes]) -> None:
    import psycopg2

    for _ in range(600):
        try:
            postgres.query("SELECT 1")
        except psycopg2.OperationalError:
            assert server.poll() is None
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("PostgreSQL does not answer")


if __name__ == "__main__":
    main()
