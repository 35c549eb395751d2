"""make-certificates.sh: its certificates verify, and others are rejected."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest

from tests.infra.files import INFRA, run

SCRIPT = INFRA / "tls" / "make-certificates.sh"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "certificates"
    answer = run(SCRIPT, folder, "head.example", "10.1.2.3", "fd00::7")
    assert answer.returncode == 0, answer.stderr
    return folder


def handshake(
    server: Path, node: str, client: Path, name: str, *, shows: str | None = "node"
) -> str:
    """Connects over TLS on loopback, both sides with certificates; returns what the client read."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(server / f"{node}.crt", server / f"{node}.key")
    accepting.load_verify_locations(server / "ca.crt")
    accepting.verify_mode = ssl.CERT_REQUIRED
    asking = ssl.create_default_context(cafile=str(client / "ca.crt"))
    if shows is not None:
        asking.load_cert_chain(client / f"{shows}.crt", client / f"{shows}.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            try:
                with accepting.wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(b"hello")
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=30) as plain,
                asking.wrap_socket(plain, server_hostname=name) as secure,
            ):
                return secure.recv(16).decode()
        finally:
            thread.join(30)


def test_openssl_verifies_it_as_a_servers_and_as_a_clients(folder: Path) -> None:
    for purpose in ("sslserver", "sslclient"):
        answer = run(
            "openssl", "verify", "-x509_strict", "-purpose", purpose,
            "-CAfile", folder / "ca.crt", folder / "node.crt",
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", ["head.example", "10.1.2.3", "fd00::7", "localhost", "127.0.0.1"])
def test_it_is_taken_for_each_name_and_address(folder: Path, name: str) -> None:
    assert handshake(folder, "node", folder, name) == "hello"


def test_it_is_not_taken_for_another_name(folder: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|valid for"):
        handshake(folder, "node", folder, "10.9.9.9")


def test_another_node_of_the_same_authority_is_taken(folder: Path) -> None:
    before = (folder / "ca.crt").read_bytes()
    env = {"NODE": "worker", "DAYS": "30", "PATH": "/usr/bin:/bin:/usr/local/bin"}
    assert run(SCRIPT, folder, "worker.example", env=env).returncode == 0
    assert (folder / "ca.crt").read_bytes() == before
    assert handshake(folder, "worker", folder, "worker.example") == "hello"


def test_another_authority_is_not(folder: Path, tmp_path: Path) -> None:
    run(SCRIPT, tmp_path, "head.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, "node", tmp_path, "head.example")


def test_a_client_without_a_certificate_is_refused(folder: Path) -> None:
    try:
        heard = handshake(folder, "node", folder, "localhost", shows=None)
    except OSError:
        heard = ""
    assert heard == ""
    assert handshake(folder, "node", folder, "localhost") == "hello"


def test_keys_are_for_their_owner_alone(folder: Path) -> None:
    for key in folder.glob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600, key.name
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()


def test_without_a_folder_it_says_how_to_call_it() -> None:
    answer = run(SCRIPT)
    assert answer.returncode == 2
    assert "usage" in answer.stderr
