"""The training loop: it learns, resumes exactly, stops on signals and on losses that are not finite."""

from __future__ import annotations

import copy
import signal
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_train.data.batch import Batch
from resnet_train.loggers.base import Logger
from resnet_train.models import create_model
from resnet_train.optim.state import load_optimizer_state
from resnet_train.runtime.distributed import ALONE, Processes
from resnet_train.training import signals
from resnet_train.training.signals import Interrupted
from resnet_train.training.sums import RunningSums, count_correct
from resnet_train.training.trainer import NotFinite
from tests.harness.trainers import CPU, NUM_CLASSES, assert_same_tensors, tiny_trainer


class MemorySaver:
    """Keep a copy of what is saved, as a file would."""

    def __init__(self) -> None:
        self.states, self.best = [], []

    def save_state(self, state):
        self.states.append(copy.deepcopy(state))

    def save_best(self, weights, split, record, calibration):
        self.best.append((split, record.epoch))


class SignalAt(Logger):
    """Raise a signal in this process after a number of steps."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.left, self.number = step, number

    def tick(self, step) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)


def poison_at(step: int, model: nn.Module) -> None:
    """Make the logits NaN in one training step."""
    count = 0

    def hook(module, inputs, output):
        nonlocal count
        if module.training:
            count += 1
            return output * float("nan") if count == step + 1 else output
        return output

    model.register_forward_hook(hook)


def test_training_learns_and_keeps_its_history():
    trainer = tiny_trainer(epochs=4)
    final = trainer.fit()
    assert [record.epoch for record in trainer.progress.history] == [1, 2, 3, 4]
    assert final.step == 24
    assert final.scores["train"]["loss"] < trainer.progress.history[0].scores["train"]["loss"]
    assert final.scores["test"]["accuracy"] > 0.9


def test_a_step_is_the_textbook_step():
    trainer = tiny_trainer(label_smoothing=0.1)
    model = copy.deepcopy(trainer.model)
    batch = next(trainer.train_loader.epoch(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loss = F.cross_entropy(model(batch.images), batch.labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    trainer.train_step(batch)
    for ours, reference in zip(trainer.model.parameters(), model.parameters()):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-7)
    assert trainer.read_sums()["loss"] == pytest.approx(loss.item() * 8)


def test_clipping_bounds_the_gradient_and_reports_its_norm():
    seen = []
    trainer = tiny_trainer(clip_grad=1e-3)
    step = trainer.optimizer.step

    def spy():
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.parameters]).item())
        step()

    trainer.optimizer.step = spy
    trainer.train_step(next(trainer.train_loader.epoch(0)))
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)
    assert trainer.read_sums()["grad_norm"] > 1e-2


def test_same_seed_gives_the_same_bits():
    first, second, other = (tiny_trainer(seed=seed) for seed in (0, 0, 1))
    for trainer in (first, second, other):
        trainer.fit()
    assert_same_tensors(first.state(), second.state())
    assert first.progress.history != other.progress.history


RESUME_CASES = {
    "sgd": {},
    "averaged weights": {"ema_decay": 0.9},
    "mixup and cutmix": {"mixup": 0.4, "cutmix": 1.0},
    "accumulation": {"accumulate": 4},
    "bf16": {"amp": "bf16"},
    "adamw": {"optimizer": "adamw", "nesterov": False},
    "muon": {"optimizer": "muon", "nesterov": False},
    "everything": {
        "ema_decay": 0.9,
        "mixup": 0.4,
        "cutmix": 1.0,
        "accumulate": 2,
        "optimizer": "muon",
        "nesterov": False,
        "clip_grad": 0.5,
    },
}


@pytest.mark.parametrize("stop_after", [1, 5, 6, 7, 11, 12, 17])
def test_resumed_equals_uninterrupted_bit_for_bit(stop_after):
    check_exact_resume(stop_after, {})


@pytest.mark.parametrize("settings", RESUME_CASES.values(), ids=RESUME_CASES)
def test_resume_is_exact_with_every_part_of_the_state(settings):
    check_exact_resume(8, settings)


def test_resume_is_exact_with_drop_path():
    check_exact_resume(8, {"arch": "resnet18", "drop_path": 0.5})


def check_exact_resume(stop_after, settings, make_model=lambda: None):
    """Stop after a step, load the state into a new trainer with other weights, and compare the final states."""
    whole = tiny_trainer(epochs=3, model=make_model(), **settings)
    whole.fit()
    saver = MemorySaver()
    stopped = tiny_trainer(epochs=3, model=make_model(), saver=saver, logger=SignalAt(stop_after), **settings)
    with pytest.raises(Interrupted) as stop:
        stopped.fit()
    assert stop.value.signal_number == signal.SIGTERM
    assert saver.states[-1].step == stop_after
    resumed = tiny_trainer(epochs=3, model=make_model(), **settings)
    with torch.no_grad():
        for tensor in resumed.model.state_dict().values():
            tensor.zero_()
    resumed.load_state(saver.states[-1])
    resumed.fit()
    assert_same_tensors(resumed.state(), whole.state())


def test_ctrl_c_saves_and_exits_130():
    saver = MemorySaver()
    with pytest.raises(Interrupted) as stop:
        tiny_trainer(saver=saver, logger=SignalAt(2, signal.SIGINT)).fit()
    assert stop.value.signal_number == signal.SIGINT
    assert saver.states[-1].step == 2


def test_a_second_ctrl_c_interrupts_at_once_unless_it_is_an_echo(monkeypatch):
    class Twice(Logger):
        def tick(self, step):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        tiny_trainer(logger=Twice()).fit()
    monkeypatch.setattr(signals, "ECHO_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(logger=Twice()).fit()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this system")
def test_sigusr1_saves_after_the_step_and_training_continues():
    class Asking(Logger):
        steps = 0

        def tick(self, step):
            self.steps += 1
            if self.steps == 2:
                signal.raise_signal(signal.SIGUSR1)

    saver = MemorySaver()
    tiny_trainer(epochs=1, logger=Asking(), saver=saver).fit()
    assert [state.step for state in saver.states] == [2, 6]


@pytest.mark.parametrize(
    ("minutes", "seconds_before", "saved"),
    [
        (10, 0, [2, 4, 6]),  # 30 s
        (10, 1000, [3, 6]),  # 5 % of 1060 s
        (1, 9000, [3, 6]),  # a minute
        (0, 9000, [6]),  # the end only
    ],
)
def test_a_state_is_saved_when_the_last_one_is_old(minutes, seconds_before, saved, monkeypatch):
    saver = MemorySaver()
    trainer = tiny_trainer(epochs=1, saver=saver, save_every=None, save_every_minutes=minutes)
    start = trainer.saved_at
    trainer.started_at = start - seconds_before
    monkeypatch.setattr(time, "monotonic", lambda: start + 20 * trainer.progress.step)
    trainer.fit()
    monkeypatch.undo()
    assert list(dict.fromkeys(state.step for state in saver.states)) == saved


def test_a_save_that_is_due_when_an_epoch_ends_is_made_there(monkeypatch):
    saver = MemorySaver()
    trainer = tiny_trainer(epochs=4, saver=saver, save_every=None)
    start = trainer.saved_at
    monkeypatch.setattr(time, "monotonic", lambda: start + 20 * len(trainer.progress.history))
    trainer.fit()
    monkeypatch.undo()
    assert [(state.step, state.epoch) for state in saver.states] == [(12, 2), (24, 4)]


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    tiny_trainer(epochs=1).fit()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_step_changes_nothing_and_stops_the_run(fused):
    trainer = tiny_trainer(log_every=4)
    if not fused:
        parameters = trainer.model.parameters()
        trainer.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, fused=False)
    batches = list(trainer.train_loader.epoch(0))
    for batch in batches[:2]:
        trainer.train_step(batch)
    weights = copy.deepcopy(dict(trainer.model.named_parameters()))
    momentum = copy.deepcopy(trainer.optimizer.state_dict())
    trainer.train_step(batches[2]._replace(images=batches[2].images * float("nan")))
    trainer.train_step(batches[3])  # the host has not looked yet: this one is not applied either
    assert_same_tensors(dict(trainer.model.named_parameters()), weights)
    assert_same_tensors(trainer.optimizer.state_dict()["state"], momentum["state"])
    with pytest.raises(NotFinite, match=r"step 2 \(lr 0\.04"):
        trainer.log_step()


def test_not_finite_stops_by_the_next_read_and_saves_nothing_bad():
    saver = MemorySaver()
    trainer = tiny_trainer(saver=saver, log_every=2)
    poison_at(9, trainer.model)
    with pytest.raises(NotFinite, match="step 9"):
        trainer.fit()
    assert trainer.progress.step == 10
    assert [state.epoch for state in saver.states] == [1]


def test_best_is_chosen_on_the_validation_split_if_there_is_one():
    saver = MemorySaver()
    trainer = tiny_trainer(epochs=2, saver=saver)
    trainer.eval_loaders = {"val": trainer.eval_loaders["test"], "test": trainer.eval_loaders["test"]}
    trainer.fit()
    assert {split for split, _ in saver.best} == {"val"}


def test_evaluation_and_saves_are_at_intervals_and_at_the_end():
    saver = MemorySaver()
    trainer = tiny_trainer(epochs=5, saver=saver, eval_every=2, save_every=3)
    trainer.fit()
    evaluated = [record.epoch for record in trainer.progress.history if "test" in record.scores]
    assert evaluated == [2, 4, 5]
    assert [state.epoch for state in saver.states] == [3, 5]


def test_a_short_run_is_saved_at_its_end_only():
    saver = MemorySaver()
    tiny_trainer(epochs=5, saver=saver, save_every=None).fit()
    assert [state.epoch for state in saver.states] == [5]


def test_loading_a_state_keeps_the_choice_of_fused_kernels():
    model = nn.Linear(2, NUM_CLASSES)
    fused, plain = (torch.optim.SGD(model.parameters(), lr=0.1, fused=choice) for choice in (True, False))
    load_optimizer_state(plain, fused.state_dict())
    assert plain.param_groups[0]["fused"] is False


def test_a_mixed_image_counts_by_the_share_of_its_label():
    logits = torch.eye(3)[[0, 1, 2, 2]]
    labels, partners = torch.tensor([0, 0, 0, 2]), torch.tensor([1, 1, 1, 2])
    weights = torch.tensor([0.75, 0.75, 0.75, 0.3])
    mixed = Batch(images=torch.zeros(4, 3, 8, 8), labels=labels, partner_labels=partners, weights=weights)
    assert count_correct(logits, mixed).item() == pytest.approx(0.75 + 0.25 + 0 + 1)
    plain = Batch(images=torch.zeros(4, 3, 8, 8), labels=labels)
    assert count_correct(logits, plain).item() == 2


def test_the_accuracy_of_a_mixed_batch_reaches_the_sums():
    trainer = tiny_trainer(mixup=1.0, cutmix=1.0)
    batch = next(trainer.train_loader.epoch(0))
    with torch.no_grad():
        expected = count_correct(copy.deepcopy(trainer.model).train()(batch.images), batch)
    trainer.train_step(batch)
    assert trainer.read_sums()["correct"] == pytest.approx(expected.item(), abs=1e-5)


def test_gradients_that_overflowed_have_no_part_in_the_mean_norm():
    sums = RunningSums(CPU)
    one, good = torch.tensor(1.0), torch.tensor(-1.0)
    for norm in (2.0, float("inf"), 4.0, float("nan")):
        sums.add(one, one, 8, torch.tensor(norm), good)
    values = sums.read(ALONE)
    assert (values["grad_norm"], values["steps"]) == (6.0, 2.0)
    assert (values["loss"], values["correct"], values["images"], values["bad_step"]) == (32.0, 4.0, 32.0, -1.0)


def test_an_epoch_whose_gradients_all_overflowed_has_a_norm_of_0():
    trainer = tiny_trainer(epochs=1)
    for _ in range(6):
        trainer.sums.add(torch.tensor(1.0), torch.tensor(1.0), 8, torch.tensor(float("inf")), torch.tensor(-1.0))
    trainer.progress.step, trainer.epoch_seconds = 6, 1.0
    trainer.record(0, trainer.evaluate(0)[0], 0.0)
    assert trainer.progress.history[-1].grad_norm == 0


def test_resume_is_exact_with_dropout():
    def dropout_model():
        torch.manual_seed(0)
        model = create_model("resnet8", NUM_CLASSES)
        model.linear = nn.Sequential(nn.Dropout(0.5), model.linear)
        return model

    check_exact_resume(8, {}, dropout_model)


def test_dropout_depends_on_seed_and_step_alone():
    def draw(seed, step):
        trainer = tiny_trainer(seed=seed)
        trainer.progress.step = step
        trainer.seed_step()
        return torch.rand(4)

    assert torch.equal(draw(0, 3), draw(0, 3))
    assert not torch.equal(draw(0, 3), draw(0, 4))
    assert not torch.equal(draw(0, 3), draw(1, 3))
    assert not torch.equal(draw(0, 1), draw(1, 0))


@pytest.mark.parametrize("stop_after", [3, 6, 8])
def test_an_epochs_time_includes_the_part_before_a_stop(stop_after):
    class Timings(Logger):
        def __init__(self):
            self.seen = []

        def log(self, scalars, *, step, epoch=None):
            if epoch is not None:
                self.seen.append((scalars["timing/train_seconds"], scalars["timing/images_per_second"]))

    saver, timings = MemorySaver(), Timings()
    with pytest.raises(Interrupted):
        tiny_trainer(saver=saver, logger=SignalAt(stop_after)).fit()
    state = saver.states[-1]
    assert state.epoch_seconds > 0
    state.epoch_seconds += 1000
    resumed = tiny_trainer(logger=timings)
    resumed.load_state(state)
    resumed.fit()
    (seconds, rate), *later = timings.seen
    assert seconds > 1000
    assert rate == pytest.approx(48 / seconds)
    assert all(seconds < 1000 for seconds, _ in later)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["linear.weight", "bn1.running_var"])
def test_weights_that_are_not_finite_end_the_run_unsaved(tensor, value):
    class Spoil(Logger):
        """Spoils the network after the last step of an epoch, where no loss can show it."""

        steps = 0

        def tick(self, step):
            self.steps += 1
            if self.steps == 12:
                trainer.model.state_dict()[tensor].view(-1)[0] = value

    saver = MemorySaver()
    trainer = tiny_trainer(epochs=3, saver=saver, logger=Spoil())
    with pytest.raises(NotFinite, match="weights or running statistics are not finite at step 12"):
        trainer.fit()
    assert [state.epoch for state in saver.states] == [1]
    assert all(epoch == 1 for _, epoch in saver.best)


def test_a_stopped_run_never_saves_weights_that_are_not_finite():
    class SpoilAndStop(SignalAt):
        def tick(self, step):
            if self.left == 1:
                trainer.model.linear.weight.data[0] = float("nan")
            super().tick(step)

    saver = MemorySaver()
    trainer = tiny_trainer(saver=saver, logger=SpoilAndStop(3))
    with pytest.raises(NotFinite):
        trainer.fit()
    assert saver.states == []


def test_sums_are_restored_with_another_number_of_ranks():
    rows = [[1.0, 2.0, 3.0, 9.0, 1.0, 7.0, 8.0, -1.0], [10.0, 20.0, 30.0, 9.0, 1.0, 7.0, 8.0, -1.0]]

    def loaded(rank: int, num_ranks: int) -> list[float]:
        sums = RunningSums(CPU)
        sums.load(rows, Processes(rank, num_ranks))
        return sums.values.tolist()

    assert [loaded(rank, 2) for rank in range(2)] == rows
    assert loaded(0, 1) == [11.0, 22.0, 33.0, *rows[0][3:]]
    assert loaded(0, 3) == [11.0, 22.0, 33.0, *rows[0][3:]]
    assert loaded(2, 3) == [0.0, 0.0, 0.0, *rows[0][3:]]
