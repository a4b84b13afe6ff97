"""The page of `resnet-export --format html` in a real browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_train.data.picture_files import PictureFile
from resnet_train.jobs.export import export
from resnet_train.jobs.predict import Prediction, Predictor
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.weights import SHIPPED, shipped_checkpoint
from tests.harness.browser import open_browser, save_screenshot, wait_until
from tests.test_html import smooth_picture
from tests.test_report import HOSTILE

pytestmark = pytest.mark.browser
ALLOWED_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
ORIENTATION = 0x0112  # the EXIF tag
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "jpg": {"subsampling": 0}, "webp": {"lossless": True}, "gif": {}}
MAKE_FILE = """
const bytes = Uint8Array.from(atob(arguments[0]), character => character.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], arguments[1], {type: "image/png"}));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page of the network in the package."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    export(SHIPPED, path, format="html", num_images=10)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser(*ALLOWED_CAMERA, loggingPrefs={"browser": "ALL"}) as browser:
        browser.set_script_timeout(60)
        yield browser


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get(page.as_uri())
    return browser


def by_id(browser: Any, name: str) -> Any:
    return browser.find_element("id", name)


def choose(browser: Any, *files: Path) -> list[str]:
    """Choose files one after the other, and return what is said about each."""
    answers = []
    for file in files:
        browser.execute_script("answer.textContent = problem.textContent = ''")
        by_id(browser, "file").send_keys(str(file))
        answers.append(wait_until(lambda: by_id(browser, "answer").text or by_id(browser, "problem").text))
    return answers


def predict(files: list[Path]) -> list[str]:
    """Return what resnet-predict says about pictures, in the words of the page."""
    predicted = Predictor(shipped_checkpoint(), device="cpu").predict([PictureFile(file.name, file) for file in files])
    return [
        f"{one.top[0].name}, {one.top[0].probability:.1%}".replace("%", " %")
        + " – or none of its classes" * bool(one.unknown)
        for one in predicted
        if isinstance(one, Prediction)
    ]


def difference(said: list[str], expected: list[str]) -> list[float]:
    """Return how far the percentages are apart; the words must be equal."""
    values = [[float(text.split(", ")[1].split(" ")[0]) for text in texts] for texts in (said, expected)]
    words = [[text.split(", ")[0] + text.partition("–")[2] for text in texts] for texts in (said, expected)]
    assert words[0] == words[1]
    return np.abs(np.subtract(*values)).tolist()


def test_the_page_says_what_resnet_predict_says(opened: Any, tmp_path: Path) -> None:
    files = []
    for number, (width, height, mode) in enumerate(
        [(32, 32, "RGB"), (500, 300, "RGB"), (33, 70, "L"), (90, 60, "RGBA"), (20, 30, "RGB")]
    ):
        for suffix, options in FORMATS.items():
            if mode != "RGBA" or suffix in ("png", "webp"):
                files.append(tmp_path / f"{number}.{suffix}")
                smooth_picture(width, height, mode).save(files[-1], **options)
    assert max(difference(choose(opened, *files), predict(files))) < 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_page_turns_a_picture_upright(suffix: str, opened: Any, tmp_path: Path) -> None:
    files = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        files.append(tmp_path / f"{orientation}.{suffix}")
        smooth_picture(96, 64, "RGB").save(files[-1], exif=exif, **FORMATS[suffix])
    said = choose(opened, *files)
    assert len(set(said)) > 1
    assert max(difference(said, predict(files))) < 2


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 no jpeg"])
def test_a_file_that_is_no_picture_is_named(content: bytes, opened: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    (said,) = choose(opened, tmp_path / "bad.jpg")
    assert said.startswith("bad.jpg is not a picture that this browser can read")


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(event: str, opened: Any, tmp_path: Path) -> None:
    smooth_picture(40, 40, "RGB").save(tmp_path / "a.png")
    encoded = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    send = {
        "paste": "dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer}))",
        "drop": "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}))",
    }[event]
    opened.execute_script(MAKE_FILE + send, encoded, "a.png")
    wait_until(lambda: by_id(opened, "bars").text)
    assert by_id(opened, "photo").get_attribute("alt") == "Your picture a.png"


def test_the_page_requests_nothing_and_logs_no_error(browser: Any, page: Path, tmp_path: Path) -> None:
    requested = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form: str, *values: object) -> None:
            requested.append(self.path)

    smooth_picture(40, 40, "RGB").save(tmp_path / "a.png")
    browser.get_log("browser")  # empties it
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=page.parent)) as server:
        Thread(target=server.serve_forever).start()
        browser.get(f"http://127.0.0.1:{server.server_port}/{page.name}")
        choose(browser, tmp_path / "a.png")
        server.shutdown()
    assert requested == [f"/{page.name}"]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(width: int, dark: bool, opened: Any, tmp_path: Path) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    smooth_picture(900, 300, "RGB").save(tmp_path / "wide.png")
    choose(opened, tmp_path / "wide.png")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    save_screenshot(opened, f"page-{width}-{'dark' if dark else 'light'}.png")


def test_the_page_is_used_with_the_keyboard(opened: Any) -> None:
    order = []
    for _ in range(3):
        opened.switch_to.active_element.send_keys("\ue004")  # tab
        order.append(opened.switch_to.active_element.text)
    assert order == ["Choose a picture", "Use the camera", "About this network"]
    roles = {name: by_id(opened, name).get_attribute("role") for name in ("answer", "problem")}
    assert roles == {"answer": "status", "problem": "alert"}  # are read aloud when they change


def test_the_camera_is_classified_until_it_is_stopped(opened: Any) -> None:
    by_id(opened, "camera").click()
    wait_until(lambda: by_id(opened, "bars").text)
    assert by_id(opened, "camera").text == "Stop the camera"
    by_id(opened, "camera").click()
    assert by_id(opened, "camera").text == "Use the camera"
    assert not by_id(opened, "video").is_displayed()


@pytest.mark.parametrize("name", ["NotAllowedError", "NotFoundError", "NotReadableError", "AbortError"])
def test_a_camera_that_fails_is_explained(name: str, opened: Any) -> None:
    opened.execute_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('why', arguments[0]))", name
    )
    by_id(opened, "camera").click()
    said = wait_until(lambda: by_id(opened, "problem").text)
    assert "camera" in said.lower()
    assert by_id(opened, "camera").text == "Use the camera"


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    contents = read_checkpoint(shipped_checkpoint())
    contents["about"]["classes"] = HOSTILE
    write_checkpoint(tmp_path / "hostile.pt", contents)
    export(tmp_path / "hostile.pt", tmp_path / "hostile.html", format="html", num_images=1)
    browser.get((tmp_path / "hostile.html").as_uri())
    smooth_picture(40, 40, "RGB").save(tmp_path / "a.png")
    choose(browser, tmp_path / "a.png")
    assert len(browser.find_elements("css selector", "#bars li")) == len(HOSTILE)
    assert browser.find_elements("css selector", "#bars :not(li, bdi, span), header :not(h1, p, bdi)") == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []
