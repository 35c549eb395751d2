"""This machine's Chromium, headless and driven by Playwright."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 60_000


@functools.cache
def why_no_browser() -> str:
    """Why no browser can be started here; empty if one can."""
    if _chromium() is None:
        return "Chromium: found none; install the package chromium"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "Chromium: needs playwright; pip install 'colorcore[dev]'"
    return ""


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def phone_of(browser: BrowserContext) -> BrowserContext:
    """A phone of 360 x 740 in the same browser."""
    assert browser.browser is not None
    return browser.browser.new_context(
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
    )


@contextmanager
def chromium(width: int = 1500, height: int = 1150) -> Iterator[BrowserContext]:
    """A browser with an empty profile; skips the test if there is no browser."""
    if reason := why_no_browser():  # no Chromium, or no Playwright to drive it
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root Chromium has none
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=_chromium(), args=[*sandbox, "--disable-background-networking"]
        )
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(WAIT_MS)
        yield context
        browser.close()


def hosts(requests: list[str]) -> set[str]:
    """The hosts that requests went to, except this machine."""
    return {urlsplit(url).hostname or "" for url in requests if url.startswith(("http", "ws"))} - {
        "127.0.0.1",
        "localhost",
        "::1",
    }


def close_assistant(page: Page) -> None:
    """Close MLflow's chat panel, which opens at a first visit and takes a quarter of the page."""
    page.get_by_text("MLflow Assistant").wait_for()
    page.get_by_role("button", name="Close").first.click()
