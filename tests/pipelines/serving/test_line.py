"""The line of photos: full, slow, abandoned, and closed; places never get lost."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from colorcore.colorizing.colorizer import Colorizer
from pipelines.album.painting import PIXELS_AT_ONCE
from pipelines.serving import photos as module
from pipelines.serving import server as server_module
from pipelines.serving.line import Line
from pipelines.serving.settings import ServeSettings
from tests.conftest import jpeg, scene
from tests.pipelines.serving.running import Running, running, until

GREY = jpeg(scene(0).mean(axis=2).astype("uint8"))


class Held:
    """A colorizer that predicts when it is told to; counts its passes."""

    def __init__(self, colorizer: Colorizer) -> None:
        self.go, self.begun = threading.Event(), 0
        self.colorizer = copy.copy(colorizer)
        predict = self.colorizer.predict

        def held(copies):
            self.begun += 1
            assert self.go.wait(60)
            return predict(copies)

        self.colorizer.predict = held


@pytest.fixture
def held(start) -> Iterator[Held]:
    held = Held(start)
    yield held
    held.go.set()


def line_of(running: Running) -> Line:
    return running.server._line


def free(running: Running) -> bool:
    line = line_of(running)
    return (line._taken, line._running, line._pixels, len(line._waiting)) == (0, 0, 0, 0)


def test_a_full_line_says_when_to_come_back(held: Held) -> None:
    with running(held.colorizer, ServeSettings(queue=2)) as server:
        uploads = [server.upload(10_000, b"x") for _ in range(2)]
        until(lambda: line_of(server)._taken == 2)
        full = server.ask("/colorize", GREY)
        assert (full.status, full.reason) == (429, "busy")
        assert int(full.headers["retry-after"]) >= 1
        assert server.ask("/healthz").status == 200
        for raw in uploads:
            raw.close()
        until(lambda: free(server))
        held.go.set()
        assert server.ask("/colorize", GREY).status == 200
        until(lambda: free(server))


@pytest.mark.parametrize("error", ["?strength=9", "", "?format=png"])
def test_places_are_free_after_every_answer(start, error: str) -> None:
    with running(start, ServeSettings(queue=1)) as server:
        for data in (b"", b"no photo", jpeg(scene(0)), GREY):
            server.ask(f"/colorize{error}", data)
            until(lambda: free(server))


def test_a_client_that_leaves_while_it_waits_frees_its_place(held: Held) -> None:
    """One photo is in the network; the other, which waits for it, is never begun."""
    settings = ServeSettings(queue=2, threads=1)
    with running(held.colorizer, settings) as server:
        clients = [server.upload(len(GREY), GREY)]
        until(lambda: held.begun == 1)
        clients.append(server.upload(len(GREY), GREY))
        until(lambda: line_of(server)._taken == 2)
        clients[1].close()
        until(lambda: line_of(server)._taken == 1)
        clients[0].close()
        time.sleep(0.2)
        assert line_of(server)._taken == 1  # its photo is in a thread, and in memory
        held.go.set()
        until(lambda: free(server))
        assert held.begun == 1


def test_a_client_that_leaves_while_its_photo_is_opened_frees_its_place(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is free as soon as the photo is open, whoever is in the network."""
    with running(held.colorizer, ServeSettings(queue=2, threads=1)) as server:
        stays = server.upload(len(GREY), GREY)
        until(lambda: held.begun == 1)
        opening, open_it, given_up = threading.Event(), threading.Event(), threading.Event()
        line = line_of(server)
        open_pages, give_up = line._open, line._give_up

        def open_when_told(job):
            opening.set()
            assert open_it.wait(60)
            open_pages(job)

        def tell(job, work):
            give_up(job, work)
            given_up.set()

        monkeypatch.setattr(line, "_open", open_when_told)
        monkeypatch.setattr(line, "_give_up", tell)
        leaves = server.upload(len(GREY), GREY)
        assert opening.wait(20)
        leaves.close()
        assert given_up.wait(20)
        open_it.set()
        until(lambda: line._taken == 1)
        assert held.begun == 1
        held.go.set()
        until(lambda: free(server))
        stays.close()


def test_work_that_takes_too_long(held: Held) -> None:
    with running(held.colorizer, ServeSettings(queue=1, timeout=1.0)) as server:
        late = server.ask("/colorize", GREY)
        assert (late.status, late.reason) == (503, "timeout")
        assert int(late.headers["retry-after"]) >= 1
        assert server.ask("/colorize", GREY).status == 429  # the thread still works on it
        held.go.set()
        until(lambda: free(server))
        assert server.ask("/colorize", GREY).status == 200


def test_photos_under_way_have_so_many_pixels_together() -> None:
    async def check() -> None:
        line = Line(ServeSettings(threads=8))
        order: list[int] = []
        leave = [asyncio.Event() for _ in range(5)]

        async def one(number: int, pixels: int) -> None:
            async with line._turn(pixels):
                order.append(number)
                await leave[number].wait()

        half = PIXELS_AT_ONCE // 2
        sizes = [half, half, 1000, 3 * half, 1000]
        tasks = [asyncio.create_task(one(*each)) for each in enumerate(sizes)]
        await asyncio.sleep(0.01)
        assert order == [0, 1]  # the third does not fit, and the fifth waits behind the fourth
        leave[0].set()
        await asyncio.sleep(0.01)
        assert order == [0, 1, 2]
        leave[1].set()
        leave[2].set()
        await asyncio.sleep(0.01)
        assert order == [0, 1, 2, 3]  # alone, because it is too large
        tasks[4].cancel()
        leave[3].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (line._running, line._pixels, len(line._waiting)) == (0, 0, 0)
        line.end()

    asyncio.run(check())


def test_no_more_photos_at_once_than_threads_and_one() -> None:
    async def check() -> None:
        line = Line(ServeSettings(threads=2))
        stop = asyncio.Event()
        inside = 0

        async def one() -> None:
            nonlocal inside
            async with line._turn(1):
                inside += 1
                await stop.wait()

        tasks = [asyncio.create_task(one()) for _ in range(9)]
        await asyncio.sleep(0.01)
        assert inside == 3
        stop.set()
        await asyncio.gather(*tasks)
        assert inside == 9
        line.end()

    asyncio.run(check())


# -- slow clients --------------------------------------------------------------------------------


def answer(raw: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    data = b""
    with raw, contextlib.suppress(ConnectionError):
        while chunk := raw.recv(65536):
            data += chunk
    return data


def test_a_head_that_never_ends(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that send a line now and then, or nothing, are cut off; others are served."""
    monkeypatch.setattr(server_module, "HEAD_S", 2.0)
    with running(start) as server:
        slow = [server.connect("POST /colorize HTTP/1.1\nHost: 127.0.0.1\n") for _ in range(40)]
        slow += [server.connect() for _ in range(10)]
        kept = server.connect("GET /healthz HTTP/1.1\nHost: 127.0.0.1\n\n")
        said = b""
        while not said.endswith(b"}"):
            said += kept.recv(65536)
        kept.sendall(b"GET /healthz HT")  # the second request of a connection
        for number in range(6):
            time.sleep(0.1)
            with contextlib.suppress(ConnectionError):  # cut off already on a busy machine
                slow[number].sendall(b"X-A: b\r\n")
        assert server.ask("/colorize", GREY).status == 200
        for raw in [*slow, kept]:
            assert answer(raw) == b""
        assert not server.server.server_state.connections


def test_a_body_that_stalls(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.5)
    with running(start, ServeSettings(queue=1)) as server:
        raw = server.upload(len(GREY), GREY[:100])
        until(lambda: line_of(server)._taken == 1)
        assert answer(raw).startswith(b"HTTP/1.1 408 ")
        until(lambda: free(server))


def test_a_body_that_dribbles(start) -> None:
    with running(start, ServeSettings(queue=1, timeout=1.0)) as server:
        raw = server.upload(len(GREY), GREY[:100])
        with contextlib.suppress(ConnectionError):
            for _ in range(30):
                raw.sendall(b"x")
                time.sleep(0.1)
        assert answer(raw).startswith(b"HTTP/1.1 408 ")
        until(lambda: free(server))


def test_a_client_that_does_not_read_its_picture(start) -> None:
    noise = scene(0, 1500, 2000).mean(axis=2).astype("uint8")
    data = jpeg(noise)
    with running(start, ServeSettings(queue=1, timeout=3.0)) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        head = "POST /colorize?format=tif HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        raw.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: line_of(server)._taken == 1)
        until(lambda: free(server))
        raw.close()
        assert server.ask("/colorize", GREY).status == 200


# -- the end -------------------------------------------------------------------------------------


def test_the_end_finishes_what_is_under_way(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """One photo is in the network, one waits for it, one has not arrived, one connection idles.

    Nothing of it is left to the limit on the end, after which uvicorn cuts off what is left.
    """
    monkeypatch.setattr(server_module, "END_S", 3600)
    with running(held.colorizer, ServeSettings(threads=1)) as server, ThreadPoolExecutor(4) as pool:
        first = pool.submit(server.ask, "/colorize", GREY)
        until(lambda: held.begun == 1)
        more = [pool.submit(server.ask, "/colorize", GREY) for _ in range(2)]
        until(lambda: len(line_of(server)._waiting) == 1)
        half = server.upload(len(GREY), GREY[:100])
        idle = server.connect()
        until(lambda: line_of(server)._taken == 4)
        server.server.should_exit = True
        assert answer(half).startswith(b"HTTP/1.1 503 ")
        assert answer(idle) == b""
        held.go.set()
        assert first.result().status == 200
        statuses = sorted(each.result().status for each in more)
        assert statuses == [200, 503]  # one was decoded already
        until(lambda: free(server))
    with pytest.raises(ConnectionRefusedError):
        server.ask("/healthz")
