"""`resnet-eval --report`: a page that needs nothing but itself, and shows the numbers of report.json."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from functools import reduce
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_train.config import TrainConfig, make_config, to_plain
from resnet_train.data.dataset import load_dataset
from resnet_train.evaluation.label_errors import find_label_errors
from resnet_train.evaluation.neighbors import compute_features, find_nearest
from resnet_train.jobs.report import encode_picture, training_command
from resnet_train.models import measure_complexity
from resnet_train.report.document import FORMATS
from resnet_train.report.figures import draw_confusion_matrix, draw_curves, draw_reliability, round_ticks
from resnet_train.report.page import FindingPictures, render_report
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from tests.harness.cli import Outcome, RunCli

HOSTILE = [
    "<script>alert(1)</script>",
    "\"' onload='alert(1)",
    "\u202egnp.exe\u2066",
    "</svg><img src=x onerror=alert(1)>",
    "עברית",
    "&lt;b&gt;",
    "a\x00b\x1b[31m\ud800",
    "x" * 300,
    "]]>-->",
    "",
]


class Page(HTMLParser):
    """The elements of a page, and the numbers in its `<data>` elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.numbers: list[tuple[str, str, str, str]] = []  # place, format, value, text
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br"}:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        tag, attributes = self._open[-1]
        self.texts[tag].append(data)
        if tag == "data":
            self.numbers.append((attributes["title"], attributes["class"], attributes["value"], data))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reported(trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a report on the digits, beside which is the table of predictions. Read only."""
    cwd = tmp_path_factory.mktemp("report")
    arguments = ["--report", "report", "--predictions", "all.csv", "--device", "cpu", "--corruptions"]
    outcome = run_cli("resnet-eval", trained[0], *arguments, "--unknown", "digits", cwd=cwd)
    assert outcome.code == 0, outcome
    return cwd / "report"


@pytest.fixture(scope="module")
def report(reported: Path) -> dict[str, Any]:
    return json.loads((reported / "report.json").read_text())


@pytest.fixture(scope="module")
def page(reported: Path) -> Page:
    return Page((reported / "report.html").read_text(encoding="utf-8"))


def without_pictures(report: dict[str, Any]) -> str:
    """Return the page of a report whose pictures are a gray pixel."""
    gray = encode_picture(np.full((3, 1, 1), 128, np.uint8))

    def pictures(name: str) -> list[FindingPictures]:
        return [FindingPictures(gray, gray, [gray] * len(finding["neighbors"])) for finding in report[name]]

    return render_report(report, pictures("mistakes"), pictures("label_errors"))


# --- Numbers ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_the_page_are_those_of_the_json(report: dict[str, Any], page: Page) -> None:
    assert len(page.numbers) > 200
    for place, kind, value, text in page.numbers:
        stored = reduce(lambda part, key: part[int(key) if isinstance(part, list) else key], place.split("."), report)
        assert float(value) == stored
        assert text == FORMATS[kind](stored)


def test_the_numbers_are_those_of_sklearn(report: dict[str, Any], trained: tuple[Path, Outcome]) -> None:
    from scipy.stats import binomtest
    from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

    from resnet_train.jobs.subject import load_subject

    # Evaluate without any code of the report.
    images = load_dataset("digits", "test", Path(), 8)
    assert images is not None
    subject = load_subject([trained[0] / "checkpoints" / "model.pt"], None, torch.device("cpu"))
    logits = subject.evaluate(images, None, 500).logits.double()
    labels, predicted = images.labels, logits.argmax(dim=1).numpy()

    found, close = report["evaluation"], {"rel": 0, "abs": 1e-12}
    assert found["top1"] == pytest.approx(accuracy_score(labels, predicted), **close)
    assert found["loss"] == pytest.approx(log_loss(labels, logits.softmax(dim=1).numpy()), abs=1e-6)
    assert report["confusion"] == confusion_matrix(labels, predicted, labels=range(10)).tolist()
    wilson = binomtest(int((labels == predicted).sum()), len(labels)).proportion_ci(method="wilson")
    assert found["ci95"] == pytest.approx([wilson.low, wilson.high], **close)

    # sklearn's value for what is not defined is our null.
    each = precision_recall_fscore_support(labels, predicted, labels=range(10), zero_division=np.nan)
    for key, values in zip(("precision", "accuracy", "f1"), each):
        ours = [np.nan if row[key] is None else row[key] for row in found["per_class"]]
        assert ours == pytest.approx(values.tolist(), nan_ok=True, **close)
    means = [report["mean_precision"], found["scores"]["balanced_accuracy"], found["scores"]["macro_f1"]]
    assert means == pytest.approx([np.nanmean(values) for values in each[:3]], **close)


def test_the_bins_add_up_to_the_calibration_error(report: dict[str, Any]) -> None:
    bins, n = report["bins"], report["evaluation"]["n"]
    assert sum(part["n"] for part in bins) == n
    assert sum(part["num_correct"] for part in bins) == np.trace(report["confusion"])
    gaps = [abs(part["n"] * part["mean_confidence"] - part["num_correct"]) for part in bins if part["n"]]
    assert sum(gaps) / n == pytest.approx(report["evaluation"]["calibration"]["ece"], abs=1e-12)
    assert all(part["low"] < part["mean_confidence"] <= part["high"] for part in bins if part["n"])


def test_the_json_has_what_json_prints(
    report: dict[str, Any], trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    outcome = run_cli("resnet-eval", trained[0], "--json", "--device", "cpu", cwd=tmp_path)
    printed, stored = json.loads(outcome.stdout), report["evaluation"]
    for key in printed.keys() - {"images_per_second", "robustness", "unknown", "report"}:
        assert printed[key] == stored[key]


def test_the_curves_are_the_columns_of_metrics_csv(report: dict[str, Any], trained: tuple[Path, Outcome]) -> None:
    header, *rows = [line.split(",") for line in (trained[0] / "metrics.csv").read_text().splitlines()]
    assert list(report["curves"]) == header
    assert report["curves"]["val_accuracy"] == [float(row[header.index("val_accuracy")]) for row in rows]


def test_a_state_brings_its_curves_with_it(trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes((trained[0] / "checkpoints" / "last.pt").read_bytes())
    (tmp_path / "model.pt").write_bytes((trained[0] / "checkpoints" / "model.pt").read_bytes())
    curves = []
    for name in ("last.pt", "model.pt"):
        assert run_cli("resnet-eval", name, "--report", "r", cwd=tmp_path).code == 0
        curves.append(json.loads((tmp_path / "r" / "report.json").read_text())["curves"])
    assert curves[0]["epoch"] == [1, 2]
    assert curves[1] == {}


# --- Findings --------------------------------------------------------------------------------------------------------


def test_mistakes_are_the_most_confident_wrong_images(report: dict[str, Any], reported: Path) -> None:
    lines = [line.split(",") for line in (reported.parent / "all.csv").read_text().splitlines()[1:]]
    wrong = sorted((-float(line[4]), line[0], line[1], line[3]) for line in lines if line[1] != line[3])
    found = [(one["image"], one["label"], one["predicted"]) for one in report["mistakes"]]
    assert sorted(found) == sorted(line[1:] for line in wrong[:12])
    confidences = [one["confidence"] for one in report["mistakes"]]
    assert confidences == sorted(confidences, reverse=True)


def test_label_errors_are_confident_disagreements() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.05, 0.95], [0.97, 0.03], [0.55, 0.45]])
    labels = torch.tensor([0, 0, 1, 0, 1, 1])
    # Mean self-confidence: 0.55 of class 0; 0.46 of class 1. Every wrong image reaches that of its predicted class.
    assert find_label_errors(probabilities, labels).tolist() == [4, 3, 5]
    sure = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.1, 0.9]])
    assert find_label_errors(sure, torch.tensor([0, 0, 1, 1])).tolist() == []


def test_label_errors_with_a_class_without_images() -> None:
    assert find_label_errors(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([0, 0])).tolist() == []


def test_a_flipped_label_comes_first() -> None:
    logits = 6 * torch.eye(5).repeat(40, 1) + torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5).repeat(40)
    labels[[17, 90]] = (labels[[17, 90]] + 1) % 5
    assert sorted(find_label_errors(logits.softmax(1), labels)[:2].tolist()) == [17, 90]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_nearest_do_not_depend_on_the_batches(size: int) -> None:
    features = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    positions, cosines = find_nearest(features[:4], features.split(size), 5)
    expected = (features[:4] @ features.T).topk(5, dim=1)
    assert torch.equal(positions, expected.indices)
    torch.testing.assert_close(cosines, expected.values)
    assert positions[:, 0].tolist() == [0, 1, 2, 3]


def test_features_are_the_inputs_of_the_last_layer() -> None:
    from resnet_train.data.batch import Batch
    from resnet_train.models import create_model

    model = create_model("resnet8", 10).eval()
    images = torch.randn(6, 3, 8, 8)
    batches = [Batch(part, torch.zeros(3, dtype=torch.int64)) for part in images.split(3)]
    features = torch.cat(list(compute_features(model, batches)))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    with torch.no_grad():
        difference = model(images) - model.linear.bias
        direction = torch.nn.functional.normalize(difference, dim=1)
        torch.testing.assert_close(torch.nn.functional.normalize(model.linear.weight @ features.T, dim=0).T, direction)


def test_neighbors_are_training_images_but_not_the_image_itself(
    report: dict[str, Any], trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    assert {len(one["neighbors"]) for one in report["mistakes"]} == {5}
    assert report["no_neighbors"] is None
    outcome = run_cli("resnet-eval", trained[0], "--split", "train", "--report", "r", cwd=tmp_path)
    assert outcome.code == 0, outcome
    found = json.loads((tmp_path / "r" / "report.json").read_text())["mistakes"]
    assert found
    for one in found:
        names = [near["image"] for near in one["neighbors"]]
        assert len(names) == len(set(names)) == 5
        assert one["image"] not in names


# --- The page --------------------------------------------------------------------------------------------------------


def check_inert(text: str) -> Page:
    """Check that a page has no scripts, loads nothing, and that its charts are well-formed; return its elements."""
    page = Page(text)
    policies = [attributes for tag, attributes in page.elements if attributes.get("http-equiv")]
    assert [one["content"] for one in policies] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "form", "base", "foreignobject"}
        assert not any(key.startswith("on") for key in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    assert "url(" not in text
    assert "@import" not in text
    for part in text.split("<svg")[1:]:
        ET.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>")
    return page


def test_the_page_is_one_file_that_loads_nothing(reported: Path) -> None:
    assert sorted(path.name for path in reported.iterdir()) == ["report.html", "report.json"]
    page = check_inert((reported / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.elements].count("svg") == 5
    assert (reported / "report.html").stat().st_size < 5e6


def test_hostile_names_are_text(report: dict[str, Any]) -> None:
    text = json.dumps(report)
    for name, hostile in zip(report["classes"], HOSTILE):
        text = text.replace(f'"{name}"', json.dumps(hostile))
    changed = json.loads(text)
    changed["evaluation"] |= {"title": HOSTILE[0], "checkpoint": HOSTILE[2], "arch": HOSTILE[3]}
    changed |= {"command": HOSTILE[3], "train_command": HOSTILE[1], "no_neighbors": HOSTILE[0]}
    changed["mistakes"][0]["image"] = HOSTILE[1]
    html = without_pictures(changed)
    page = check_inert(html)
    assert HOSTILE[0] in page.texts["bdi"]
    assert HOSTILE[1] in page.texts["bdi"]
    assert not set(html) & set("\u202e\u2066\x00\x1b\ud800")
    html.encode("utf-8")


def test_numbers_that_are_missing_are_dashes(report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    changed["evaluation"]["per_class"][0] |= {"precision": None, "f1": None}
    changed["evaluation"]["loss"] = changed["mean_precision"] = None
    assert "–" in Page(without_pictures(changed)).texts["b"]


def test_a_perfect_network_has_a_page(report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    changed["confusion"] = np.diag(np.full(10, 36)).tolist()
    changed |= {"mistakes": [], "label_errors": [], "num_label_errors": 0, "curves": {}, "train_command": None}
    for part in changed["bins"]:
        part["num_correct"] = part["n"]
    html = without_pictures(changed)
    check_inert(html)
    assert "There are no mistakes." in html
    assert "There are no confusions." in html
    assert 'id="curves"' not in html


def test_sections_that_were_not_asked_for_are_absent(report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    changed["evaluation"] |= {"robustness": [], "unknown": None}
    html = without_pictures(changed)
    for section in ("robustness", "unknown"):
        assert f'id="{section}"' not in html
        assert f'id="{section}"' in without_pictures(report)


@pytest.mark.parametrize("num_classes", [2, 20, 21, 1000])
def test_a_matrix_of_any_size_is_small(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, num_classes, (2, 10_000))
    matrix = np.zeros((num_classes, num_classes), int)
    np.add.at(matrix, tuple(cells), 1)
    chart = draw_confusion_matrix(matrix.tolist(), [f"class {i}" for i in range(num_classes)])
    root = ET.fromstring(chart)
    assert len(chart) < 500_000
    assert ("class 1" in "".join(root.itertext())) == (num_classes <= 20)


def test_the_colors_of_the_matrix_are_shares_of_rows() -> None:
    chart = draw_confusion_matrix([[8, 2], [1, 9]], ["a", "b"])
    cells = [part.partition('"')[0] for part in chart.split('fill-opacity="')[1:]]
    assert cells == ["0.800", "1.000", "0.500", "0.900"]


def test_a_bar_ends_at_the_accuracy_of_its_bin() -> None:
    part = {"low": 0.0, "high": 1.0, "n": 4, "num_correct": 1, "mean_confidence": 0.5}
    bars = list(ET.fromstring(draw_reliability([part])).iter("rect"))
    full = 280 - 34 - 12
    assert float(bars[0].attrib["height"]) == pytest.approx(full / 4, abs=0.01)
    assert float(bars[1].attrib["height"]) == pytest.approx(full / 4, abs=0.01)
    assert float(bars[1].attrib["y"]) < float(bars[0].attrib["y"])


@pytest.mark.parametrize("epochs", [[1], [1, 2, 3]])
def test_curves_leave_out_what_is_missing(epochs: list[int]) -> None:
    chart = draw_curves(epochs, {"train": [0.5] * len(epochs), "test": [None] * (len(epochs) - 1) + [0.7]}, "accuracy")
    assert "nan" not in chart
    assert chart.count("<circle") == 2


@pytest.mark.parametrize(("last", "ticks"), [(2, ["1", "2"]), (3, ["1", "2", "3"]), (5, ["1", "2", "3", "4", "5"])])
def test_the_axis_of_few_epochs_has_whole_numbers(last: int, ticks: list[str]) -> None:
    chart = draw_curves(range(1, last + 1), {"train": [0.5] * last}, "accuracy")
    assert re.findall(r'text-anchor="middle">([\d.]+)<', chart) == ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.871, 0.9), (0, 1e-7), (0.2, 2300)])
def test_ticks_are_round_and_within_the_bounds(low: float, high: float) -> None:
    ticks = round_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 * high <= tick <= high * (1 + 1e-9) for tick in ticks)


@pytest.mark.parametrize(("side", "kind", "kept"), [(32, "PNG", 32), (64, "PNG", 64), (224, "JPEG", 112)])
def test_large_pictures_are_scaled_down(side: int, kind: str, kept: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encode_picture(np.zeros((3, side, side), np.uint8)))
    with Image.open(tmp_path / "x") as picture:
        assert (picture.format, picture.size) == (kind, (kept, kept))


# --- Commands and files ----------------------------------------------------------------------------------------------


def test_the_command_makes_the_report(report: dict[str, Any], reported: Path, run_cli: RunCli) -> None:
    program, *arguments = shlex.split(report["command"])
    assert run_cli(program, *arguments, cwd=reported.parent).code == 0
    again = json.loads((reported / "report.json").read_text())
    again["date"] = report["date"]
    again["evaluation"]["images_per_second"] = report["evaluation"]["images_per_second"]
    assert again == report


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.1234567890123, "nesterov": True, "channels_last": False},
        {"schedule": "multi-step", "milestones": [60, 120.5], "epochs": 200},
        {"progressive_sizes": "16:0.4,24:0.7", "data_dir": "a folder/it's"},
        {"train_size": 100, "warmup_epochs": 0.5, "seed": 7},
        {"minutes": 3, "epochs": 200},
    ],
)
def test_the_training_command_has_these_settings(
    settings: dict[str, Any], run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config(settings)
    received: list[TrainConfig] = []
    monkeypatch.setattr("resnet_train.jobs.train.train", lambda config, *rest, **more: received.append(config))
    program, *arguments = shlex.split(training_command(config))
    run_cli(program, *arguments, cwd=tmp_path)
    assert [to_plain(one) for one in received] == [to_plain(config)]


def test_the_training_command_of_planned_minutes_has_their_steps() -> None:
    config = make_config({"minutes": 3, "epochs": 4, "epoch_steps": 50})
    assert training_command(config) == "resnet-train --epochs 4 --epoch-steps 50"


def test_a_folder_with_other_files_is_refused(trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    error = run_cli("resnet-eval", trained[0], "--report", ".", cwd=tmp_path).error
    assert error.endswith("holds notes.txt, which is not part of a report; choose another folder")
    error = run_cli("resnet-eval", trained[0], "--report", "notes.txt", cwd=tmp_path).error
    assert "cannot create the folder notes.txt" in error


@pytest.mark.parametrize("flags", [["--report", "a/b"], ["--report", f"a/{'b' * 300}"]])
def test_an_evaluation_that_fails_leaves_no_folder(flags: list[str], run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-eval", "none.pt", *flags, cwd=tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []


def test_without_training_images_the_page_says_so(
    trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    contents = read_checkpoint(trained[0] / "checkpoints" / "model.pt")
    contents["about"]["fingerprint"] = "of other images"
    write_checkpoint(tmp_path / "model.pt", contents)
    assert run_cli("resnet-eval", "model.pt", "--report", "r", cwd=tmp_path).code == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert "does not hold the images that the network was trained on" in report["no_neighbors"]
    assert {len(one["neighbors"]) for one in report["mistakes"]} == {0}
    assert "There are no training images here" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_an_ensemble_with_tta_has_a_report(trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path: Path) -> None:
    best = trained[0] / "checkpoints" / "best.pt"
    outcome = run_cli("resnet-eval", trained[0], best, "--tta", "flip", "--report", "r", cwd=tmp_path)
    assert outcome.code == 0, outcome
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    single = measure_complexity("resnet8", 10, 8)
    assert report["cost"] == {"params": 2 * single.params, "macs": 4 * single.macs}
    assert report["curves"] == {}
    html = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "The probabilities of 2 checkpoints are averaged. Test-time augmentation: flip." in html


# --- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    from shutil import which

    chromium, driver = which("chromium") or which("google-chrome"), which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


@pytest.mark.browser
@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page(
    width: int, hostile: bool, browser: Any, reported: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    path = reported / "report.html"
    if hostile:
        text = json.dumps(report)
        for name, other in zip(report["classes"], HOSTILE):
            text = text.replace(f'"{name}"', json.dumps(other))
        path = tmp_path / "report.html"
        path.write_text(without_pictures(json.loads(text)), encoding="utf-8")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("performance")
    browser.get(path.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
