"""The servers that the tests of remote storage stand on keep their promises themselves."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pyarrow.fs
import pytest

from tests.servers.child import ROOT
from tests.servers.flaky_proxy import FlakyS3, Rule, flaky_proxy

# moto checks no signature, but without one a request is a stranger's.
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20250101/us-east-1/s3/aws4_request"}


def ask(endpoint: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(endpoint, timeout=60)) as connection:
        connection.request(method, path, body, SIGNED)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_what_pyarrow_writes_boto3_reads_and_the_other_way_round(flaky_s3: FlakyS3) -> None:
    s3 = flaky_s3  # without a rule the proxy changes nothing
    bucket = s3.make_bucket("both")
    files, root = pyarrow.fs.FileSystem.from_uri(s3.uri(bucket, "a/b"))
    assert root == f"{bucket}/a/b"
    big = bytes(range(256)) * 4 * 6000  # over 5 MB: uploaded in parts
    with files.open_output_stream(f"{root}/é ü+&.tar") as out:
        out.write(big)
    with files.open_output_stream(f"{root}/empty") as out:
        out.write(b"")
    s3.put(bucket, "a/b/boto", b"123")
    assert s3.keys(bucket) == ["a/b/boto", "a/b/empty", "a/b/é ü+&.tar"]
    assert s3.keys(bucket, "a/b/e") == ["a/b/empty"]
    assert s3.get(bucket, "a/b/é ü+&.tar") == big
    with files.open_input_file(f"{root}/é ü+&.tar") as file:
        assert file.size() == len(big)
        file.seek(256 * 999 + 1)
        assert file.read(5) == bytes([1, 2, 3, 4, 5])
    with files.open_input_stream(f"{root}/boto") as file:
        assert file.read() == b"123"
    found = files.get_file_info(pyarrow.fs.FileSelector(root))
    assert {info.base_name: info.size for info in found} == {
        "boto": 3,
        "empty": 0,
        "é ü+&.tar": len(big),
    }
    files.delete_file(f"{root}/boto")
    assert files.get_file_info(f"{root}/boto").type == pyarrow.fs.FileType.NotFound
    files.move(f"{root}/empty", f"{root}/moved")
    # pyarrow leaves a mark, "a/b/", where a file went away, lest the folder go with it.
    files_left = [key for key in s3.keys(bucket) if not key.endswith("/")]
    assert files_left == ["a/b/moved", "a/b/é ü+&.tar"]


def test_the_proxy_counts_and_the_helpers_go_around_it(flaky_s3: FlakyS3) -> None:
    bucket = flaky_s3.make_bucket("around")
    flaky_s3.set("all")
    flaky_s3.put(bucket, "key", b"x")
    assert flaky_s3.keys(bucket) == ["key"]
    assert flaky_s3.counts() == {"requests": 0, "counted": 0, "failures": 0}
    assert ask(flaky_s3.endpoint, "GET", f"/{bucket}/key")[0] == 503
    assert flaky_s3.counts() == {"requests": 1, "counted": 1, "failures": 1}


def test_each_nth_request_is_told_to_slow_down(flaky_s3: FlakyS3) -> None:
    bucket = flaky_s3.make_bucket("slow-down")
    flaky_s3.put(bucket, "key", b"data")
    flaky_s3.set("every:3")
    # One connection for all: after a failure it is still in step.
    with closing(http.client.HTTPConnection(flaky_s3.endpoint, timeout=60)) as connection:
        statuses = []
        for i in range(9):
            method, body = ("PUT", b"new") if i % 2 else ("GET", None)
            connection.request(method, f"/{bucket}/key", body, SIGNED)
            answer = connection.getresponse()
            statuses.append(answer.status)
            if answer.read().startswith(b"<?xml"):
                assert answer.status == 503
    assert statuses == [200, 200, 503] * 3
    assert flaky_s3.counts() == {"requests": 9, "counted": 9, "failures": 3}


@pytest.mark.slow
def test_pyarrow_survives_each_third_request_failing_and_not_all(flaky_s3: FlakyS3) -> None:
    bucket = flaky_s3.make_bucket("survive")
    files, root = pyarrow.fs.FileSystem.from_uri(flaky_s3.uri(bucket))
    flaky_s3.set("every:3")
    for i in range(6):
        with files.open_output_stream(f"{root}/{i}") as out:
            out.write(b"%d" % i)
    assert [flaky_s3.get(bucket, str(i)) for i in range(6)] == [b"%d" % i for i in range(6)]
    assert flaky_s3.counts()["failures"] >= 2
    flaky_s3.set("drop:1@PUT")
    # Three seconds are enough to see it give up; the patience of pyarrow's default is longer.
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    hasty = S3FileSystem(
        endpoint_override=flaky_s3.endpoint,
        scheme="http",
        region="us-east-1",
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
    )
    with pytest.raises(OSError, match="survive"), hasty.open_output_stream(f"{root}/never") as out:
        out.write(b"x")
    assert "never" not in flaky_s3.keys(bucket)


def test_the_connection_closes_in_the_middle_of_an_answer(flaky_s3: FlakyS3) -> None:
    bucket = flaky_s3.make_bucket("drop-get")
    flaky_s3.put(bucket, "key", b"0123456789")
    flaky_s3.set("drop:2")
    assert ask(flaky_s3.endpoint, "GET", f"/{bucket}/key") == (200, b"0123456789")
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(flaky_s3.endpoint, "GET", f"/{bucket}/key")
    assert cut.value.partial == b"01234"
    assert ask(flaky_s3.endpoint, "HEAD", f"/{bucket}/key") == (200, b"")
    with pytest.raises(http.client.RemoteDisconnected):
        ask(flaky_s3.endpoint, "HEAD", f"/{bucket}/key")
    assert flaky_s3.counts() == {"requests": 4, "counted": 4, "failures": 2}


def test_a_rule_may_be_about_some_paths_alone(flaky_s3: FlakyS3) -> None:
    bucket = flaky_s3.make_bucket("endings")
    for key in ("a.tar", "a.tar.json"):
        flaky_s3.put(bucket, key, b"data")
    flaky_s3.set("every:1@GET~.tar")
    assert ask(flaky_s3.endpoint, "GET", f"/{bucket}/a.tar.json?x=.tar") == (200, b"data")
    assert ask(flaky_s3.endpoint, "HEAD", f"/{bucket}/a.tar")[0] == 200
    assert ask(flaky_s3.endpoint, "GET", f"/{bucket}/a.tar?x=y")[0] == 503
    assert flaky_s3.counts() == {"requests": 3, "counted": 1, "failures": 1}


@pytest.mark.parametrize(("kind", "arrives"), [("drop", False), ("lost", True)])
def test_a_put_that_breaks_off(flaky_s3: FlakyS3, kind: str, arrives: bool) -> None:
    bucket = flaky_s3.make_bucket(f"{kind}-put")
    flaky_s3.set(f"{kind}:1@PUT")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(flaky_s3.endpoint, "PUT", f"/{bucket}/key", b"x" * 300_000)
    assert flaky_s3.keys(bucket) == (["key"] if arrives else [])
    assert ask(flaky_s3.endpoint, "GET", f"/{bucket}/key")[0] == (200 if arrives else 404)
    assert flaky_s3.counts() == {"requests": 2, "counted": 1, "failures": 1}


def test_no_answer_for_a_while(flaky_s3: FlakyS3) -> None:
    flaky_s3.set("hang:1:0.5")
    start = time.monotonic()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(flaky_s3.endpoint, "GET", "/")
    assert time.monotonic() - start >= 0.5
    assert flaky_s3.counts()["failures"] == 1


@pytest.mark.parametrize("rule", ["sometimes", "every", "every:0", "every:x", "hang:1", "none:1"])
def test_what_is_no_rule_is_refused(flaky_s3: FlakyS3, rule: str) -> None:
    with pytest.raises(ValueError, match=r"expected|invalid"):
        Rule.parse(rule)
    with pytest.raises(ValueError, match=r"expected|invalid"):
        flaky_s3.set(rule)


class Echo(BaseHTTPRequestHandler):
    """Answers with the raw request, in chunks."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        heads = "".join(f"{name}={value}\n" for name, value in self.headers.items())
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while not body.endswith(b"0\r\n\r\n"):
                body += self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (heads.encode(), body):
            self.wfile.write(b"%X\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_proxy_changes_nothing_that_is_signed(echo: str) -> None:
    with (
        flaky_proxy(echo) as proxy,
        closing(http.client.HTTPConnection(proxy.endpoint, timeout=60)) as connection,
    ):
        connection.request(
            "PUT", "/a%20b?x=%2F", b"body", {"Host": "signed.example", "X-Amz-A": "1"}
        )
        heads = connection.getresponse().read().decode()
        assert "Host=signed.example\n" in heads
        assert "X-Amz-A=1\n" in heads
        assert heads.endswith("body")
        connection.request("PUT", "/", iter([b"two ", b"chunks"]), encode_chunked=True)
        chunked = connection.getresponse().read()
        assert chunked.endswith(b"4\r\ntwo \r\n6\r\nchunks\r\n0\r\n\r\n")


@pytest.mark.slow
def test_the_server_ends_with_a_test_run_that_is_killed() -> None:
    code = (
        "import time\nfrom tests.servers.s3 import serve_s3\n"
        "with serve_s3() as s3:\n    print(s3.endpoint, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout is not None
        endpoint = run.stdout.readline().decode().strip()
        assert re.fullmatch(r"127\.0\.0\.1:\d+", endpoint)
        servers = psutil.Process(run.pid).children()
        assert len(servers) == 1
        assert ask(endpoint, "GET", "/")[0] == 200
        os.kill(run.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(servers, timeout=60)
    assert not alive
    with pytest.raises(ConnectionError):
        ask(endpoint, "GET", "/")
