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
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from colorcore.checkpoints.shipped import START
from tests.benchmarks.bench_colorize import scene
from tests.benchmarks.paired import measure, wall_ms

SIZE = (1200, 834)
REQUESTS = 3
PAIRS = 5
"""Measurements per round: the parts of one are close in time, so a busy machine shifts them alike."""


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

    with _served() as port:

        def request() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/colorize", data)
            response = connection.getresponse()
            assert response.status == 200
            response.read()
            connection.close()

        def several(call: object) -> object:
            return lambda: [call() for _ in range(REQUESTS)]  # type: ignore[operator]

        passed = measure(
            {
                name: wall_ms(several(call), per=REQUESTS)  # type: ignore[arg-type]
                for name, call in (
                    ("request", request),
                    ("colorize", lambda: model.colorize(original.pixels)),
                    ("codec", codec),
                )
            },
            rounds=PAIRS * rounds,
        )
        rest = sorted(
            whole - color - code
            for whole, color, code in zip(
                passed["request"], passed["colorize"], passed["codec"], strict=True
            )
        )
        print(
            f"cc serve, 1 megapixel, ms: request {median(passed['request']):.1f}, model.colorize "
            f"{median(passed['colorize']):.1f}, decoding and encoding "
            f"{median(passed['codec']):.1f}; the rest {median(rest):.1f} "
            f"({rest[0]:.1f} to {rest[-1]:.1f} in {len(rest)})",
            flush=True,
        )
        _paint(port, rounds)


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
def _served() -> Iterator[int]:
    command = [sys.executable, "-m", "cli.main", "serve", START, "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline()
        try:
            yield urlsplit(address.strip()).port or 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
