"""The example in JavaScript runs an exported file in Chromium, with Python's colours."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import colorcore
from pipelines.export.job import export_model
from tests.conftest import scene
from tests.ui.browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "docs/examples/colorize.html"
PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, and what it needs of the npm package, whose bytes are known."""
    folder = tmp_path_factory.mktemp("page")
    if shutil.which("npm") is None:
        pytest.skip("npm: found none; install the package npm")
    made = subprocess.run(
        ["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"npm cannot fetch {PACKAGE}: {made.stderr.strip()[-200:]}")
    (archive,) = folder.glob("*.tgz")
    digest = hashlib.sha512(archive.read_bytes()).digest()
    assert base64.b64encode(digest).decode() == SHA512, f"{PACKAGE} is another one"
    with tarfile.open(archive) as tar:
        for name in FILES:
            source = tar.extractfile(f"package/dist/{name}")
            assert source is not None
            (folder / name).write_bytes(source.read())
    shutil.copy(EXAMPLE, folder)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    with chromium() as context:
        yield context


def test_colours_in_the_browser_equal_pythons(
    browser: BrowserContext, address: str, folder: Path, tmp_path: Path
) -> None:
    file, photo = tmp_path / "start.onnx", tmp_path / "photo.png"
    export_model("start", file)
    rgb = np.asarray(scene(3, 150, 200), np.uint8)
    Image.fromarray(rgb).save(photo)
    page = browser.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{address}/{EXAMPLE.name}")
    page.locator("#model").set_input_files(file)
    page.locator("#photo").set_input_files(photo)
    page.wait_for_function("window.result !== undefined || null", timeout=60_000)
    result = page.evaluate(
        "({L: Array.from(result.L), ab: Array.from(result.ab), w: result.w, h: result.h})"
    )
    assert said == []
    height, width = result["h"], result["w"]
    assert (height, width) == (128, 171)
    L = np.asarray(result["L"], np.float32).reshape(1, 1, height, width)
    ab = np.asarray(result["ab"], np.float32).reshape(1, 2, height, width)
    model = colorcore.load(file)
    expected = model.predict_ab(L)
    assert np.abs(expected).max() > 5, "the test needs colours"
    assert np.abs(ab - expected).max() < 0.05
    # The page shows them: its pixels are about those of colorize at that size.
    shown = page.evaluate(
        "Array.from(canvas.getContext('2d').getImageData(0, 0, result.w, result.h).data)"
    )
    seen = np.asarray(shown, np.uint8).reshape(height, width, 4)[..., :3].astype(float)
    chroma = seen.max(axis=2) - seen.min(axis=2)
    assert chroma.mean() > 3
