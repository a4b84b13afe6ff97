"""Values on which two ranks must agree: evaluations, batch norm, steps that are not finite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from resnet_train.runtime.distributed import Processes, join_processes
from tests.harness.processes import needs_fork, run_ranks
from tests.harness.trainers import assert_same_tensors, tiny_trainer

pytestmark = [
    needs_fork,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]


def observe(processes: Processes) -> dict[str, object]:
    """Return the results of one rank."""
    seen: dict[str, object] = {}
    trainer = tiny_trainer(processes=processes, epochs=1)
    trainer.fit()
    seen["own statistics"] = trainer.model.bn1.running_mean.clone()
    seen["loss"] = trainer.evaluate(0)[0]["test"].loss
    seen["model"] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.seed_step()
    seen["drawn"] = torch.rand(1).item()

    # Rank 1 alone sees a loss that is not finite, in step 1.
    for amp in ("off", "fp16"):
        trainer = tiny_trainer(processes=processes, epochs=1, amp=amp)
        batches = list(trainer.train_loader.epoch(0))
        trainer.train_step(batches[0])
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        factor = float("nan") if processes.rank == 1 else 1.0
        trainer.train_step(batches[1]._replace(images=batches[1].images * factor))
        after = dict(trainer.model.named_parameters())
        unchanged = all(torch.equal(after[name], before[name]) for name in before)
        seen[amp] = (trainer.read_sums()["bad_step"], trainer.sums.bad_step.item(), unchanged)
    return seen


def save_observations() -> None:
    """Save the results of this rank in the folder given on the command line."""
    with join_processes() as processes:
        torch.save(observe(processes), Path(sys.argv[1]) / f"{processes.rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return the results of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for ended in run_ranks(folder, cwd=folder, function="tests.test_ranks:save_observations"):
        assert ended.code == 0, ended.output
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]  # noqa: TID251 - our own


def test_both_ranks_evaluate_all_images_with_rank_0s_model(ranks):
    alone = tiny_trainer(epochs=1)
    alone.model.load_state_dict(ranks[0]["model"])
    expected = alone.evaluate(0)[0]["test"].loss
    assert [rank["loss"] for rank in ranks] == pytest.approx([expected, expected], rel=1e-5)


def test_both_ranks_share_weights_and_running_statistics(ranks):
    assert not torch.equal(ranks[0]["own statistics"], torch.zeros(16))
    assert_same_tensors(ranks[0]["model"], ranks[1]["model"])


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(ranks, amp):
    assert [rank[amp] for rank in ranks] == [(1.0, 1.0, True)] * 2


def test_dropout_differs_between_ranks(ranks):
    assert ranks[0]["drawn"] != ranks[1]["drawn"]
