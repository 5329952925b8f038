"""A real browser before the service with models whose masks and fruit can be worked out by hand."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.browser.visitor import Visitor
from tests.contract.live import LiveDoor, live_door
from tests.contract.scenes import NO_FRUIT, TWO

CHROMIUM: Final = shutil.which("chromium")

_QUIET: Final = (
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a file: its event loop must end with them, or it would be in the way of others."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install --no-install-recommends chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served() -> Iterator[LiveDoor]:
    """One service for the tests of a file."""
    with live_door() as door:
        yield door


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser without a past."""
    with chromium.new_context(viewport={"width": 1280, "height": 800}, permissions=["clipboard-read"]) as fresh:
        yield fresh


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab; whatever its page did, no script may have failed, and no other host may have been asked."""
    tab = context.new_page()
    failures: list[str] = []
    asked: set[str] = set()
    tab.on("pageerror", lambda error: failures.append(str(error)))
    tab.on("console", lambda line: failures.append(line.text) if _is_failure(line.type, line.text) else None)
    tab.on("request", lambda request: asked.add(request.url))
    yield tab
    assert failures == []
    assert [url for url in asked if not re.match(r"(http://127\.0\.0\.1:\d+/|blob:http://127\.0\.0\.1:)", url)] == []


def _is_failure(kind: str, text: str) -> bool:
    # Chromium also reports every answer that is an error: those are the page's to handle.
    return kind == "error" and not text.startswith("Failed to load resource")


@pytest.fixture
def visitor(page: Page, served: LiveDoor) -> Visitor:
    """Somebody who has just opened the page."""
    return Visitor(page, served.address).arrive()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """An image of a clean and a sick fruit, as a file."""
    file = tmp_path / "two.png"
    file.write_bytes(TWO)
    return file


@pytest.fixture
def none(tmp_path: Path) -> Path:
    """An image without fruit."""
    file = tmp_path / "none.png"
    file.write_bytes(NO_FRUIT)
    return file
