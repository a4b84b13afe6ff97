"""TensorBoard in a real browser."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.browser import open_browser, save_screenshot, wait_until
from tests.harness.cli import RunCli

pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver")
QUICKSTART = ["--config", "quickstart", "--device", "cpu", "--epochs", 6, "--log-every", 5]

# Lines and texts are in shadow roots, which no selector crosses.
FIND_ALL = """
const found = [];
(function walk(root) {
  for (const element of root.querySelectorAll('*')) {
    if (element.matches(arguments[0])) found.push(element);
    if (element.shadowRoot) walk.call(this, element.shadowRoot);
  }
}).call(this, document);
return found;
""".replace("arguments[0]", "SELECTOR")


def find_all(browser: Any, selector: str) -> list[Any]:
    return browser.execute_script(FIND_ALL.replace("SELECTOR", repr(selector)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a TensorBoard that shows two runs."""
    cwd = tmp_path_factory.mktemp("browser")
    for name, settings in (("lr0.1", ["--lr", 0.1]), ("lr0.02-cutout", ["--lr", 0.02, "--cutout", 2])):
        outcome = run_cli("resnet-train", *QUICKSTART, *settings, "--name", name, cwd=cwd)
        assert outcome.code == 0, outcome
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["--logdir", "runs", "--port", str(port), "--host", "127.0.0.1"]
    command = [sys.executable, "-m", "tensorboard.main", *arguments]
    server = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def shows_both_runs() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/data/runs") as reply:
                return {b"lr0.1/test", b"lr0.02-cutout/test"} <= set(re.findall(rb'"([^"]*)"', reply.read()))
        except OSError:
            return False

    wait_until(shows_both_runs)
    yield url
    server.terminate()
    server.wait()


def test_tensorboard_draws_train_and_test_in_one_chart(browser: Any, address: str) -> None:
    browser.get(f"{address}/?darkMode=false&smoothing=0#timeseries")
    chart = wait_until(lambda: find_all(browser, "line-chart"))[0]  # the first of the page
    card = chart.find_element("xpath", "ancestor::card-view")
    assert card.text.replace("\n", "").startswith("epoch/accuracy")
    save_screenshot(browser, "tensorboard.png")

    # Under the pointer, TensorBoard lists the lines that it has drawn.
    webdriver.ActionChains(browser).move_to_element(chart).perform()
    rows = wait_until(lambda: [row.text for row in find_all(browser, ".tooltip-row") if "/" in row.text])
    names = {row.split()[0] for row in rows}
    assert names == {"lr0.1/train", "lr0.1/test", "lr0.02-cutout/train", "lr0.02-cutout/test"}


def test_tensorboard_compares_the_settings_of_two_runs(browser: Any, address: str) -> None:
    browser.get(f"{address}/?darkMode=false#hparams")

    def shown() -> str | None:
        cells = [element.get_attribute("innerText") for element in find_all(browser, "vaadin-grid-cell-content")]
        text = " ".join(cell.strip() for cell in cells)
        return text if "lr0.02-cutout" in text and "lr0.1" in text else None

    text = wait_until(shown)
    assert "0.020000" in text
    assert "resnet8" in text
    assert "test.epoch/accuracy" in text
