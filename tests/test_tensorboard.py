"""TensorBoard event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from resnet_train.config import make_config, to_plain
from resnet_train.loggers.base import MAX_POINTS, PICTURE_BYTES
from resnet_train.loggers.tensorboard import TensorBoard, describe_settings
from resnet_train.report.pictures import caption_images
from tests.harness.cli import SMALL, Outcome, RunCli
from tests.harness.records import epoch_scalars, make_info, make_record, step_scalars

STEPS_PER_EPOCH = 2
SPLITS = ("train", "val", "test")
PICTURE = np.full((4, 6, 3), 128, dtype=np.uint8)


def read_events(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a folder, all of it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def scalars_of(folder: Path) -> dict[str, dict[int, float]]:
    """Tag to step to value; each step must be there once."""
    events = read_events(folder)
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, points in found.items():
        steps = [point.step for point in points]
        assert steps == sorted(set(steps)), f"{tag} has the steps {steps}"
    return {tag: {point.step: point.value for point in points} for tag, points in found.items()}


def pictures_of(folder: Path) -> dict[str, list[tuple[int, int, int]]]:
    """Tag to step, width and height of each picture."""
    events = read_events(folder)
    tags = events.Tags()["images"]
    return {tag: [(event.step, event.width, event.height) for event in events.Images(tag)] for tag in tags}


def texts_of(folder: Path) -> dict[str, list[str]]:
    """What is shown as text, by tag."""
    events = read_events(folder)
    tags = events.PluginTagToContent("text")
    return {tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)] for tag in tags}


def log_run(folder: Path, steps: range, value: float, epochs: int = 3, config: dict[str, object] | None = None) -> None:
    """Log these steps, and the epochs that end among them."""
    logger = TensorBoard(folder)
    history = tuple(make_record(epoch) for epoch in range(1, steps.start // STEPS_PER_EPOCH + 1))
    known = {"config": config} if config else {}
    logger.start(
        make_info(
            name=folder.name,
            steps_per_epoch=STEPS_PER_EPOCH,
            first_step=steps.start,
            history=history,
            epochs=epochs,
            **known,
        )
    )
    if steps.start == 0:
        logger.log_picture("images", PICTURE, split="train", epoch=0)
    for step in range(steps.start + 1, steps.stop + 1):
        logger.log(step_scalars(value), step=step)
        if step % STEPS_PER_EPOCH == 0:
            record = make_record(step // STEPS_PER_EPOCH, train=(value, 0.5), val=(value, 0.6), test=(value, 0.7))
            logger.log(epoch_scalars(record), step=step, epoch=record.epoch)
    logger.flush()
    logger.close()


# --- Charts ----------------------------------------------------------------------------------------------------------


def test_splits_share_the_tags_of_a_chart_over_epochs(trained: tuple[Path, Outcome]) -> None:
    for split in SPLITS:
        scalars = scalars_of(trained[0] / split)
        assert {"epoch/loss", "epoch/accuracy"} <= set(scalars)
        assert all(list(points) == [1, 2] for points in scalars.values())


def test_step_curves_have_one_lr_and_one_grad_norm(trained: tuple[Path, Outcome]) -> None:
    scalars = scalars_of(trained[0])
    assert set(scalars) == {"step/loss", "step/lr", "step/grad_norm"}
    assert all(list(points) == [1, 2, 3, 4] for points in scalars.values())
    below = {tag for split in SPLITS for tag in scalars_of(trained[0] / split)}
    assert not [tag for tag in below if "lr" in tag or "grad_norm" in tag]


def test_curves_have_the_values_of_the_records(trained: tuple[Path, Outcome]) -> None:
    with (trained[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split, kind in itertools.product(SPLITS, ("loss", "accuracy")):
        points = scalars_of(trained[0] / split)[f"epoch/{kind}"]
        expected = {int(row["epoch"]): pytest.approx(float(row[f"{split}_{kind}"]), rel=1e-6) for row in rows}
        assert points == expected


def test_what_was_not_measured_has_no_point(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    logger.start(make_info(epochs=1, splits=("train", "test")))
    logger.log(epoch_scalars(make_record(1, train=(2.0, 0.5))), step=2, epoch=1)
    logger.close()
    assert scalars_of(tmp_path / "test") == {}
    assert not (tmp_path / "val").exists()


def test_a_run_of_200_epochs_has_at_most_2_mb_of_events(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    steps, log_every = 1562, 5  # batches of 32 images
    logger.start(make_info(epochs=200, steps_per_epoch=steps, config={"log_every": log_every}))
    for epoch in range(1, 201):
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            if step % log_every == 0:
                logger.log(step_scalars(), step=step)
        record = make_record(epoch, steps_per_epoch=steps, train=(2.0, 0.5), val=(2.0, 0.5), test=(2.0, 0.5))
        logger.log(epoch_scalars(record), step=record.step, epoch=epoch)
    noise = np.random.default_rng(0).integers(0, 256, size=(16, 3, 32, 32), dtype=np.uint8)
    for name in ("a", "b", "c"):
        logger.log_picture(name, caption_images(noise, ["automobile 98 %\nis truck"] * 16), split="test", epoch=200)
    logger.close()
    sizes = {path.parent.name: path.stat().st_size for path in tmp_path.rglob("events.*")}
    assert sum(sizes.values()) < 2e6, sizes
    assert sizes["test"] < 2 * PICTURE_BYTES
    assert MAX_POINTS / 2 < len(scalars_of(tmp_path)["step/loss"]) <= MAX_POINTS


# --- Pictures, texts, hyper-parameters -------------------------------------------------------------------------------


def test_a_run_shows_images_mistakes_and_confusion(trained: tuple[Path, Outcome]) -> None:
    assert {tag: size[0][0] for tag, size in pictures_of(trained[0] / "train").items()} == {
        "pictures/augmented training images": 0
    }
    assert {tag: size[0][0] for tag, size in pictures_of(trained[0] / "test").items()} == {
        "pictures/most confident mistakes": 2,
        "pictures/confusion matrix": 2,
    }


def test_the_config_is_a_table(trained: tuple[Path, Outcome]) -> None:
    ((tag, (table,)),) = texts_of(trained[0]).items()
    assert tag.startswith("config")
    assert "| setting | value |\n|---|---|\n| arch | resnet8 |\n" in table
    assert "| batch_size | 32 |" in table


def test_hparams_are_named_after_the_run(trained: tuple[Path, Outcome]) -> None:
    contents = read_events(trained[0]).PluginTagToContent("hparams")
    # An "experiment" would fix the columns for all runs that are compared.
    assert set(contents) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info
    assert start.group_name == "run"
    assert start.hparams["arch"].string_value == "resnet8"
    assert start.hparams["lr"].number_value == 0.1
    assert "momentum" not in start.hparams


def test_hparams_are_what_differs_and_three_more() -> None:
    assert describe_settings(to_plain(make_config({}))) == {"arch": "resnet18", "lr": 0.1, "seed": 0}
    changed = make_config({"nesterov": True, "milestones": (3, 5.5), "cutout": 16, "tensorboard": False, "seed": 3})
    assert describe_settings(to_plain(changed)) == {
        "arch": "resnet18",
        "lr": 0.1,
        "seed": 3,
        "cutout": 16,
        "nesterov": "true",
        "milestones": "3,5.5",
    }


# --- Resumed runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seen", "known"), [(4, 2), (5, 3), (6, 2), (5, 4), (2, 2), (3, 1)])
def test_a_resumed_run_hides_what_its_checkpoint_does_not_know(seen: int, known: int, tmp_path: Path) -> None:
    log_run(tmp_path, range(seen), 1.0)
    log_run(tmp_path, range(known, 6), 2.0)
    assert scalars_of(tmp_path)["step/loss"] == {step: 1.0 if step <= known else 2.0 for step in range(1, 7)}
    for split in SPLITS:
        points = scalars_of(tmp_path / split)["epoch/loss"]
        assert points == {epoch: 1.0 if epoch * STEPS_PER_EPOCH <= known else 2.0 for epoch in (1, 2, 3)}
    assert pictures_of(tmp_path / "train") == {"pictures/images": [(0, 6, 4)]}
    assert [len(texts) for texts in texts_of(tmp_path).values()] == [1]


def test_closing_before_the_start_is_harmless(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    logger.close()
    assert list(tmp_path.iterdir()) == []


def test_events_follow_a_folder_that_is_moved(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path / "x")
    logger.start(make_info())
    (tmp_path / "x").rename(tmp_path / "y")
    (tmp_path / "x").mkdir()
    for split, writer in logger.writers.items():
        writer.add_scalar(f"late/{split}", 1.0, 1)  # what was queued before the move
    logger.flush()
    logger.close()
    assert list((tmp_path / "x").iterdir()) == []
    assert {"late/"} < {tag for path in (tmp_path / "y", tmp_path / "y" / "val") for tag in scalars_of(path)}


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
    assert list(scalars_of(tmp_path / "runs" / "x")["step/loss"]) == [1, 2, 3, 4, 5, 6]
    assert list(scalars_of(tmp_path / "runs" / "x" / "test")["epoch/loss"]) == [1, 2, 3]


def test_a_run_that_was_never_saved_restarts_its_curves(train: Callable[..., Outcome], tmp_path: Path) -> None:
    train("--epochs", 1)
    folder = tmp_path / "runs" / "x"
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    (folder / ".unsaved").touch()
    train("--epochs", 2, "--resume", "auto")
    assert list(scalars_of(folder)["step/loss"]) == [1, 2, 3, 4]
    assert list(scalars_of(folder / "test")["epoch/loss"]) == [1, 2]
    assert [len(found) for found in pictures_of(folder / "train").values()] == [1]


def test_a_link_where_curves_are_written_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "runs" / "x", tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "train").symlink_to(elsewhere)
    outcome = run_cli("resnet-train", *SMALL, "--name", "x", "--resume", "auto", cwd=tmp_path)
    assert "runs/x/train is a link or a special file" in outcome.error
    assert list(elsewhere.iterdir()) == []
