"""Pages seen in headless Chromium; where there is none, or no Playwright to steer it, the test is skipped."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

VIEWS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light")}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class View(NamedTuple):
    """A page as it was seen."""

    image: Path
    width: int
    scroll_width: int
    background: str
    messages: list[str]
    """What the page wrote to the console, and its errors."""
    requests: list[str]
    """Everything that was loaded."""


def image_folder(default: Path) -> Path:
    """Where images go: ``NSM_SCREENSHOTS`` where that is set, for whoever wants to look at them."""
    folder = Path(os.environ.get("NSM_SCREENSHOTS") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as playwright:
        program = program or playwright.chromium.executable_path
        if not os.path.exists(program):
            pytest.skip("no Chromium: apt install chromium, or playwright install chromium")
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def screenshots(address: str, folder: Path) -> dict[str, View]:
    """The page in light, in dark and on a phone, whole."""
    folder = image_folder(folder)
    seen = {}
    with browser() as opened:
        for name, (width, height, scheme) in VIEWS.items():
            page = opened.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            messages: list[str] = []
            requests: list[str] = []
            page.on("console", lambda message, kept=messages: kept.append(message.text))
            page.on("pageerror", lambda error, kept=messages: kept.append(str(error)))
            page.on("request", lambda request, kept=requests: kept.append(request.url))
            page.goto(address)
            image = folder / f"{name}.png"
            page.screenshot(path=image, full_page=True)
            scroll_width = page.evaluate("document.documentElement.scrollWidth")
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            seen[name] = View(image, width, scroll_width, background, messages, requests)
            page.close()
    return seen
