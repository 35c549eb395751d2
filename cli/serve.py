"""`cc serve`: a model behind a web page and an HTTP API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Device, Model


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to serve on; beyond this machine, a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port to serve on (default: 8788, or any free port)."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the token that clients must show (default: $COLORCORE_SERVE_TOKEN; "
            "beyond this machine, a new one).",
        ),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Largest file in bytes (default: 64 MiB).")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Largest photo in pixels (default: 100 million).")
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, max=10_000, help="Photos on the server at one time.")
    ] = 16,
    timeout: Annotated[
        float,
        typer.Option(
            min=1.0, help="Seconds that a photo may take to arrive, and to be colourized."
        ),
    ] = 60.0,
    device: Device = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that decode and encode (default: one per CPU)."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate for HTTPS, PEM.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of --tls-cert, PEM.")
    ] = None,
) -> int:
    """Serve a page that colourizes photos, and POST /colorize for programs.

    Listens on this machine only unless --host says otherwise. Nothing of a photo is stored. Ctrl-C
    finishes the photos under way and ends.
    """
    from cli import show
    from colorcore.cpu import usable_cpus
    from pipelines.errors import WrongCallError
    from pipelines.serving.settings import (
        MAX_BYTES,
        ServeSettings,
        given_token,
        is_loopback,
        new_token,
    )

    if (tls_cert is None) != (tls_key is None):
        raise WrongCallError("expected --tls-cert and --tls-key together, got one of them")
    token = given_token(token_file, os.environ)
    is_new = token is None and not is_loopback(host)
    settings = ServeSettings(
        host=host,
        port=port,
        token=new_token() if is_new else token,
        max_bytes=max_bytes or MAX_BYTES,
        queue=queue,
        timeout=timeout,
        threads=threads or usable_cpus(),
        certificate=tls_cert,
        key=tls_key,
    )
    if max_pixels is not None:
        from dataclasses import replace

        settings = replace(settings, max_pixels=max_pixels)
    # What imports torch comes after the errors that are certain.
    from pipelines.inference.knobs import open_colorizer
    from pipelines.serving.server import PhotoServer, listen

    with listen(host, port) as listener:
        server = PhotoServer(open_colorizer(model, device), settings, listener)
        print(f"{server.address}?token={settings.token}" if is_new else server.address, flush=True)
        if settings.token is not None and tls_cert is None and not is_loopback(host):
            show.warn("without --tls-cert, others on the network can read the photos and the token")
        show.warn("press Ctrl-C to stop")
        server.run()
    return 0
