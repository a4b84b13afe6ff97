"""Calibration: the error and its interval, temperatures, the score of unknown images, and what checkpoints store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_train.evaluation.calibration import (
    calibrate,
    calibration_error,
    calibration_interval,
    cross_calibrate,
    fit_calibration,
    fit_temperature,
    known_scores,
)
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.evaluation.metrics import compute_scores
from resnet_train.jobs.trust import measure_calibration
from resnet_train.records import Calibration
from resnet_train.runs.checkpoint import read_checkpoint, read_model, write_checkpoint
from tests.harness.cli import SMALL, Outcome, RunCli


def draw_labels(logits: torch.Tensor) -> torch.Tensor:
    """Return labels that these logits are calibrated for."""
    return torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]


def overconfident(n: int = 4000, factor: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that are `factor` times too large, and labels."""
    logits = 2 * torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    return factor * logits, draw_labels(logits)


def evaluation_of(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    return Evaluation(loss=1.0, logits=logits, labels=labels)


def test_the_error_is_the_mean_gap_of_the_bins() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 0, 1])
    # Bins of 1/15: 0.9 and 0.9 with one right, 0.6 right, 0.7 right.
    assert calibration_error(probabilities, labels) == pytest.approx((abs(1.8 - 1) + 0.4 + 0.3) / 4, abs=1e-6)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_the_ends_of_the_scale_have_bins(confidence: float) -> None:
    probabilities = torch.tensor([[confidence, 0.0]])
    assert calibration_error(probabilities, torch.tensor([0])) == pytest.approx(1 - confidence)


def test_ece_is_a_metric_of_the_table() -> None:
    logits, labels = overconfident(200)
    assert compute_scores(evaluation_of(logits, labels))["ece"] == calibration_error(logits.softmax(1), labels)


def test_the_interval_of_a_wrong_scale_covers_its_error() -> None:
    logits, labels = overconfident(100_000)
    truth = calibration_error(logits.softmax(1), labels)
    part = logits[:2000].softmax(1), labels[:2000]
    low, high = calibration_interval(*part)
    assert 0 < low < truth < high < 2 * truth
    assert (low, high) == calibration_interval(*part)


def test_the_temperature_undoes_the_scale() -> None:
    logits, labels = overconfident(factor=3)
    assert fit_temperature(logits, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(logits / 6, labels) == pytest.approx(0.5, rel=0.05)


def test_few_images_make_no_network_certain_or_ignorant() -> None:
    labels = torch.arange(20) % 5
    logits = 4.0 * torch.nn.functional.one_hot(labels, 5)  # each has a probability of 0.93
    # The minimum over t of 20 · log(1 + 4 · exp(-4 / t)) + log(t)² / (2 · 0.5²).
    assert fit_temperature(logits, labels) == pytest.approx(0.69604, rel=1e-4)
    assert 1 < fit_temperature(logits, (labels + 1) % 5) < 5


def test_calibration_keeps_the_ranking() -> None:
    logits, _ = overconfident(50)
    probabilities = calibrate(logits, 3.0)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(probabilities.argsort(1), logits.argsort(1))


def test_each_half_has_the_temperature_of_the_other() -> None:
    logits, labels = overconfident(400)
    probabilities, temperatures = cross_calibrate(logits, labels)
    half = torch.from_numpy(np.random.default_rng(0).permutation(400))[:200]
    rest = torch.tensor(sorted(set(range(400)) - set(half.tolist())))
    expected = [fit_temperature(logits[part], labels[part]) for part in (rest, half)]
    assert temperatures == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(probabilities[half], calibrate(logits[half], temperatures[0]))
    torch.testing.assert_close(probabilities[rest], calibrate(logits[rest], temperatures[1]))


def test_two_folds_halve_the_error_of_images_they_did_not_see() -> None:
    result = measure_calibration(evaluation_of(*overconfident()), None, "test")
    assert result.calibrated_ece is not None
    assert result.calibrated_ece < result.ece / 2
    assert (result.n, result.fitted_on) == (4000, "the other half of the test images")
    assert len(result.temperatures) == 2


def test_a_stored_temperature_is_used_as_it_is() -> None:
    logits, labels = overconfident()
    stored = Calibration(temperature=2.0, known_from=0.0, num_images=50)
    result = measure_calibration(evaluation_of(logits, labels), stored, "test")
    assert (result.temperatures, result.fitted_on) == ((2.0,), "50 validation images")
    assert result.calibrated_ece == calibration_error(calibrate(logits, 2.0), labels)
    assert measure_calibration(evaluation_of(logits, labels), stored, "val").fitted_on.endswith("which these are")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_give_a_result(n: int) -> None:
    logits, labels = overconfident(n)
    result = measure_calibration(evaluation_of(logits, labels), None, "test")
    assert (result.calibrated_ece is None) == (n == 1)


def test_95_percent_of_the_validation_images_are_known() -> None:
    logits, labels = overconfident(1000)
    calibration = fit_calibration(evaluation_of(logits, labels))
    assert calibration is not None
    assert (known_scores(logits) >= calibration.known_from).double().mean() == pytest.approx(0.95, abs=0.001)
    assert (calibration.num_images, calibration.temperature) == (1000, fit_temperature(logits, labels))


def test_outputs_that_are_not_finite_have_no_calibration() -> None:
    logits, labels = overconfident(10)
    logits[3, 2] = float("nan")
    assert fit_calibration(evaluation_of(logits, labels)) is None
    assert measure_calibration(evaluation_of(logits, labels), None, "test").calibrated_ece is None


# --- In checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pt", "best.pt"])
def test_a_run_with_validation_images_stores_a_calibration(name: str, trained: tuple[Path, Outcome]) -> None:
    calibration = read_model(trained[0] / "checkpoints" / name).calibration
    assert calibration is not None
    assert calibration.num_images == 60


def test_a_run_without_validation_images_stores_none(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("resnet-train", *SMALL, "--no-tensorboard", "--name", "x", cwd=tmp_path).code == 0
    assert read_model(tmp_path / "runs" / "x" / "checkpoints" / "model.pt").calibration is None


def test_files_of_older_versions_have_no_calibration(trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    contents = read_checkpoint(trained[0] / "checkpoints" / "model.pt")
    del contents["calibration"]
    write_checkpoint(tmp_path / "old.pt", contents)
    assert read_model(tmp_path / "old.pt").calibration is None


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"temperature": float("inf")}, {"known_from": float("nan")}, {"num_images": 0}]
)
def test_a_wrong_calibration_is_refused(wrong: dict[str, float], trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    contents = read_checkpoint(trained[0] / "checkpoints" / "model.pt")
    contents["calibration"] |= wrong
    write_checkpoint(tmp_path / "model.pt", contents)
    with pytest.raises(ValueError, match=f"calibration.{next(iter(wrong))}"):
        read_model(tmp_path / "model.pt")
