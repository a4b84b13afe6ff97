"""docs/python.md: its examples run, print what the page says, and are typed."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.harness.cli import PACKAGE_PARENT

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """Code, and the output that the page shows below it."""

    code: str
    output: str


def read_examples(page: str) -> list[Example]:
    return [Example(*match.groups(default="")) for match in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8"))]


def without_numbers(text: str) -> list[str]:
    """Return lines without numbers and truth values, which depend on the last bits that a machine computes."""
    return re.sub(r"\d+(\.\d+)?|True|False", "#", text).splitlines()


def run_examples(page: str, folder: Path) -> list[str]:
    """Run the examples of a page one after the other, as one program, and return their outputs."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    with contextlib.chdir(folder):
        for example in read_examples(page):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(example.code, page, "exec"), variables)  # noqa: S102 - of our page
            outputs.append(printed.getvalue())
    return outputs


def test_examples_print_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    outputs = run_examples("python.md", tmp_path)
    expected = [example.output for example in read_examples("python.md")]
    assert len(outputs) == 9
    for printed, shown in zip(outputs, expected):
        assert without_numbers(printed) == without_numbers(shown)
    assert (tmp_path / "accuracy.png").is_file()


def test_examples_are_a_dozen_lines_each() -> None:
    assert max(len(example.code.splitlines()) for example in read_examples("python.md")) <= 16


@pytest.mark.slow
def test_examples_are_typed(tmp_path: Path) -> None:
    program = "\n".join(example.code for example in read_examples("python.md"))
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-sklearn.*]\nignore_missing_imports = True\n"
        "[mypy-resnet_train.*]\nfollow_imports = silent\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "program.py"],
        cwd=tmp_path,
        env={"MYPYPATH": PACKAGE_PARENT, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
