"""An S3 server (moto) on a free port, and its interface for tests."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.child import Parent, child

REGION = "us-east-1"
# Whatever account the machine has, no test can reach it.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
UNSET = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@dataclass(frozen=True)
class S3:
    """An S3 server at ``endpoint`` ("127.0.0.1:PORT")."""

    endpoint: str

    def make_bucket(self, name: str) -> str:
        """Make the bucket, return its name."""
        self.client.create_bucket(Bucket=name)
        return name

    def uri(self, bucket: str, prefix: str = "") -> str:
        """The place as pyarrow.fs.FileSystem.from_uri takes it."""
        path = f"{bucket}/{prefix}".rstrip("/")
        return f"s3://{path}?endpoint_override={self.endpoint}&scheme=http&region={REGION}"

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of all objects, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def put_folder(self, bucket: str, prefix: str, folder: Path) -> None:
        """All files of a folder, under their paths in it."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(bucket, f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def get(self, bucket: str, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    @functools.cached_property
    def client(self) -> Any:
        """A client of boto3, which shares nothing with pyarrow's."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.endpoint}",
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )


@contextmanager
def serve_s3(host: str = "127.0.0.1") -> Iterator[S3]:
    """An empty S3 server; its objects go with it."""
    with child("tests.servers.s3", host) as server:
        yield S3(server.hello["endpoint"])


def main(host: str) -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    parent = Parent()
    server = ThreadedMotoServer(host, port=0, verbose=False)
    server.start()
    parent.send(endpoint="{}:{}".format(*server.get_host_and_port()))
    for _ in parent.requests():
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
