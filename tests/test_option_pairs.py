"""Every pair of option values works together: one short run for each row of a pairwise covering table."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from resnet_train.config import make_config
from resnet_train.jobs.train import train

VALUES = {
    "arch": ["resnet18", "resnet50"],
    "stem": ["cifar", "imagenet"],
    "norm_order": ["conv-bn-relu", "conv-relu-bn"],
    "zero_init_residual": [False, True],
    "drop_path": [0.0, 0.3],
    "optimizer": ["sgd", "adamw", "muon"],
    "schedule": ["cosine", "one-cycle", "multi-step", "step", "constant"],
    "warmup_epochs": [None, 0.5],
    "no_decay_norm_bias": [False, True],
    "ema_decay": [0.0, 0.9],
    "accumulate": [1, 2],
    "amp": ["off", "bf16"],
    "clip_grad": [0.0, 1.0],
    "label_smoothing": [0.0, 0.1],
    "bn_momentum": [0.1, 0.4],
    "flip": ["random", "alternating", "none"],
    "padding_mode": ["zeros", "reflect"],
    "cutout": [0, 8],
    "random_erasing": [0.0, 0.5],
    "trivial_augment": [False, True],
    "mixup": [0.0, 0.5],
    "cutmix": [0.0, 1.0],
    "val_size": [0, 40],
    "channels_last": [True, False],
    "deterministic": [False, True],
}


def covering_table() -> list[dict]:
    """Return rows that cover every pair of option values, found greedily among random candidates."""
    rng = np.random.default_rng(0)
    names = list(VALUES)
    missing = {
        (a, i, b, j)
        for a, b in combinations(range(len(names)), 2)
        for i in range(len(VALUES[names[a]]))
        for j in range(len(VALUES[names[b]]))
    }
    rows = []
    while missing:
        candidates = [[int(rng.integers(len(VALUES[name]))) for name in names] for _ in range(60)]
        a, i, b, j = next(iter(sorted(missing)))
        for candidate in candidates:
            candidate[a], candidate[b] = i, j
        new = [{(x, c[x], y, c[y]) for x, y in combinations(range(len(names)), 2)} & missing for c in candidates]
        best = max(range(len(candidates)), key=lambda k: len(new[k]))
        missing -= new[best]
        rows.append({name: VALUES[name][candidates[best][k]] for k, name in enumerate(names)})
    return rows


TABLE = covering_table()


def test_the_table_is_small_and_covers_every_pair():
    assert len(TABLE) < 40
    for a, b in combinations(VALUES, 2):
        assert {(row[a], row[b]) for row in TABLE} == {(x, y) for x in VALUES[a] for y in VALUES[b]}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(TABLE)))
def test_pair(number, tmp_path):
    common = {"dataset": "digits", "train_size": 32, "batch_size": 16, "epochs": 1, "image_size": 32, "lr": 0.01}
    config = make_config({**common, **TABLE[number], "output_dir": str(tmp_path), "tensorboard": False})
    result = train(config)
    assert result.final.step == 2
    assert np.isfinite(result.final.scores["train"]["loss"])
