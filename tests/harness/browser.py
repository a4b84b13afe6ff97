"""Chromium without a window. It needs Debian's chromium and chromium-driver, and `pip install selenium`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60


@contextmanager
def open_browser(*flags: str, **capabilities: Any) -> Iterator[Any]:
    """Yield a browser started with these flags; skip the test if there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1250,850", *flags):
        options.add_argument(flag)
    for name, value in capabilities.items():
        options.set_capability(f"goog:{name}", value)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def wait_until(is_true: Callable[[], Any]) -> Any:
    """Return the first true value of a function."""
    deadline = time.monotonic() + SECONDS
    while not (value := is_true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def save_screenshot(browser: Any, name: str) -> None:
    """Save what the browser shows, into the folder SCREENSHOTS if that is set: README and docs show it."""
    if folder := os.environ.get("SCREENSHOTS"):
        time.sleep(2)  # until everything is faded in
        assert browser.save_screenshot(str(Path(folder) / name))
