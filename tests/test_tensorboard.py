"""TensorBoard event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from resnet_train.loggers.tensorboard import TensorBoard
from tests.harness.cli import SMALL, Outcome, RunCli
from tests.harness.records import epoch_scalars, make_info, make_record, step_scalars

STEPS_PER_EPOCH = 2
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def files_in_the_order_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """File names begin with the second they are made in; a reader sorts by it, and these runs take less than one."""
    seconds = itertools.count(2_000_000_000)

    class Clock:
        def time(self) -> int:
            return next(seconds)

    monkeypatch.setattr(event_file_writer, "time", Clock())


def read_events(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a folder, all of it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def scalars_of(events: EventAccumulator) -> dict[str, dict[int, float]]:
    """Tag to step to value; each step must be there once."""
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, points in found.items():
        steps = [point.step for point in points]
        assert steps == sorted(set(steps)), f"{tag} has the steps {steps}"
    return {tag: {point.step: point.value for point in points} for tag, points in found.items()}


def pictures_of(events: EventAccumulator) -> list[tuple[int, int, int]]:
    """Step, width and height of each picture of augmented images."""
    return [(event.step, event.width, event.height) for event in events.Images("augmented training images")]


def texts_of(events: EventAccumulator) -> dict[str, list[str]]:
    """What is shown as text, by tag."""
    tags = events.PluginTagToContent("text")
    return {tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)] for tag in tags}


def log_run(folder: Path, steps: range, value: float, images: torch.Tensor | None = None) -> None:
    """Log these steps, and the epochs that end among them."""
    logger = TensorBoard(folder)
    logger.start(make_info(steps_per_epoch=STEPS_PER_EPOCH, first_step=steps.start))
    if images is not None:
        logger.log_images("augmented training images", images, step=0)
    for step in range(steps.start + 1, steps.stop + 1):
        logger.log(step_scalars(value), step=step)
        if step % STEPS_PER_EPOCH == 0:
            record = make_record(step // STEPS_PER_EPOCH, train=(value, 0.5), val=(value, 0.6), test=(value, 0.7))
            logger.log(epoch_scalars(record), step=step, epoch=record.epoch)
    logger.flush()
    logger.close()


@pytest.fixture(scope="module")
def trained_events(trained: tuple[Path, Outcome]) -> EventAccumulator:
    """The events of a whole run."""
    return read_events(trained[0])


def test_a_run_has_a_curve_of_every_number(trained_events: EventAccumulator) -> None:
    scalars = scalars_of(trained_events)
    by_epoch = {f"{kind}/{split}" for kind in ("loss", "accuracy") for split in SPLITS}
    by_epoch |= {"epoch/lr", "epoch/grad_norm", "timing/images_per_second"}
    by_step = {"step/loss", "step/grad_norm", "step/lr", "step/train_loss", "step/train_accuracy"}
    assert by_epoch | by_step <= set(scalars)
    assert {tag: list(scalars[tag]) for tag in by_epoch} == {tag: [2, 4] for tag in by_epoch}
    assert {tag: list(scalars[tag]) for tag in by_step} == {tag: [1, 2, 3, 4] for tag in by_step}


def test_curves_have_the_values_of_the_records(trained: tuple[Path, Outcome], trained_events: EventAccumulator) -> None:
    with (trained[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scalars = scalars_of(trained_events)
    for row in rows:
        for split, kind in itertools.product(SPLITS, ("loss", "accuracy")):
            value = scalars[f"{kind}/{split}"][int(row["step"])]
            assert value == pytest.approx(float(row[f"{split}_{kind}"]), rel=1e-6)


def test_the_first_batch_is_shown_and_the_config_as_a_table(trained_events: EventAccumulator) -> None:
    assert trained_events.Tags()["images"] == ["augmented training images"]
    # 32 pictures of 8×8, four times as large, in 2 rows of 16, with 2 pixels around each
    assert pictures_of(trained_events) == [(0, 16 * 34 + 2, 2 * 34 + 2)]
    ((tag, (table,)),) = texts_of(trained_events).items()
    assert tag.startswith("config")
    assert "| setting | value |\n|---|---|\n| arch | resnet8 |\n" in table
    assert "| batch_size | 32 |" in table


def test_settings_and_final_numbers_are_on_the_hparams_page(trained_events: EventAccumulator) -> None:
    contents = trained_events.PluginTagToContent("hparams")
    assert set(contents) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["arch"].string_value == "resnet8"
    assert start.hparams["lr"].number_value == 0.1
    assert start.hparams["nesterov"].bool_value is False
    scalars = scalars_of(trained_events)
    for name in ("train_loss", "val_accuracy", "test_loss", "test_accuracy"):
        kind_of = {"loss": f"loss/{name[:-5]}", "accuracy": f"accuracy/{name[:-9]}"}
        assert scalars[f"final/{name}"] == {4: scalars[kind_of[name.partition("_")[2]]][4]}


def test_large_image_batches_are_cut_and_values_clamped(tmp_path: Path) -> None:
    log_run(tmp_path, range(2), 1.0, images=torch.randn(100, 3, 4, 4) * 10)
    assert pictures_of(read_events(tmp_path)) == [(0, 16 * 18 + 2, 4 * 18 + 2)]


def test_what_was_not_measured_has_no_curve(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    logger.start(make_info(epochs=1))
    logger.log(epoch_scalars(make_record(1, train=(2.0, 0.5))), step=2, epoch=1)
    logger.close()
    scalars = scalars_of(read_events(tmp_path))
    assert {tag for tag in scalars if tag.startswith(("loss/", "accuracy/"))} == {"loss/train", "accuracy/train"}
    final = {"final/lr", "final/grad_norm", "final/train_loss", "final/train_accuracy"}
    assert {tag for tag in scalars if tag.startswith("final/")} == final


@pytest.mark.parametrize(("seen", "known"), [(4, 2), (5, 3), (6, 2), (5, 4), (2, 2)])
def test_a_resumed_run_hides_what_its_checkpoint_does_not_know(seen: int, known: int, tmp_path: Path) -> None:
    log_run(tmp_path, range(seen), 1.0, images=torch.zeros(4, 3, 4, 4))
    log_run(tmp_path, range(known, 6), 2.0)
    events = read_events(tmp_path)
    scalars = scalars_of(events)
    assert scalars["step/loss"] == {step: 1.0 if step <= known else 2.0 for step in range(1, 7)}
    assert scalars["loss/train"] == {step: 1.0 if step <= known else 2.0 for step in (2, 4, 6)}
    assert len(pictures_of(events)) == 1
    assert [len(texts) for texts in texts_of(events).values()] == [1]


def test_closing_before_the_start_is_harmless(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    logger.close()
    assert list(tmp_path.iterdir()) == []


# --- Through the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def train(run_cli: RunCli, tmp_path: Path) -> Callable[..., Outcome]:
    """Return a function that trains the run <tmp_path>/runs/x, which must succeed."""

    def run(*arguments: object) -> Outcome:
        outcome = run_cli("resnet-train", *SMALL, "--log-every", 1, "--name", "x", *arguments, cwd=tmp_path)
        assert outcome.code == 0, outcome
        return outcome

    return run


def test_a_run_with_more_epochs_continues_each_curve(
    train: Callable[..., Outcome], run_cli: RunCli, tmp_path: Path
) -> None:
    train("--epochs", 2)
    assert run_cli("resnet-train", "--resume", "runs/x", "--epochs", 3, cwd=tmp_path).code == 0
    scalars = scalars_of(read_events(tmp_path / "runs" / "x"))
    assert list(scalars["step/loss"]) == [1, 2, 3, 4, 5, 6]
    assert list(scalars["loss/test"]) == [2, 4, 6]


def test_a_run_that_was_never_saved_restarts_its_curves(train: Callable[..., Outcome], tmp_path: Path) -> None:
    train("--epochs", 1)
    folder = tmp_path / "runs" / "x"
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    (folder / ".unsaved").touch()
    train("--epochs", 2, "--resume", "auto")
    events = read_events(folder)
    scalars = scalars_of(events)
    assert list(scalars["step/loss"]) == [1, 2, 3, 4]
    assert list(scalars["loss/test"]) == [2, 4]
    assert len(pictures_of(events)) == 1


def test_events_follow_a_folder_that_is_moved(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path / "x")
    logger.start(make_info())
    (tmp_path / "x").rename(tmp_path / "y")
    (tmp_path / "x").mkdir()
    assert logger.writer is not None
    logger.writer.add_scalar("late", 1.0, 1)  # what was queued before the move
    logger.flush()
    logger.close()
    assert list((tmp_path / "x").iterdir()) == []
    (events,) = (tmp_path / "y").iterdir()
    assert b"late" in events.read_bytes()
