"""resnet-compare: groups, differences and their reasons, times, bad and hostile input, and its three outputs."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_train.jobs.compare import compare
from resnet_train.runtime.terminal import count_columns
from resnet_train.text import escape
from tests.harness.cli import SMALL, Outcome, RunCli, run_python
from tests.harness.runs import write_run

PLAIN, FAST = (0.80, 0.82, 0.81), (0.90, 0.92, 0.91)
ODD = "t\x1b]0;owned\x07\u202e|<b>*x*|猫"


def write_group(folder: Path, name: str, accuracies: tuple[float, ...], **settings: Any) -> list[Path]:
    """Write a run of two epochs for each final accuracy, with the seeds 0, 1, 2 …"""
    return [
        write_run(folder / f"{name}-seed{seed}", [final / 2, final], seed=seed, **settings)
        for seed, final in enumerate(accuracies)
    ]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Return a folder with two groups of three runs: a (lr 0.1) and b (lr 0.2)."""
    write_group(tmp_path / "runs", "a", PLAIN)
    write_group(tmp_path / "runs", "b", FAST, lr=0.2)
    return tmp_path / "runs"


def write_table(path: Path, correct: list[bool], label: str = "cat") -> Path:
    """Write a table of predictions of images 0, 1, …, all of one class."""
    rows = [f"{image},{label},0.1,{label if right else 'dog'},0.9" for image, right in enumerate(correct)]
    path.write_text("\n".join(["image,label,loss,class_1,probability_1", *rows, ""]))
    return path


# --- Groups ----------------------------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_the_seed_are_a_group(two: Path) -> None:
    found = compare([two])
    assert [(group.label, group.name, group.n) for group in found.groups] == [("A", "a", 3), ("B", "b", 3)]
    assert [run.seed for run in found.groups[0].runs] == [0, 1, 2]
    assert found.groups[0].mean == pytest.approx(0.81)
    assert found.groups[0].sd == pytest.approx(0.01)
    assert found.differences[0].settings == {"lr": (0.1, 0.2)}


def test_settings_that_leave_the_result_alone_do_not_divide_a_group(tmp_path: Path) -> None:
    write_run(tmp_path / "x", [0.8], seed=0, threads=1, eval_every=1)
    write_run(tmp_path / "y", [0.8], seed=1, threads=2, device="cpu")
    assert [group.n for group in compare([tmp_path]).groups] == [2]


def test_plans_of_the_same_minutes_are_a_group(tmp_path: Path) -> None:
    write_run(tmp_path / "x", [0.8, 0.9], seed=0, minutes=5, epoch_steps=10)
    write_run(tmp_path / "y", [0.8, 0.9, 0.9], seed=1, minutes=5, epoch_steps=9)
    write_run(tmp_path / "z", [0.8, 0.9, 0.9], seed=2, minutes=6, epoch_steps=9)
    found = compare([tmp_path])
    assert [(group.n, group.epochs) for group in found.groups] == [(2, None), (1, 3)]


def test_the_first_argument_is_the_baseline(two: Path) -> None:
    found = compare([two / "b-seed1", two])
    assert [group.name for group in found.groups] == ["b", "a"]
    assert found.differences[0].difference == pytest.approx(-0.1)


def test_folders_patterns_and_runs_name_each_run_once(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two.parent)
    assert compare(["runs", "runs/*-seed*", "runs/a-seed0", two]) == compare(["runs"])


def test_settings_beside_runs_are_no_run(two: Path) -> None:
    (two / "config.yaml").write_text("lr: 1\n")
    assert [group.n for group in compare([two]).groups] == [3, 3]
    assert compare([two]).left_out == ()


def test_seeds_are_in_numeric_order(tmp_path: Path) -> None:
    for seed in (10, 9, 2):
        write_run(tmp_path / f"x-seed{seed}", [0.5], seed=seed)
    assert [run.seed for run in compare([tmp_path]).groups[0].runs] == [2, 9, 10]


def test_a_repeated_seed_counts_once(two: Path) -> None:
    again = write_run(two / "z-again", [0.5, 0.8], seed=0)
    other = write_run(two / "z-other", [0.5, 0.7], seed=1)
    found = compare([two])
    assert [group.n for group in found.groups] == [3, 3]
    reasons = {part.path: part.reason for part in found.left_out}
    assert reasons[str(again)] == f"same settings and seed as {two / 'a-seed0'}"
    assert reasons[str(other)].endswith("but an accuracy of 70.00%, not 82.00%")


def test_a_comparison_of_text_files_needs_no_torch(two: Path) -> None:
    program = (
        "import sys; from resnet_train.jobs.compare import compare; compare(['runs']); print('torch' in sys.modules)"
    )
    assert run_python("-c", program, cwd=two.parent).stdout == "False\n"


# --- Runs that are left out ------------------------------------------------------------------------------------------


def damage(folder: Path, name: str, text: str | bytes) -> None:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4,1\n", "unfinished, epoch 1 of 2"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4,1\n2,0.8", "unfinished, epoch 1 of 2"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n", "it has no finished epoch"),
        ("metrics.csv", "", "it has no finished epoch"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4,1\n2,nan,nan\n", "accuracy of nan in epoch 2"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4,1\n2,0.1,nan\n", "its final test loss is nan"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4,1\n2,81.3,1\n", "accuracy of 81.3 in epoch 2"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4,1\n2,,\n", "no accuracy for its last epoch"),
        ("metrics.csv", "epoch,lr\n1,0.4\n2,0.1\n", "no accuracy for its last epoch"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4,1\n3,0.4,1\n", "are not 1, 2, 3 …"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,0.4\n2,0.4,1\n", "line 2 has 2 cells, but its header has 3"),
        ("metrics.csv", "epoch,test_accuracy,test_loss\n1,x,1\n2,0.4,1\n", "a row without numbers: epoch '1'"),
        ("metrics.csv", b"\xff\xfe\x00", "cannot read"),
        ("metrics.csv", "epoch,test_accuracy\n" + "1,0.1\n" * 3, "are not 1, 2, 3 …"),
        ("config.yaml", "epochs: [", "is not valid YAML"),
        ("config.yaml", "future_setting: 1\n", "unknown setting 'future_setting'"),
        ("config.yaml", "epochs: 1\n", "metrics.csv has 2 epochs, but config.yaml has 1"),
    ],
)
def test_a_run_without_a_final_accuracy_is_left_out(name: str, text: str | bytes, reason: str, two: Path) -> None:
    damage(two / "a-seed1", name, text)
    found = compare([two])
    assert [group.n for group in found.groups] == [2, 3]
    (part,) = found.left_out
    assert part.path == str(two / "a-seed1")
    assert reason in part.reason


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv"])
def test_a_run_without_its_files_is_left_out(name: str, two: Path) -> None:
    (two / "b-seed2" / name).unlink()
    (two / "b-seed2" / "checkpoints").mkdir()
    assert [part.reason for part in compare([two]).left_out] == [f"{two / 'b-seed2'} has no {name}"]


def test_links_and_pipes_are_not_followed(two: Path) -> None:
    (two / "a-seed0" / "metrics.csv").unlink()
    os.mkfifo(two / "a-seed0" / "metrics.csv")
    (two / "a-seed1" / "config.yaml").rename(two / "elsewhere.yaml")
    (two / "a-seed1" / "config.yaml").symlink_to(two / "elsewhere.yaml")
    (two / "loop").symlink_to(two)
    found = compare([two])
    assert [group.n for group in found.groups] == [1, 3]
    assert all("is a link or a special file" in part.reason for part in found.left_out)


@pytest.mark.parametrize("damaged", ["", "{", "[1]", '{"torch": ["x"], "device": {}}', "[" * 100_000])
def test_a_damaged_description_of_the_machine_changes_nothing(damaged: str, two: Path) -> None:
    damage(two / "a-seed0", "environment.json", damaged)
    assert [group.n for group in compare([two]).groups] == [3, 3]


def test_what_is_no_run_is_left_out_beside_runs(two: Path) -> None:
    (two / "README.md").write_text("# Runs")
    (two / "empty").mkdir()
    found = compare(sorted(two.iterdir()))
    assert [group.n for group in found.groups] == [3, 3]
    assert [Path(part.path).name for part in found.left_out] == ["README.md", "empty"]


def test_no_usable_run_is_bad_input_with_the_reasons(run_cli: RunCli, tmp_path: Path) -> None:
    for number in range(5):
        folder = write_run(tmp_path / "runs" / str(number), [0.5, 0.6])
        damage(folder, "metrics.csv", "")
    error = run_cli("resnet-compare", "runs", cwd=tmp_path).error
    assert "there is no finished run to compare (runs/0: it has no finished epoch; " in error
    assert error.endswith("; …)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no run 'nothing'"),
        (["nothing*"], "'nothing*' matches no run"),
        (["empty"], "'empty' holds no run"),
        (["x" * 5000], "there is no run"),
        (["runs/a-seed0/metrics.csv"], "is not a table of predictions: it has no column 'image'"),
        (["runs/a-seed0/config.yaml"], "is a file; give the run's folder"),
        (["runs", "--target", "0"], "target (='0') must be percentages between 0 and 100"),
        (["runs", "--target", "94,x"], "target (='94,x') must be percentages"),
        (["runs", "--target", "nan"], "target (='nan') must be percentages"),
        (["runs", "--detect", "0"], "detect (=0) must be points between 0 and 100"),
        (["runs", "--json", "--markdown"], "cannot be combined"),
        (["runs", "--plot", "x.png"], "plot (=x.png) must end in .svg"),
        (["runs", "--plot", "no/x.svg"], "there is no folder no"),
        (["runs", "--plot", "other.svg"], "exists and is not a drawing"),
    ],
)
def test_bad_input_is_named_in_one_line(arguments: list[str], message: str, run_cli: RunCli, two: Path) -> None:
    (two.parent / "empty").mkdir()
    (two.parent / "other.svg").write_text("my notes")
    assert message in run_cli("resnet-compare", *arguments, cwd=two.parent).error
    assert (two.parent / "other.svg").read_text() == "my notes"


# --- Differences -----------------------------------------------------------------------------------------------------


def test_a_difference_has_an_interval_over_seeds_and_a_plan(two: Path) -> None:
    (difference,) = compare([two], detect=0.005).differences
    assert difference.difference == pytest.approx(0.1)
    assert difference.over_seeds is not None
    assert 0.06 < difference.over_seeds.low < 0.1 < difference.over_seeds.high
    assert difference.over_images is None
    assert difference.power is not None
    assert difference.power.difference == 0.005
    assert difference.power.needed is not None
    assert difference.power.needed > 50


def test_one_run_has_no_spread(tmp_path: Path) -> None:
    write_group(tmp_path, "a", PLAIN)
    write_group(tmp_path, "b", FAST[:1], lr=0.2)
    (difference,) = compare([tmp_path]).differences
    assert difference.difference == pytest.approx(0.09)
    assert (difference.over_seeds, difference.power) == (None, None)
    assert "B has one run" in difference.why_no_seeds


def test_equal_accuracies_have_no_spread(tmp_path: Path) -> None:
    write_group(tmp_path, "a", (1.0, 1.0))
    write_group(tmp_path, "b", (1.0, 1.0), lr=0.2)
    (difference,) = compare([tmp_path]).differences
    assert difference.over_seeds is None
    assert "equal accuracies" in difference.why_no_seeds


def test_other_test_images_are_not_compared(tmp_path: Path) -> None:
    write_group(tmp_path, "a", PLAIN)
    write_group(tmp_path, "b", FAST, dataset="cifar10")
    write_group(tmp_path, "c", FAST, split="val", val_size=60)
    found = compare([tmp_path])
    assert [(d.difference, d.over_seeds) for d in found.differences] == [(None, None)] * 2
    assert found.differences[0].why_no_seeds == "A and B are evaluated on different images"


def test_folders_of_images_are_told_apart_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], dataset="folder", data_dir="one/cats", seed=0)
    write_run(tmp_path / "b", [0.5], dataset="folder", data_dir="/other/cats", seed=1)
    write_run(tmp_path / "c", [0.5], dataset="folder", data_dir="dogs", seed=2)
    found = compare([tmp_path])
    assert [group.n for group in found.groups] == [2, 1]
    assert found.differences[0].difference is None
    assert any("folder cats, folder dogs" in note for note in found.notes)


def test_other_versions_and_machines_are_noted(tmp_path: Path) -> None:
    for seed, (torch, device) in enumerate([("2.11.0", "cpu (2 threads)"), ("2.14.1", "H100")]):
        write_run(tmp_path / str(seed), [0.5], seed=seed, environment={"torch": torch, "device_name": device})
    assert compare([tmp_path]).notes == (
        "the runs are from different versions of torch (2.11.0, 2.14.1)",
        "the runs are from different devices (H100, cpu (2 threads)): their times are not comparable",
    )


def test_several_differences_are_adjusted(tmp_path: Path) -> None:
    for name, lr, shift in (("a", 0.1, 0.0), ("b", 0.2, 0.02), ("c", 0.3, 0.03)):
        write_group(tmp_path, name, tuple(value + shift for value in PLAIN), lr=lr)
    first, second = compare([tmp_path]).differences
    assert first.over_seeds is not None
    assert second.over_seeds is not None
    assert second.p_adjusted == pytest.approx(2 * second.over_seeds.p)
    assert first.p_adjusted == pytest.approx(max(first.over_seeds.p, second.p_adjusted))


# --- Times -----------------------------------------------------------------------------------------------------------


def test_the_time_to_an_accuracy_is_that_of_its_first_epoch(tmp_path: Path) -> None:
    write_run(tmp_path / "x", [0.5, 0.8, 0.7, 0.9], seconds=2.0, seed=0)
    write_run(tmp_path / "y", [0.5, None, 0.8, 0.9], seconds=3.0, seed=1)
    (group,) = compare([tmp_path], targets=[0.8, 0.95]).groups
    reached, missed = group.targets
    assert (reached.num_reached, reached.epochs, reached.seconds) == (2, 2.5, 6.5)
    assert reached.sd == pytest.approx(np.std([4.0, 9.0], ddof=1))
    assert (missed.num_reached, missed.epochs, missed.seconds, missed.sd) == (0, None, None, None)
    assert group.seconds == 10.0


def test_an_accuracy_in_percent_counts_as_reached(tmp_path: Path) -> None:
    write_run(tmp_path / "x", [0.813])
    assert compare([tmp_path], targets=[81.3 / 100]).groups[0].targets[0].num_reached == 1


def test_a_group_without_times_has_epochs_only(tmp_path: Path) -> None:
    write_run(tmp_path / "x", [0.5, 0.9], seed=0, seconds=None)
    write_run(tmp_path / "y", [0.5, 0.9], seed=1)
    (group,) = compare([tmp_path], targets=[0.9]).groups
    assert (group.seconds, group.targets[0].seconds, group.targets[0].epochs) == (None, None, 2.0)


# --- Image by image --------------------------------------------------------------------------------------------------


def test_two_tables_are_compared_by_the_images_they_dispute(tmp_path: Path) -> None:
    first = write_table(tmp_path / "first.csv", [True] * 80 + [True] * 5 + [False] * 15)
    second = write_table(tmp_path / "second.csv", [True] * 80 + [False] * 5 + [True] * 15)
    found = compare([first, second])
    (difference,) = found.differences
    assert [group.name for group in found.groups] == ["first", "second"]
    assert difference.counts is not None
    assert (difference.counts.num_images, difference.counts.lost, difference.counts.gained) == (100, 5, 15)
    assert difference.over_images is not None
    assert difference.over_images.method == "McNemar's test"
    assert 0 < difference.over_images.low < difference.difference < difference.over_images.high


def test_tables_in_another_order_are_aligned(tmp_path: Path) -> None:
    first = write_table(tmp_path / "first.csv", [True, True, False, True])
    header, *rows = first.read_text().splitlines()
    (tmp_path / "second.csv").write_text("\n".join([header, *rows[::-1]]))
    counts = compare([first, tmp_path / "second.csv"]).differences[0].counts
    assert counts is not None
    assert (counts.lost, counts.gained) == (0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label,loss,class_1\n0,cat,1,cat\n1,cat,1,cat\n", "first.csv has 3 images, but"),
        ("image,label,loss,class_1\n0,cat,1,cat\n1,cat,1,cat\n7,cat,1,cat\n", "has no image '2'"),
        ("image,label,loss,class_1\n0,cat,1,cat\n1,cat,1,cat\n2,dog,1,cat\n", "the label of '2' is 'cat' in"),
        ("image,label,loss,class_1\n0,cat,1,cat\n0,cat,1,cat\n", "line 3 has the image '0' a second time"),
        ("image,label,loss,class_1\n0,cat\n", "line 2 is incomplete"),
        ("image,label,loss,class_1\n", "has no images"),
        ("", "is not a table of predictions"),
        ("image,label,class_1\n0,cat,cat\n" + "x" * 200_000, "cannot read"),
    ],
)
def test_tables_of_other_images_are_refused(text: str, message: str, run_cli: RunCli, tmp_path: Path) -> None:
    write_table(tmp_path / "first.csv", [True] * 3)
    (tmp_path / "second.csv").write_text(text)
    assert message in run_cli("resnet-compare", "first.csv", "second.csv", cwd=tmp_path).error


def test_tables_of_all_runs_compare_the_means_of_groups(two: Path) -> None:
    tables, draw = two.parent / "tables", np.random.default_rng(0)
    tables.mkdir()
    for name, accuracies in (("a", PLAIN), ("b", FAST)):
        for seed, accuracy in enumerate(accuracies):
            correct = draw.permutation(np.arange(1000) < round(1000 * accuracy)).tolist()
            write_table(tables / f"{name}-seed{seed}.csv", correct)
    (difference,) = compare([two], predictions=tables).differences
    assert difference.over_images is not None
    assert difference.over_images.method == "paired z-test"
    assert difference.over_images.low < 0.1 < difference.over_images.high
    assert difference.counts is None


def test_a_table_of_another_network_is_refused(run_cli: RunCli, two: Path) -> None:
    (two.parent / "tables").mkdir()
    write_table(two.parent / "tables" / "a-seed0.csv", [True, False])
    error = run_cli("resnet-compare", "runs/a-seed0", "--predictions", "tables", cwd=two.parent).error
    assert "has an accuracy of 50.00%, but the run runs/a-seed0 has 80.00%" in error


def test_runs_of_one_name_have_no_tables_of_their_own(run_cli: RunCli, two: Path) -> None:
    write_run(two.parent / "others" / "a-seed0", [0.5, 0.6], lr=0.3)
    error = run_cli("resnet-compare", "runs/a-seed0", "others", "--predictions", "tables", cwd=two.parent).error
    assert "runs/a-seed0 and others/a-seed0 have the same name" in error
    assert not (two.parent / "tables").exists()


def test_runs_without_tables_are_evaluated(run_cli: RunCli, trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    other = run_cli("resnet-train", *SMALL, "--val-size", 60, "--lr", 0.01, "--name", "other", cwd=tmp_path)
    assert other.code == 0, other
    arguments = ["resnet-compare", trained[0], "runs/other", "--predictions", "tables", "--json"]
    outcome = run_cli(*arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome
    (difference,) = json.loads(outcome.stdout)["differences"]
    assert difference["counts"]["num_images"] == 360
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["other.csv", "run.csv"]

    # The second time, the tables are read: the run is not needed any more.
    (tmp_path / "runs" / "other" / "checkpoints").rename(tmp_path / "gone")
    again = run_cli(*arguments, cwd=tmp_path)
    assert json.loads(again.stdout)["differences"] == [difference]


def test_a_run_without_weights_and_table_is_bad_input(run_cli: RunCli, two: Path) -> None:
    error = run_cli("resnet-compare", "runs/a-seed0", "--predictions", "tables", cwd=two.parent).error
    assert "runs/a-seed0 is a folder without checkpoints/model.pt" in error


# --- Output ----------------------------------------------------------------------------------------------------------


def test_the_headline_is_the_final_accuracy(run_cli: RunCli, tmp_path: Path) -> None:
    write_run(tmp_path / "x", [0.5, 0.95, 0.9])
    outcome = run_cli("resnet-compare", "x", cwd=tmp_path)
    assert outcome.code == 0
    assert "90.00 %" in outcome.stdout
    assert "95" not in outcome.stdout
    assert "One group: there is nothing to compare it with." in outcome.stdout


def test_text_fits_80_columns_with_many_runs_and_long_names(run_cli: RunCli, tmp_path: Path) -> None:
    for number in range(40):
        name = f"{'猫' * 30}-{number}" if number % 2 else f"{'x' * 90}-{number}"
        write_run(tmp_path / name, [0.5, 0.8 + number / 1000], seed=number, lr=0.1 + number // 4 / 100, seconds=12345.0)
    outcome = run_cli("resnet-compare", tmp_path, "--target", "81,82", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert max(map(count_columns, outcome.stdout.splitlines())) <= 79
    assert "J - A" in outcome.stdout
    assert "adj. p" in outcome.stdout


def test_more_groups_than_letters_are_labelled(tmp_path: Path) -> None:
    for number in range(28):
        write_run(tmp_path / f"{number:02}", [0.5], lr=0.1 + number / 100)
    assert [group.label for group in compare([tmp_path]).groups][25:] == ["Z", "AA", "AB"]


@pytest.mark.parametrize("output", [[], ["--markdown"], ["--json"], ["--plot", "x.svg"]])
def test_hostile_names_control_no_terminal_page_or_table(output: list[str], run_cli: RunCli, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / ODD, [0.5, 0.6], dataset="folder", data_dir=ODD, environment={"torch": ODD})
    write_run(tmp_path / "runs" / f"{ODD}2", [0.5], seed=1)
    outcome = run_cli("resnet-compare", "runs", *output, cwd=tmp_path)
    assert outcome.code == 0, outcome
    for text in (outcome.stdout, outcome.stderr):
        assert escape(text.replace("\n", "")) == text.replace("\n", "")
    if output == ["--markdown"]:
        assert r"\|\<b\>\*x\*\|" in outcome.stdout
        assert "<b>" not in outcome.stdout
    if output[:1] == ["--plot"]:
        assert "<b>" not in (tmp_path / "x.svg").read_text()
        ET.parse(tmp_path / "x.svg")


def test_markdown_has_the_numbers_of_the_text(run_cli: RunCli, two: Path) -> None:
    text = run_cli("resnet-compare", "runs", cwd=two.parent).stdout
    markdown = run_cli("resnet-compare", "runs", "--markdown", cwd=two.parent).stdout
    assert "| A | a | 3 | 0-2 | 81.00 ± 1.00 % | 2 | 4 ± 0 s |" in markdown
    assert "| --- | --- | ---: | --- | ---: | ---: | ---: |" in markdown
    for number in ("81.00 ± 1.00 %", "+10.00", "+7.73 to +12.27"):
        assert number in text
        assert number in markdown


def test_json_is_the_comparison(run_cli: RunCli, two: Path) -> None:
    found = json.loads(run_cli("resnet-compare", "runs", "--json", cwd=two.parent).stdout)
    assert set(found) == {"groups", "differences", "left_out", "notes"}
    assert found["groups"][1]["mean"] == pytest.approx(0.91)
    assert found["groups"][0]["runs"][2]["curve"] == [[1, 2.0, 0.405], [2, 4.0, 0.81]]


def test_the_plot_has_a_line_for_each_run_and_a_key_for_each_group(run_cli: RunCli, two: Path) -> None:
    outcome = run_cli("resnet-compare", "runs", "--plot", "x.svg", "--target", "85", cwd=two.parent)
    assert outcome.code == 0, outcome
    assert "the curves are in x.svg" in outcome.stderr
    root = ET.parse(two.parent / "x.svg").getroot()
    namespace = "{http://www.w3.org/2000/svg}"
    groups = [group for group in root.iter(f"{namespace}g") if group.get("class") == "runs"]
    lines = [[path.get("d") for path in group.iter(f"{namespace}path")] for group in groups]
    assert [len(set(group)) for group in lines] == [3, 3]
    keys = [text.text for text in root.iter(f"{namespace}text") if text.get("class") == "key"]
    assert keys == ["A  a (n=3)", "B  b (n=3)"]
    assert "seconds of training" in [text.text for text in root.iter(f"{namespace}text")]
    assert run_cli("resnet-compare", "runs", "--plot", "x.svg", cwd=two.parent).code == 0  # replaces its own drawing


def test_curves_without_times_are_over_epochs(run_cli: RunCli, two: Path) -> None:
    (two / "a-seed0" / "timing.csv").unlink()
    assert run_cli("resnet-compare", "runs", "--plot", "x.svg", cwd=two.parent).code == 0
    assert ">epoch</text>" in (two.parent / "x.svg").read_text()
