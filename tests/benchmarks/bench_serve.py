"""`cc serve`: what a request costs beyond `model.colorize` and the photo's decoding and encoding.

The photo is a grey JPEG of one megapixel. The server runs in a process of its own, with one client
that sends a request after the other over a new connection each, as curl does. Predicted before it
was built: HTTP takes 5 ms for 0.5 MB each way in h11, and threads hand over within 1 ms, so 10 ms.

First paint is what Chromium's own performance entry says, the median of new browser profiles.
"""

from __future__ import annotations

import http.client
import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image

from colorcore.checkpoints.shipped import START
from tests.benchmarks.bench_colorize import scene
from tests.benchmarks.paired import cpu_ms, measure, wall_ms

SIZE = (1200, 834)
REQUESTS = 20
"""Per measurement: the CPU time of a process is counted in steps of 10 ms."""


def run(*, rounds: int) -> None:
    """Print milliseconds per photo of each part, and of a first paint."""
    from colorcore import load
    from colorcore.colorizing.files import encode_colorized
    from colorcore.photos.original.read import read_original

    data = _photo()
    model = load(START, device="cpu")
    (original,) = read_original(data)
    picture = model.colorize(original.pixels)

    def codec() -> None:
        (one,) = read_original(data)
        encode_colorized(".jpg", [one], [picture])

    with _served() as (process, port):

        def request() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/colorize", data)
            response = connection.getresponse()
            assert response.status == 200
            response.read()
            connection.close()

        def in_server() -> float:
            """CPU milliseconds of the server's process per request."""
            before = sum(process.cpu_times()[:2])
            for _ in range(REQUESTS):
                request()
            return (sum(process.cpu_times()[:2]) - before) * 1e3 / REQUESTS

        calls = {"colorize": lambda: model.colorize(original.pixels), "codec": codec}
        several = {name: partial(_repeat, call) for name, call in calls.items()}
        _say(
            "CPU-ms",
            measure(
                {"request": in_server}
                | {name: cpu_ms(call, per=REQUESTS) for name, call in several.items()},
                rounds=rounds,
            ),
        )
        _say(
            "ms",
            measure(
                {"request": wall_ms(partial(_repeat, request), per=REQUESTS)}
                | {name: wall_ms(call, per=REQUESTS) for name, call in several.items()},
                rounds=rounds,
            ),
        )
        _paint(port, rounds)


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(REQUESTS):
        call()


def _say(unit: str, passed: Mapping[str, Sequence[float]]) -> None:
    parts = zip(passed["request"], passed["colorize"], passed["codec"], strict=True)
    rest = sorted(whole - color - code for whole, color, code in parts)
    print(
        f"cc serve, 1 megapixel, {unit}: request {median(passed['request']):.1f}, model.colorize "
        f"{median(passed['colorize']):.1f}, decoding and encoding {median(passed['codec']):.1f}; "
        f"the rest {median(rest):.1f} ({rest[0]:.1f} to {rest[-1]:.1f} in {len(rest)})",
        flush=True,
    )


def _photo() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(scene(*SIZE))).convert("L").save(out, "JPEG", quality=92)
    return out.getvalue()


def _paint(port: int, rounds: int) -> None:
    from tests.ui.browser import chromium, why_no_browser

    if reason := why_no_browser():
        print(f"cc serve, first paint: {reason}")
        return
    times = []
    entry = "performance.getEntriesByName('first-contentful-paint')"
    for _ in range(rounds):
        with chromium() as browser:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            while not page.evaluate(f"{entry}.length"):
                page.wait_for_timeout(20)
            times.append(page.evaluate(f"{entry}[0].startTime"))
    print(
        f"cc serve, first paint in Chromium, ms: {median(times):.0f} ({min(times):.0f} to "
        f"{max(times):.0f} in {len(times)})",
        flush=True,
    )


@contextmanager
def _served() -> Iterator[tuple[psutil.Process, int]]:
    command = [sys.executable, "-m", "cli.main", "serve", START, "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline()
        try:
            yield psutil.Process(process.pid), urlsplit(address.strip()).port or 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
