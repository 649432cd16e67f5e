"""A real browser for tests: headless Chromium, named by FEDVAD_CHROMIUM or found on the path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("FEDVAD_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
_CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
Open = Callable[..., "Page"]
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: set FEDVAD_CHROMIUM to one"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # no sandbox: containers seldom allow one, and it sees only our own page
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *_CAMERA])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Open]:
    """`page(address)`: a page that must neither complain nor ask anybody else."""
    wrong: list[str] = []
    with ExitStack() as stack:

        def open_(address: str, *, width: int = 1200, may_complain: str = "\0") -> Page:
            context = browser.new_context(viewport={"width": width, "height": 800})
            stack.callback(context.close)
            shown = context.new_page()
            shown.on(
                "console",
                lambda m: may_complain in m.text or wrong.append(f"console: {m.type} {m.text}"),
            )
            shown.on("pageerror", lambda error: wrong.append(f"error: {error}"))
            own = (address, f"blob:{address}", "data:")
            shown.on(
                "request", lambda r: r.url.startswith(own) or wrong.append(f"outside: {r.url}")
            )
            shown.goto(address)
            return shown

        yield open_
    assert wrong == []
