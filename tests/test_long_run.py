"""Five hundred epochs: memory and open files stay constant, logs grow linearly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.cli import ON_DIGITS
from tests.harness.processes import needs_fork, run_fresh

EPOCHS = 500
MEBIBYTE = 1 << 20


@needs_fork
@pytest.mark.slow
def test_memory_is_constant_and_logs_linear_over_500_epochs(tmp_path: Path) -> None:
    arguments = [*ON_DIGITS, "--train-size", 64, "--batch-size", 32, "--threads", 1, "--log-every", 1, "--name", "x"]
    watch = tmp_path / "watch.jsonl"
    ended = run_fresh(*arguments, "--epochs", EPOCHS, cwd=tmp_path, watch=watch)
    assert ended.code == 0, ended
    seen = {record["epoch"]: record for record in map(json.loads, watch.read_text().splitlines())}
    assert len(seen) == EPOCHS
    print({epoch: seen[epoch] for epoch in (1, 50, 250, 500)})
    # 21 records an epoch, kept for the history in checkpoints, are some hundred bytes; a leaked batch is 25 KB.
    assert seen[500]["rss"] - seen[50]["rss"] < 8 * MEBIBYTE
    files = [record["files"] for record in seen.values()]
    assert max(files) <= min(files) + 1  # TensorBoard opens its file for each write
    for name in ("log", "events"):
        first, second = seen[250][name] - seen[1][name], seen[500][name] - seen[250][name]
        assert second == pytest.approx(first, rel=0.05), name
