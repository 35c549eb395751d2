"""Who gets an answer: hosts, origins, tokens and cookies, and what browsers are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import WrongCallError
from pipelines.serving.settings import ServeSettings, given_token, is_loopback, new_token
from tests.conftest import jpeg, scene
from tests.pipelines.serving.running import Running, running

TOKEN = "correct-horse-battery-staple"  # noqa: S105
GREY = jpeg(scene(0).mean(axis=2).astype("uint8"))


@pytest.fixture(scope="module")
def closed(start) -> Iterator[Running]:
    """A server that wants a token."""
    with running(start, ServeSettings(token=TOKEN)) as server:
        yield server


# -- on this machine, without a token --------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8788", 200), ("localhost", 200), ("localhost:9", 200), ("LOCALHOST.", 200),
        ("[::1]:8788", 200), ("evil.example", 403), ("evil.example:8788", 403),
        ("127.0.0.1.evil.example", 403), ("localhost.evil.example", 403), ("", 403),
        ("192.168.1.7:8788", 403), ("[::1", 403), ("127.0.0.1@evil.example", 403),
    ],
)  # fmt: skip
def test_the_host_is_this_machine(host: str, status: int, server: Running) -> None:
    """A page whose name was pointed at 127.0.0.1 cannot read anything here."""
    for path in ("/", "/healthz"):
        assert server.ask(path, headers={"Host": host}).status == status
    reply = server.ask("/colorize", GREY, {"Host": host})
    assert reply.status == status
    assert status == 200 or reply.reason == "host"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # curl
        ({"Origin": "http://127.0.0.1:8788"}, 200),
        ({"Origin": "http://127.0.0.1:8788", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 403),  # another program on this machine
        ({"Origin": "http://localhost:8788"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_others_cannot_send_photos(
    headers: dict[str, str], status: int, server: Running
) -> None:
    for path in ("/colorize", "/preview"):
        reply = server.ask(path, GREY, {"Host": "127.0.0.1:8788", **headers})
        assert reply.status == status
        assert status == 200 or reply.reason == "origin"
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


def test_browsers_are_told_what_is_allowed(server: Running) -> None:
    for path in ("/", "/page.js", "/nowhere", "/healthz"):
        headers = {name.lower(): value for name, value in server.ask(path).headers.items()}
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_the_page_holds_no_script_and_loads_nothing_from_elsewhere(server: Running) -> None:
    page = server.ask("/").data.decode()
    assert "<script>" not in page
    assert "<style>" not in page
    assert " style=" not in page
    assert " on" not in {part[:3] for part in page.split("<")}
    for path in ("/", "/page.css", "/page.js", "/slider.js"):
        assert "://" not in server.ask(path).data.decode()


# -- with a token ----------------------------------------------------------------------------------


def test_everything_but_health_needs_the_token(closed: Running) -> None:
    assert closed.ask("/healthz").status == 200
    for path in ("/", "/page.js", "/nowhere", "/?token=wrong", "/?token="):
        reply = closed.ask(path)
        assert (reply.status, reply.reason) == (401, "token")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in str(reply)
    for headers in (
        {},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xe9"},
        {"Cookie": f"colorcore-{closed.port}={TOKEN}"},  # the cookie is not the token
    ):
        assert closed.ask("/colorize", GREY, headers).status == 401
    assert closed.ask(f"/colorize?token={TOKEN}", GREY).status == 401  # would get into logs


def test_programs_send_it_in_a_header(closed: Running) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}", "Host": "photos.example:8788"}
        assert closed.ask("/colorize", GREY, headers).status == 200


def test_a_browser_gets_a_cookie_on_its_first_visit(closed: Running) -> None:
    visit = closed.ask(f"/?token={TOKEN}")
    assert visit.status == 303
    assert visit.headers["location"] == "/"
    cookie, _, attributes = visit.headers["set-cookie"].partition(";")
    assert "httponly" in attributes.lower()
    assert "samesite=lax" in attributes.lower()
    assert TOKEN not in visit.headers["set-cookie"]
    assert closed.ask("/", headers={"Cookie": cookie}).status == 200
    assert closed.ask("/colorize", GREY, {"Cookie": cookie}).status == 200
    stranger = {"Cookie": cookie, "Origin": "http://evil.example"}
    assert closed.ask("/colorize", GREY, stranger).status == 403
    assert closed.ask("/", headers={"Cookie": f"{cookie[:-1]}!"}).status == 401


def test_the_token_is_in_a_file_or_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    name = "COLORCORE_SERVE_TOKEN"
    assert given_token(file, {name: "x" * 20}) == TOKEN
    assert given_token(None, {name: "x" * 20}) == "x" * 20
    assert given_token(None, {}) is None
    for bad in ("", "short", "with space in the middle", "ümlaut-ümlaut-ümlaut"):
        file.write_text(bad)
        with pytest.raises(WrongCallError, match="expected a token of 16 or more") as error:
            given_token(file, {})
        assert not bad or bad not in str(error.value)
        with pytest.raises(WrongCallError, match=name):
            given_token(None, {name: bad})
    with pytest.raises(WrongCallError, match="cannot read the token in"):
        given_token(tmp_path / "nowhere", {})
    assert len({new_token() for _ in range(9)}) == 9
    assert given_token(None, {name: new_token()})


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "")))  # noqa: S104
