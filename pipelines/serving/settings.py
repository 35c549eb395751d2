"""What `cc serve` is asked to do: where it listens, who may use it, and how much it takes."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from colorcore.photos.refusal import PhotoLimits
from pipelines.album.settings import LIMITS
from pipelines.errors import WrongCallError

PORT = 8788
MAX_BYTES = 64 * 1024 * 1024
QUEUE = 16
TIMEOUT_S = 60.0
TOKEN_VARIABLE = "COLORCORE_SERVE_TOKEN"  # noqa: S105 - the variable's name
TOKEN_LENGTH = 16
"""Characters that a token must have, so that it cannot be guessed."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Where `cc serve` listens and what it takes.

    host, port   port None: 8788, or any free port
    token        that clients must show; None: nobody needs one
    max_bytes, max_pixels  of a photo, of all pages of a TIFF together; larger ones are refused
    queue        photos that are received, wait, are colourized or are sent, at one time
    timeout      seconds that a photo may take to arrive, to be colourized, and to be sent, each
    threads      that decode, paint and encode
    certificate, key  PEM files for HTTPS; None: HTTP
    """

    host: str = "127.0.0.1"
    port: int | None = None
    token: str | None = None
    max_bytes: int = MAX_BYTES
    max_pixels: int = LIMITS.max_pixels
    queue: int = QUEUE
    timeout: float = TIMEOUT_S
    threads: int = 1
    certificate: Path | None = None
    key: Path | None = None

    @property
    def limits(self) -> PhotoLimits:
        """What is checked before a photo is decoded."""
        return replace(LIMITS, max_pixels=self.max_pixels, max_bytes=self.max_bytes)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def given_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The token in a file, or in the environment; None if there is neither.

    Raises:
        WrongCallError: the file cannot be read, or the token is too short or cannot stand in a
            header.
    """
    place = f"${TOKEN_VARIABLE}" if file is None else str(file)
    if file is None:
        text = environment.get(TOKEN_VARIABLE)
        if text is None:
            return None
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not text"
            raise WrongCallError(f"cannot read the token in {file}: {why}") from error
    token = text.strip()
    if len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise WrongCallError(
            f"expected a token of {TOKEN_LENGTH} or more letters and digits in {place}, got "
            f"{len(token)} characters; make one with: openssl rand -hex 32"
        )
    return token


def new_token() -> str:
    """A random token of 256 bits."""
    return secrets.token_urlsafe(32)
