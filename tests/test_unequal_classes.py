"""Balanced class weights on classes of very unequal size: 100, 10 and 1 training images."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.harness.cli import RunCli

COUNTS = {"3": 100, "8": 10, "9": 1}
NUM_TEST = 60
SEEDS = range(5)
SETTINGS = ["--dataset", "folder", "--arch", "resnet8", "--image-size", "8", "--crop-padding", 1, "--flip", "none",
            "--batch-size", 37, "--epochs", 20, "--lr", 0.02, "--eval-every", 20, "--device", "cpu",
            "--no-tensorboard"]  # fmt: skip


def write_digits(folder: Path) -> None:
    """Write digits as pictures: of each class as many training images as `COUNTS` says, and 60 test images."""
    images, labels = load_digits(return_X_y=True)
    for name, count in COUNTS.items():
        pictures = (images[labels == int(name)].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        for split, chosen in (("train", pictures[:count]), ("test", pictures[-NUM_TEST:])):
            (folder / split / name).mkdir(parents=True)
            for number, picture in enumerate(chosen):
                Image.fromarray(picture).save(folder / split / name / f"{number}.png")


@pytest.mark.slow
def test_balanced_weights_raise_balanced_accuracy(run_cli: RunCli, tmp_path: Path) -> None:
    write_digits(tmp_path / "data")
    scores: dict[str, list[float]] = {}
    for seed in SEEDS:
        for kind in ("none", "balanced"):
            arguments = [*SETTINGS, "--seed", seed, "--class-weights", kind, "--name", f"{kind}-{seed}"]
            outcome = run_cli("resnet-train", *arguments, cwd=tmp_path)
            assert outcome.code == 0, outcome
            header, row = (
                line.split(",") for line in (tmp_path / f"runs/{kind}-{seed}/metrics.csv").read_text().split()[::20]
            )
            scores.setdefault(kind, []).append(float(row[header.index("test_balanced_accuracy")]))
    print(scores)
    assert statistics.mean(scores["balanced"]) > statistics.mean(scores["none"]) + 0.05
