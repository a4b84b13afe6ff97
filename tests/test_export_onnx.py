"""ONNX files: pictures in, the network's logits and calibrated probabilities out, for any number of pictures."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_train.data.pictures import read_image
from resnet_train.export import FORMATS, Source
from resnet_train.export.agreement import compare_outputs
from resnet_train.export.onnx_file import OPSET
from resnet_train.models import create_model
from resnet_train.records import About, Calibration
from resnet_train.runs.checkpoint import ModelCheckpoint, read_checkpoint, read_model, write_checkpoint
from tests.harness.cli import Outcome, RunCli
from tests.test_every_network import SMALLEST
from tests.test_export import export
from tests.test_export_hub import HOSTILE

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, Outcome], run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that holds run.onnx, of the run `trained`. Read only."""
    cwd = tmp_path_factory.mktemp("onnx")
    outcome = export(run_cli, trained[0], "-f", "onnx", cwd=cwd)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "top-1       equal on 40 of 40" in outcome.stdout
    return cwd


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Outcome]) -> Path:
    return trained[0] / "checkpoints" / "model.pt"


def random_source(arch: str, side: int, seed: int = 0, **options: Any) -> Source:
    """Return a network with random weights and running statistics, whose mean and deviation are of no data set."""
    torch.manual_seed(seed)
    network = create_model(arch, 3, **options).eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    about = About(
        arch=arch,
        arch_options=options,
        classes=["a", "b", "c"],
        image_size=side,
        mean=[0.1, 0.5, 0.7],
        std=[0.2, 0.3, 0.4],
        dataset="digits",
        title="none",
        fingerprint="",
    )
    checkpoint = ModelCheckpoint(about=about, config={}, environment={}, model=network.state_dict())
    return Source(checkpoint=checkpoint, network=network)


def assert_onnx_agrees(source: Source, path: Path) -> None:
    form = FORMATS["onnx"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = form.encode(source)
    assert isinstance(encoded, bytes)
    path.write_bytes(encoded)
    opened = form.open(path, source)
    assert opened is not None
    side = source.about.image_size
    images = np.random.default_rng(0).integers(0, 256, (7, 3, side, side), np.uint8)
    agreement = compare_outputs(source.compute_logits, opened.forward, images, opened.tolerance)
    assert agreement.holds, agreement
    assert agreement.num_equal == 7


def test_pictures_become_logits_and_calibrated_probabilities(exported: Path, model: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "run.onnx", providers=["CPUExecutionProvider"])
    checkpoint = read_model(model)
    assert checkpoint.calibration is not None
    ((name, kind, shape),) = [(i.name, i.type, i.shape) for i in session.get_inputs()]
    assert (name, kind, shape) == ("images", "tensor(uint8)", ["N", 3, 8, 8])
    for count in (1, 2, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), np.uint8)
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
        assert logits.shape == (count, 10)
        expected = torch.from_numpy(logits).double() / checkpoint.calibration.temperature
        torch.testing.assert_close(torch.from_numpy(probabilities).double(), expected.softmax(1), rtol=1e-5, atol=1e-6)


def test_the_example_in_the_documentation_runs(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "m10.onnx").write_bytes((exported / "run.onnx").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(tmp_path / "ship.jpg", exif=exif)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - what the page tells its readers to do
    expected = read_image(tmp_path / "ship.jpg", 8)
    assert np.abs(names["pixels"][0].astype(int) - expected).max() <= 4  # a JPEG is decoded at a smaller size
    assert len(re.findall(r"^\d +\d+\.\d%$", capsys.readouterr().out, re.MULTILINE)) == 3


def test_metadata_describe_the_network(exported: Path, model: Path) -> None:
    proto, checkpoint = onnx.load(exported / "run.onnx"), read_model(model)
    assert checkpoint.calibration is not None
    assert checkpoint.metrics is not None
    found = {entry.key: entry.value for entry in proto.metadata_props}
    assert found["arch"] == "resnet8"
    assert json.loads(found["classes"]) == checkpoint.about.classes
    assert json.loads(found["temperature"]) == checkpoint.calibration.temperature
    assert json.loads(found["known_from"]) == checkpoint.calibration.known_from
    assert json.loads(found["accuracy"])["test"] == checkpoint.metrics.scores["test"]["accuracy"]
    assert json.loads(found["mean"]) == checkpoint.about.mean
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [OPSET]


def test_the_file_names_no_source_code_of_this_machine(exported: Path) -> None:
    data = (exported / "run.onnx").read_bytes()
    assert b".py" not in data
    assert str(Path.home()).encode() not in data


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        pytest.param("resnet8", {"shortcut": "projection"}, marks=pytest.mark.slow),
        *(pytest.param(arch, {}, marks=pytest.mark.slow) for arch in SMALLEST.values()),
        *(pytest.param("resnet18", {"norm_order": order, "stem": "imagenet"}, marks=pytest.mark.slow)
          for order in ("conv-bn-relu", "conv-relu-bn")),
    ],
)  # fmt: skip
def test_onnx_computes_what_the_network_computes(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = random_source(arch, 32 if "stem" in options else 8, **options)
    assert_onnx_agrees(source, tmp_path / "x.onnx")


@pytest.mark.slow
def test_equal_networks_make_equal_files(tmp_path: Path) -> None:
    first, second = (FORMATS["onnx"]().encode(random_source("resnet8", 8)) for _ in range(2))
    assert first == second


def test_a_check_finds_every_changed_bit(exported: Path, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    data, path = (exported / "run.onnx").read_bytes(), tmp_path / "x.onnx"
    path.write_bytes(data)
    assert export(run_cli, model, "--check", path, cwd=tmp_path).code == 0
    for place in range(0, len(data), len(data) // 8):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        outcome = export(run_cli, model, "--check", path, cwd=tmp_path)
        assert (outcome.code, outcome.stderr.count("\n")) == (1, 1), (place, outcome)


def test_a_check_finds_weights_that_were_changed_with_the_digest(
    exported: Path, model: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    contents = read_checkpoint(model)
    contents["model"]["conv1.weight"] *= 1.01
    write_checkpoint(tmp_path / "other.pt", contents)
    outcome = export(run_cli, tmp_path / "other.pt", "--check", exported / "run.onnx", cwd=tmp_path)
    assert outcome.code == 1
    assert "run.onnx does not compute what the network computes: other classes for" in outcome.stderr


@pytest.mark.parametrize("part", ["classes", "known_from", "accuracy"])
def test_a_check_finds_other_metadata(part: str, exported: Path, model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(model)
    if part == "classes":
        contents["about"]["classes"].reverse()
    elif part == "known_from":
        contents["calibration"]["known_from"] += 0.01
    else:
        contents["metrics"]["scores"]["test"]["accuracy"] = 1.0
    write_checkpoint(tmp_path / "other.pt", contents)
    outcome = export(run_cli, tmp_path / "other.pt", "--check", exported / "run.onnx", cwd=tmp_path)
    assert outcome.code == 1
    assert f"run.onnx describes another network: its {part} differs" in outcome.stderr


def test_a_network_that_torch_cannot_export_is_named() -> None:
    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no\nway")

    source = random_source("resnet8", 8)
    odd = Source(checkpoint=source.checkpoint, network=Odd())
    with pytest.raises(ValueError, match=r"^resnet8 cannot be exported to ONNX: ") as caught:
        FORMATS["onnx"]().encode(odd)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_hostile_names_are_inert_in_the_metadata(tmp_path: Path) -> None:
    source = random_source("resnet8", 8)
    about = source.about.model_copy(update={"classes": HOSTILE[:3], "title": "".join(HOSTILE)})
    hostile = Source(checkpoint=source.checkpoint.model_copy(update={"about": about}), network=source.network)
    assert_onnx_agrees(hostile, tmp_path / "x.onnx")
    found = {entry.key: entry.value for entry in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert json.loads(found["classes"]) == HOSTILE[:3]
    assert found["title"].isprintable()


def test_the_exporter_leaves_logging_as_it_was(exported: Path) -> None:
    assert logging.getLogger("torch.onnx").level != logging.ERROR


def test_an_onnxscript_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript._framework_apis.torch_9_9'")

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(ValueError, match=r"does not work with torch .*torch_9_9.*: pip install --upgrade onnxscript$"):
        FORMATS["onnx"]().encode(random_source("resnet8", 8))


@pytest.mark.slow
def test_without_calibration_probabilities_are_the_softmax(tmp_path: Path) -> None:
    source = random_source("resnet8", 8)
    calibrated = Source(
        checkpoint=source.checkpoint.model_copy(
            update={"calibration": Calibration(temperature=100.0, known_from=0.0, num_images=1)}
        ),
        network=source.network,
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    found = []
    for one in (source, calibrated):
        session = onnxruntime.InferenceSession(FORMATS["onnx"]().encode(one), providers=["CPUExecutionProvider"])
        logits, probabilities = map(torch.from_numpy, session.run(None, {"images": images}))
        found.append(probabilities.amax())
        torch.testing.assert_close(probabilities, (logits / (100.0 if one is calibrated else 1.0)).softmax(1))
    assert found[1] < 0.5
