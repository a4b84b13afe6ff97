"""The network that comes with the package: small, read as any checkpoint, and used where none is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnet_train.jobs.evaluate import EvaluationOptions, evaluate_checkpoint
from resnet_train.runs.checkpoint import read_model
from resnet_train.runs.folder import find_checkpoint
from resnet_train.runs.restore import restore_model
from resnet_train.weights import SHIPPED, shipped_checkpoint
from tests.harness.cli import RunCli

CARD = shipped_checkpoint().with_name("README.md")
DATA = os.environ.get("CIFAR10_JPEG")  # CIFAR-10 as JPEG files of quality 75, in test/<class>/


def test_the_shipped_file_is_small_and_holds_float16() -> None:
    assert shipped_checkpoint().stat().st_size <= 600_000
    dtypes = {tensor.dtype for tensor in read_model(shipped_checkpoint()).weights.values()}
    assert dtypes == {torch.float16, torch.int64}


def test_the_shipped_weights_are_read_as_float32() -> None:
    network = restore_model(read_model(shipped_checkpoint()), shipped_checkpoint())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_card_states_the_size_of_the_file() -> None:
    assert f"{shipped_checkpoint().stat().st_size:,} bytes" in CARD.read_text(encoding="utf-8")


def test_the_name_stands_for_the_file_unless_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(Path(SHIPPED)) == shipped_checkpoint()
    Path(SHIPPED).touch()
    assert find_checkpoint(Path(SHIPPED)) == Path(SHIPPED)


def test_predict_without_a_checkpoint_uses_it_and_says_so(run_cli: RunCli, tmp_path: Path) -> None:
    Image.effect_noise((40, 30), 60).save(tmp_path / "a.png")
    (tmp_path / "photo").write_bytes((tmp_path / "a.png").read_bytes())  # a picture by its content
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "pictures" / "a.png")
    outcome = run_cli("resnet-predict", "photo", "pictures", "--csv", "--device", "cpu", cwd=tmp_path)
    assert outcome.code == 0
    assert outcome.stderr.splitlines()[0].startswith(f"using {SHIPPED}, the network that comes with the package")
    named = run_cli("resnet-predict", SHIPPED, "photo", "pictures", "--csv", "--device", "cpu", cwd=tmp_path)
    assert named.stdout == outcome.stdout
    assert "using" not in named.stderr


def test_best_needs_a_run_folder(run_cli: RunCli, tmp_path: Path) -> None:
    assert "--best needs a run folder" in run_cli("resnet-predict", "a.png", "--best", cwd=tmp_path).error


def test_info_describes_the_shipped_network(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-info", SHIPPED, cwd=tmp_path)
    assert outcome.code == 0
    assert "airplane, automobile" in outcome.stdout


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="CIFAR10_JPEG does not name the folder of the real images")
def test_the_card_states_the_accuracy_after_rounding() -> None:
    options = EvaluationOptions(data_dir=Path(str(DATA)), split="test", device="cpu")
    result = evaluate_checkpoint([shipped_checkpoint()], options)
    (stated, n), *_ = re.findall(r"\*\*(\d+\.\d+)%\*\* on the ([\d,]+) test images", CARD.read_text(encoding="utf-8"))
    assert (f"{result.n:,}", round(result.top1 * 100, 2)) == (n, pytest.approx(float(stated), abs=0.05))
