"""Compare a page of `resnet-export --format html` with torch on real images, in headless Chromium, and time it.

    python benchmarks/page.py runs/resnet20/checkpoints/model.pt resnet20.html data/cifar10-jpeg/test
    python benchmarks/page.py resnet18.pt resnet18.html data/cifar10-jpeg/test --images 100 --out resnet18.json

The page reads the same files as resnet-predict. Times are those of the forward pass alone, and of everything from the
file to the logits, measured in the page. It needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import base64
import json
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

BATCH = 50  # images sent to the page at a time
ASK = """
const [pictures, done] = arguments;
(async () => {
  const answers = [];
  for (const picture of pictures) {
    const bytes = Uint8Array.from(atob(picture), character => character.charCodeAt(0)), start = performance.now();
    const {logits, square, milliseconds} = await ask(new Blob([bytes]));
    answers.push({logits: Array.from(logits), square: Array.from(square), forward: milliseconds,
      all: performance.now() - start});
  }
  done(answers);
})();
"""


@contextmanager
def open_page(page: Path) -> Iterator[Any]:
    """Yield a browser that shows the page, and check at the end that it requested nothing else."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.set_script_timeout(600)
        browser.get(page.resolve().as_uri())
        yield browser
        print("requests besides the page:", list_requests(browser, page))
    finally:
        browser.quit()


def list_requests(browser: Any, page: Path) -> list[str]:
    """Return the addresses that were requested, except those of the page and of data inside it."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if url != page.resolve().as_uri() and not url.startswith(("blob:", "data:"))]


def ask_page(page: Path, files: list[Path]) -> tuple[list[dict[str, Any]], str]:
    """Return what the page says about each file, and the browser's name."""
    answers: list[dict[str, Any]] = []
    with open_page(page) as browser:
        for start in range(0, len(files), BATCH):
            pictures = [base64.b64encode(file.read_bytes()).decode() for file in files[start : start + BATCH]]
            answers += browser.execute_async_script(ASK, pictures)
        return answers, f"Chromium {browser.capabilities['browserVersion']}"


def ask_torch(checkpoint: Path, files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits [N, C] of resnet-predict, and the pixels uint8 [N, 3, S, S] that it computes them from."""
    import torch

    from resnet_train.data.pictures import read_image
    from resnet_train.jobs.predict import Predictor

    subject = Predictor(checkpoint, device="cpu").subject
    pixels = np.stack([read_image(file, subject.image_size) for file in files])
    with torch.inference_mode():
        parts = [
            subject.compute_logits(subject.normalize(part)).float() for part in torch.from_numpy(pixels).split(100)
        ]
    return torch.cat(parts).numpy(), pixels


def main(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint that the page was made from.")],
    page: Annotated[Path, typer.Argument(help="The page.")],
    folder: Annotated[Path, typer.Argument(help="Pictures; evenly spaced ones are used.")],
    images: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this file as JSON.")] = None,
) -> None:
    """Compare the classes, pixels and logits of a page with those of torch, and time the page."""
    import torch

    from resnet_train.data.picture_files import list_pictures
    from resnet_train.runtime.environment import describe_environment

    found = list_pictures(folder)
    files = [found[i] for i in np.linspace(0, len(found) - 1, min(images, len(found))).astype(int)]
    expected, pixels = ask_torch(checkpoint, files)
    answers, browser = ask_page(page, files)
    logits = np.array([answer["logits"] for answer in answers])
    squares = np.array([answer["square"] for answer in answers], np.uint8).reshape(pixels.shape)
    equal = logits.argmax(axis=1) == expected.argmax(axis=1)
    result = {
        "page_bytes": page.stat().st_size,
        "num_images": len(files),
        "num_equal_top1": int(equal.sum()),
        "different": [str(file.relative_to(folder)) for file, same in zip(files, equal) if not same],
        "num_equal_pixels": int((squares == pixels).all(axis=(1, 2, 3)).sum()),
        "largest_logit_difference": float(np.abs(logits - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "forward_ms_median": statistics.median(answer["forward"] for answer in answers),
        "file_to_logits_ms_median": statistics.median(answer["all"] for answer in answers),
        "browser": browser,
        "environment": describe_environment(torch.device("cpu")),
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
