"""What is printed: nothing from files and names controls a terminal, and every encoding shows everything."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.text import counted, escape, escape_all
from tests.harness.cli import Outcome, RunCli, run_in_process

ENCODINGS = ["latin-1", "cp437", "cp932", "cp1252", "ascii"]
NAMES = {
    "kanji": "猫の画像",
    "typography": "größe – × …",
    "colors": "c\x1b[31m",
    "title": "t\x1b]0;owned\x07",
    "newline": "two\nlines\r",
    "c1": "c\x9b31m",
    "delete": "d\x7f\x08",
    "bidi": "b\u202etxt\u2066",
    "separators": "s\u2028\x85",
    "bytes": os.fsdecode(b"raw\xff"),
}
CLASSES = [*list(NAMES.values())[:-1], "raw\\xff"]  # a name that is not UTF-8 is escaped when the folder is read
ODD = "pics\x1b[2J\u202e"
TRAIN = ["--dataset", "folder", "--arch", "resnet8", "--image-size", "8", "--device", "cpu", "--batch-size", "16"]
COMMANDS = [
    ["resnet-eval", "run"],
    ["resnet-eval", "run", "--json"],
    ["resnet-info", "run"],
    ["resnet-info", "run", "--json"],
    ["resnet-info", "recipes"],
    *([name, "--help"] for name in ("resnet-train", "resnet-eval", "resnet-info", "resnet-bench")),
    ["resnet-train", "--name", "größe – ×", "--data-dir", "猫", "--print-config"],
]
SLOW_COMMANDS = [
    ["resnet-info", "models"],
    ["resnet-train", *TRAIN, "--data-dir", ODD, "--epochs", "1"],
    ["resnet-train", *TRAIN, "--data-dir", ODD, "--epochs", "1", "--json"],
    ["resnet-train", *TRAIN, "--data-dir", ODD, "--dry-run"],
    ["resnet-bench", "-a", "resnet8", "--image-size", "8", "-b", "8", "--steps", "1", "--rounds", "1"],
]


def write_pictures(folder: Path) -> None:
    """Write 4 training and 2 test images for each odd class name, and a file that is not a picture."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in NAMES.values():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    (folder / "train" / NAMES["colors"] / "broken\x1b[31m\n.png").write_bytes(b"no picture")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return a folder with odd names in it, in which `run` was trained, and what the training printed."""
    cwd = tmp_path_factory.mktemp("odd")
    try:
        write_pictures(cwd / ODD)
    except OSError:
        pytest.skip("this file system refuses such names")
    arguments = [*TRAIN, "--data-dir", ODD, "--epochs", 1, "--name", "run", "--output-dir", "."]
    return cwd, run_in_process("resnet-train", *arguments, cwd=cwd)


def assert_harmless(text: str) -> None:
    """Assert that a text has no character but newlines that a terminal would obey or hide."""
    assert escape(text.replace("\n", "")) == text.replace("\n", "")


def test_training_shows_names_escaped(odd: tuple[Path, Outcome]) -> None:
    outcome = odd[1]
    assert outcome.code == 0, outcome
    assert_harmless(outcome.stdout + outcome.stderr)
    assert r"pics\x1b[2J\u202e" in outcome.stderr
    assert r"broken\x1b[31m\n.png" in outcome.stderr
    assert len(outcome.stdout.splitlines()) == 3
    log = (odd[0] / "run" / "train.log").read_text(encoding="utf-8")
    assert_harmless(log)
    assert r"folder pics\x1b[2J\u202e" in log


def test_tables_show_names_escaped_and_aligned(odd: tuple[Path, Outcome], run_cli: RunCli) -> None:
    outcome = run_cli("resnet-eval", "run", "--device", "cpu", cwd=odd[0])
    assert outcome.code == 0, outcome
    assert_harmless(outcome.stdout + outcome.stderr)
    rows = outcome.stdout.splitlines()[-len(NAMES) :]
    assert sorted(row[: len(row) - 29].rstrip() for row in rows) == sorted(map(escape, CLASSES))
    assert len({len(row) for row in rows}) == 1


def test_a_checkpoint_of_a_stranger_is_shown_escaped(odd: tuple[Path, Outcome], run_cli: RunCli) -> None:
    path = odd[0] / "evil.pt"
    contents = read_checkpoint(odd[0] / "run" / "checkpoints" / "model.pt")
    contents["about"]["title"] = contents["environment"]["cpu\x1b[1m\n"] = "x\x1b]0;owned\x07\nerror: y"
    contents["config"]["a\x9b"] = ["\u202e"]
    write_checkpoint(path, contents)
    outcome = run_cli("resnet-info", path, cwd=odd[0])
    assert outcome.code == 0, outcome
    assert_harmless(outcome.stdout)
    assert r"title              x\x1b]0;owned\x07\nerror: y" in outcome.stdout.splitlines()

    contents["about"]["arch"] = "resnet\x1b[31m\u202e"
    write_checkpoint(path, contents)
    for command in ("resnet-info", "resnet-eval"):
        outcome = run_cli(command, path, cwd=odd[0])
        assert_harmless(outcome.stdout + outcome.stderr)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("extra", [[], ["--debug"]], ids=["error", "traceback"])
def test_errors_show_names_escaped(name: str, extra: list[str], run_cli: RunCli, tmp_path: Path) -> None:
    odd_file = tmp_path / f"{NAMES[name]}.yaml"
    odd_file.write_text(f'"{NAMES[name].encode("unicode_escape").decode()}": "\\x1b[31m"\n')
    for arguments in (["-c", odd_file], ["-c", NAMES[name]], [f"--{NAMES[name]}"], ["--arch", NAMES[name]]):
        outcome = run_cli("resnet-train", *arguments, *extra, cwd=tmp_path)
        assert outcome.code == (1 if extra else 2), outcome
        assert_harmless(outcome.stdout + outcome.stderr)
        assert extra or len(outcome.stderr.splitlines()) == 1


def test_escaping_keeps_what_can_be_read() -> None:
    text = "größe – × … 猫\u3000犬\xa0😀 C:\\x"
    assert escape(text) == text
    assert escape("\x00\x1b\x7f\x9b\n\u202e\u2028\udcff") == r"\x00\x1b\x7f\x9b\n\u202e\u2028\udcff"
    assert escape("é猫", "latin-1") == r"é\u732b"
    assert escape_all({"a\n": ("b\n", [1, None])}) == {r"a\n": (r"b\n", [1, None])}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("encoding", ["ascii", "cp932"])
def test_every_encoding_shows_everything(
    encoding: str, command: list[str], odd: tuple[Path, Outcome], run_cli: RunCli
) -> None:
    outcome = run_cli(*command, cwd=odd[0], encoding=encoding)
    assert outcome.code == 0, outcome
    assert_harmless(outcome.stdout + outcome.stderr)
    if command == ["resnet-eval", "run"]:
        rows = outcome.stdout.splitlines()[-len(NAMES) :]
        names = sorted(escape(name, encoding) for name in CLASSES)
        assert sorted(row[: len(row) - 29].rstrip() for row in rows) == names
    if command == ["resnet-train", "--help"]:
        assert ("3x3" if encoding == "ascii" else "3×3") in outcome.stdout


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_error_loses_no_character(encoding: str, run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("resnet-info", "猫\x1b–\udcff", cwd=tmp_path, encoding=encoding)
    assert outcome.code == 2
    assert escape("猫\x1b", encoding) in outcome.stderr
    assert r"\udcff' is neither" in outcome.stderr


def test_the_c_locale_shows_everything(run_cli_process: RunCli, tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    outcome = run_cli_process("resnet-train", "--help", cwd=tmp_path, **plain)
    assert outcome.code == 0
    assert outcome.stdout.isascii()
    assert "3x3" in outcome.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [*COMMANDS, *SLOW_COMMANDS], ids=" ".join)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_in_every_encoding_in_new_processes(
    encoding: str, command: list[str], odd: tuple[Path, Outcome], run_cli_process: RunCli
) -> None:
    folder = f"runs-{encoding}-{'json' if '--json' in command else 'text'}"
    extra = ["--output-dir", folder] if ODD in command else []
    outcome = run_cli_process(*command, *extra, cwd=odd[0], PYTHONIOENCODING=encoding)
    assert outcome.code == 0, outcome
    assert_harmless(outcome.stdout + outcome.stderr)


def test_a_count_agrees_with_its_noun() -> None:
    counts = [
        counted(number, noun) for number, noun in ((1, "step"), (0, "step"), (1200, "step"), (1, "class"), (2, "class"))
    ]
    assert counts == ["1 step", "0 steps", "1,200 steps", "1 class", "2 classes"]
