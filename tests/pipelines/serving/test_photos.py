"""POST /colorize: the bytes of `cc colorize` for all photos, and an answer for the rest."""

from __future__ import annotations

import io
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from colorcore.color.fit_palette import fit_palette
from colorcore.colorizing.network import NetworkColorizer
from colorcore.dataset.layout import read_histogram
from colorcore.decoding import Decoding
from colorcore.models import build_model
from pipelines.album.colorize import colorize_photos
from pipelines.album.settings import ColorizeSettings
from pipelines.serving.photos import FORMATS, MEDIA_TYPES
from pipelines.serving.settings import ServeSettings
from tests.conftest import jpeg, scene
from tests.pipelines.serving.running import Running, running


def grey(seed: int = 0, height: int = 96, width: int = 128) -> np.ndarray:
    return scene(seed, height, width).mean(axis=2).astype(np.uint8)


def saved(picture: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind, **options)
    return out.getvalue()


def with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "our garden", 6  # description; turned
    return saved(grey(1, 90, 150), "JPEG", quality=83, exif=exif, dpi=(300, 300))


def deep() -> bytes:
    return cv2.imencode(".png", grey(2).astype(np.uint16) * 257)[1].tobytes()


def pages() -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for seed in (3, 4):
            file.write(grey(seed), photometric="minisblack")
    return out.getvalue()


def transparent() -> bytes:
    picture = np.dstack([*[grey(5)] * 3, grey(6)])
    return saved(picture, "WEBP", lossless=True)


PHOTOS = {
    "a.jpg": with_exif, "b.png": deep, "c.tif": pages, "d.webp": transparent,
    "e.jpg": lambda: jpeg(scene(7)), "f.bmp": lambda: saved(grey(8), "BMP"),
    "g.pgm": lambda: saved(grey(9), "PPM"), "h.gif": lambda: saved(grey(10), "GIF"),
}  # fmt: skip
ASKED = [
    ("", {}),
    ("?strength=0.4&chroma=2.5", {"strength": 0.4, "chroma": 2.5}),
    ("?format=png", {"suffix": ".png"}),
]


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(("query", "settings"), ASKED)
def test_it_gives_the_bytes_that_cc_colorize_writes(
    name: str, query: str, settings: dict, server: Running, tmp_path: Path
) -> None:
    data = PHOTOS[name]()
    if (name, query) == ("c.tif", "?format=png"):
        return  # see test_what_a_format_cannot_hold
    (tmp_path / name).write_bytes(data)
    report = colorize_photos(
        "start", [str(tmp_path / name)], tmp_path / "out",
        ColorizeSettings(force=True, device="cpu", **settings),
    )  # fmt: skip
    (path,) = report.written
    reply = server.ask(f"/colorize{query}{'&' if query else '?'}force=true", data)
    assert reply.status == 200
    assert reply.data == path.read_bytes()
    kind = {"jpg": "jpeg", "tif": "tiff", "pgm": "x-portable-anymap"}.get(path.suffix[1:])
    assert reply.headers["content-type"] == f"image/{kind or path.suffix[1:]}"
    assert reply.headers["cache-control"] == "no-store"


def test_all_formats_have_a_media_type(server: Running) -> None:
    for name in FORMATS:
        reply = server.ask(f"/colorize?format={name}", jpeg(grey()))
        assert reply.status == 200, name
        assert reply.headers["content-type"] in MEDIA_TYPES.values()
        assert Image.open(io.BytesIO(reply.data)).size == (128, 96)


def test_temperature_is_that_of_the_model(bins_server: Running, tmp_path: Path) -> None:
    data = jpeg(grey())
    plain, cold = (
        bins_server.ask(f"/colorize{query}", data) for query in ("", "?temperature=0.05")
    )
    assert plain.status == cold.status == 200
    assert plain.data != cold.data
    own = bins_server.ask("/colorize?temperature=0.38&chroma=1", data)
    assert own.data == plain.data


@pytest.fixture(scope="module")
def bins_server(dataset: Path) -> Iterator[Running]:
    """An untrained model that predicts bins, and prefers some of them."""
    torch.manual_seed(0)
    model = build_model("resnet-unet", channels=4, bins=6)
    torch.nn.init.normal_(model.bins.weight, std=1.0)
    model.use_palette(fit_palette(read_histogram(dataset), bins=6))
    with running(NetworkColorizer(model, 32, Decoding(0.38))) as server:
        yield server


# -- photos in colour ----------------------------------------------------------------------------


def test_photos_in_colour_need_force(server: Running) -> None:
    refused = server.ask("/colorize", jpeg(scene(0)))
    assert (refused.status, refused.reason) == (422, "in_color")
    assert b"force=true" in refused.data
    assert server.ask("/colorize?force=true", jpeg(scene(0))).status == 200


# -- what is no photo, or not what was asked for ---------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", 400, "empty"),
        (b"<html>404</html>", 400, "unreadable"),
        (jpeg(grey())[:1200], 400, "truncated"),
        (saved(grey(), "PNG")[:-30], 400, "truncated"),
        (b"\xff\xd8\xff" + bytes(100), 400, None),
    ],
)
def test_what_is_no_photo(data: bytes, status: int, reason: str | None, server: Running) -> None:
    reply = server.ask("/colorize", data)
    assert reply.status == status
    assert reason in {reply.reason, None}
    assert server.ask("/preview", data).data == reply.data


@pytest.mark.parametrize(
    "query",
    [
        "strength=1.2", "strength=-1", "strength=nan", "strength=much", "chroma=0", "chroma=-2",
        "chroma=inf", "temperature=0.4", "temperature=0", "format=gif", "format=", "force=maybe",
        "samples=2", "strengt=1", "token=abc",
    ],
)  # fmt: skip
def test_parameters_are_checked(query: str, server: Running) -> None:
    reply = server.ask(f"/colorize?{query}", jpeg(grey()))
    assert (reply.status, reply.reason) == (400, "parameter")
    assert query.partition("=")[0] in reply.data.decode()


def test_what_a_format_cannot_hold(server: Running) -> None:
    reply = server.ask("/colorize?format=png", pages())
    assert (reply.status, reply.reason) == (422, "format")
    assert b"format=tif" in reply.data
    assert b"--" not in reply.data


def test_forms_and_compressed_bodies_are_refused(server: Running) -> None:
    form = server.ask("/colorize", b"--x", {"Content-Type": "multipart/form-data; boundary=x"})
    assert (form.status, form.reason) == (415, "form")
    packed = server.ask("/colorize", zlib.compress(b"x"), {"Content-Encoding": "deflate"})
    assert (packed.status, packed.reason) == (415, "encoding")
    curl = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl --data-binary says
    assert server.ask("/colorize", jpeg(grey()), curl).status == 200


def test_other_addresses_and_methods(server: Running) -> None:
    assert server.ask("/nowhere").status == 404
    assert server.ask("/colorize").status == 405
    assert server.ask("/", b"x").status == 405
    assert server.ask("/healthz").data == b'{"status":"ok"}'


# -- limits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(start) -> Iterator[Running]:
    with running(start, ServeSettings(max_bytes=200_000, max_pixels=20_000)) as server:
        yield server


def test_too_many_bytes_by_their_own_account(small: Running) -> None:
    with small.upload(200_001) as raw:  # the answer needs no body
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_first_sends_nothing(small: Running) -> None:
    head = "POST /colorize HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 999999\n"
    with small.connect(f"{head}Expect: 100-continue\n\n") as raw:
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("megabytes", [0.3, 30])
def test_too_many_bytes_as_they_come(small: Running, megabytes: float) -> None:
    """Clients that write all before they read get the answer, too."""
    pieces = (bytes(100_000) for _ in range(int(10 * megabytes)))
    headers = {"Transfer-Encoding": "chunked", "Connection": "close"}  # the latter as urllib does
    reply = small.ask("/colorize", pieces, headers)
    assert (reply.status, reply.reason) == (413, "file_too_large")
    assert b"or more" in reply.data  # it was not held to its end


def bomb() -> bytes:
    """A PNG that says that it has 40,000 x 40,000 pixels."""
    data = bytearray(saved(grey(), "PNG"))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_too_many_pixels(small: Running, server: Running) -> None:
    for reply in (
        small.ask("/colorize", jpeg(grey(0, 150, 200))),
        small.ask("/colorize", saved(grey(0, 150, 200), "TIFF")),
        server.ask("/colorize", bomb()),
    ):
        assert (reply.status, reply.reason) == (413, "decompression_bomb")
    assert small.ask("/colorize", jpeg(grey(0, 100, 200))).status == 200


def test_too_many_pixels_on_all_pages(small: Running) -> None:
    assert small.ask("/colorize", saved(grey(), "TIFF")).status == 200
    reply = small.ask("/colorize", pages())
    assert (reply.status, reply.reason) == (413, "decompression_bomb")


# -- previews ------------------------------------------------------------------------------------


def test_a_preview_is_two_small_jpegs(server: Running) -> None:
    import base64
    import json

    photo = saved(grey(0, 1500, 2000), "TIFF")
    pictures = json.loads(server.ask("/preview?strength=0.9", photo).data)
    assert set(pictures) == {"before", "after"}
    head = "data:image/jpeg;base64,"
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[side].removeprefix(head)))))
        for side in ("before", "after")
    )
    assert before.shape[:2] == after.shape[:2] == (1200, 1600)
    assert np.ptp(after.astype(int), axis=2).mean() > 5  # has colours
    if before.ndim == 3:
        assert np.ptp(before.astype(int), axis=2).mean() < 1
    whole = np.asarray(Image.open(io.BytesIO(server.ask("/colorize?strength=0.9", photo).data)))
    small = cv2.resize(whole, (1600, 1200), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - after).mean() < 3


# -- nothing is stored ---------------------------------------------------------------------------

_opened: list[tuple[str, int]] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _notice(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        _opened.append((str(arguments[0]), arguments[2]))
    elif event in {"tempfile.mkstemp", "tempfile.mkdtemp"}:
        _opened.append((str(arguments[0]), 0))


sys.addaudithook(_notice)


def test_nothing_of_a_photo_is_written_to_a_disk(server: Running) -> None:
    """No file is opened for writing in this process, which is the server's, too."""
    folder = Path(tempfile.gettempdir())
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1500, 2000), dtype=np.uint8)
    photos = [jpeg(noise), saved(noise, "PNG"), saved(noise, "TIFF"), bomb(), b"x" * 3_000_000]
    assert sum(map(len, photos)) > 10_000_000
    before = sorted(folder.rglob("*"))
    _opened.clear()
    for data in photos:
        for path in ("/colorize", "/preview"):
            server.ask(path, data)
    assert _opened == []
    assert sorted(folder.rglob("*")) == before
    with tempfile.TemporaryFile() as file:  # the hook notices what it should
        file.write(b"x")
    assert _opened
