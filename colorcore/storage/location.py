"""Opens the store of a location as a user writes it."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from colorcore.storage.local import LocalStore
from colorcore.storage.remote import RemoteStore, filesystem_of
from colorcore.storage.store import LocationError, Store

_SECRETS = re.compile(r"key|secret|token|password|credential|sig", re.IGNORECASE)


def open_store(location: str | Path | Store) -> Store:
    """The store of a location; does not read anything yet.

    Args:
        location: a local path, a ``file://`` URI, or a URI that `pyarrow.fs` opens. After an
            ``s3://`` URI, ``?endpoint_override=host:port&scheme=http&region=…`` names a store
            other than Amazon's (so do AWS_ENDPOINT_URL and AWS_REGION).

    Raises:
        LocationError: the location is empty, the kind of store is unknown, or the location contains
            a secret.
    """
    if isinstance(location, Store):
        return location
    if location == "":
        raise LocationError(
            "expected a folder, a file or a URI, got an empty name; is a variable of the shell "
            "unset? the current folder is ."
        )
    if isinstance(location, Path):
        return LocalStore(location)
    scheme, separator, rest = location.partition("://")
    if not separator:
        return LocalStore(Path(location))
    if scheme == "file":
        return LocalStore(Path(unquote(rest)))
    place, _, query = rest.partition("?")
    bucket, _, path = place.partition("/")
    _check_uri(scheme, bucket, query, user=":" in bucket and "@" in path)
    return RemoteStore(scheme, bucket, path.strip("/"), query)


@lru_cache(maxsize=1024)
def _check_uri(scheme: str, bucket: str, query: str, *, user: bool) -> None:
    """Refuse a URI of an unknown kind, or with a secret (which may contain slashes), at once."""
    if user or "@" in bucket or any(_SECRETS.search(name) for name, _ in parse_qsl(query)):
        raise LocationError(
            f"expected no credentials in the location {scheme}://…; "
            "set them in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, …)"
        )
    filesystem_of(scheme, bucket, query)


def absolute_store(location: str | Path | Store) -> Store:
    """The same store by an absolute path, for a process with another current folder."""
    store = open_store(location)
    return LocalStore(store.path.absolute(), store.sync) if isinstance(store, LocalStore) else store
