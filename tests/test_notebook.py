"""The package in a Jupyter kernel: docs/python.ipynb runs, progress is shown once, and the stop button saves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.cli import PACKAGE_PARENT, epochs_shown
from tests.test_docs_python import DOCS, read_examples, without_numbers

NOTEBOOK = DOCS / "python.ipynb"
SETTINGS = """
from resnet_train import train
settings = dict(arch="resnet8", dataset="digits", image_size=8, device="cpu", tensorboard=False, name="x")
"""


def page_as_cells() -> list[tuple[str, str]]:
    """Return docs/python.md as the kinds and sources of cells, without outputs, which a notebook has itself."""
    text = re.sub(r"^```text\n.*?^```\n\n", "", (DOCS / "python.md").read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^!\[.*\n\n", "", text, flags=re.MULTILINE)
    parts = re.split(r"^```python\n(.*?)^```\n", text, flags=re.MULTILINE | re.DOTALL)
    return [("code" if n % 2 else "markdown", part.strip()) for n, part in enumerate(parts) if part.strip()]


def execute(cells: list[tuple[str, str]], folder: Path) -> Any:
    """Return a notebook of these cells after it ran in a folder."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    notebook.cells = [make[kind](source, id=f"cell-{n}") for n, (kind, source) in enumerate(cells)]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def write_notebook() -> None:
    """Write docs/python.ipynb from docs/python.md: `python -m tests.test_notebook`."""
    import tempfile

    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(page_as_cells(), Path(folder))
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.clear()  # times of this execution
        if cell.cell_type == "code":  # without the bar, whose place it is to vanish
            text = printed(cell, "stdout")
            cell.outputs = [
                one for one in cell.outputs if one.output_type == "display_data" and "image/png" in one.data
            ]
            cell.outputs += [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
    nbformat.write(notebook, NOTEBOOK)


@pytest.fixture
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PACKAGE_PARENT)
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def printed(cell: Any, stream: str) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == stream)


def test_the_notebook_is_the_page() -> None:
    import json

    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == page_as_cells()
    shown = "".join(printed(cell, "stdout") for cell in cells if cell["cell_type"] == "code")
    for example in read_examples("python.md"):
        assert example.output in shown


@pytest.mark.slow
@pytest.mark.usefixtures("_paths")
@pytest.mark.filterwarnings("ignore")  # of Jupyter
def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = [cell for cell in execute(page_as_cells(), tmp_path).cells if cell.cell_type == "code"]
    assert [printed(cell, "stderr") for cell in cells] == [""] * len(cells)
    training = printed(cells[1], "stdout")
    assert epochs_shown(training) == ["1/4", "2/4", "3/4", "4/4"]
    assert training.startswith("resnet8 ")
    bars = [output for output in cells[1].outputs if output.output_type == "display_data"]
    assert len(bars) <= 1  # none without ipywidgets
    for cell, example in zip(cells, read_examples("python.md")):
        lines = without_numbers(printed(cell, "stdout"))
        assert lines[len(lines) - len(without_numbers(example.output)) :] == without_numbers(example.output)


@pytest.fixture
def kernel(tmp_path: Path, _paths: None) -> Iterator[tuple[Any, Any]]:
    """Yield a kernel in a clean directory, and its client."""
    client = pytest.importorskip("jupyter_client")
    manager, connection = client.manager.start_new_kernel(cwd=str(tmp_path))
    yield manager, connection
    connection.stop_channels()
    manager.shutdown_kernel(now=True)


def run_cell(kernel: tuple[Any, Any], code: str, stop_after: str | None = None) -> dict[str, Any]:
    """Run a cell, press stop when it has printed `stop_after`, and return its stdout and its error."""
    manager, client = kernel
    outcome: dict[str, Any] = {"stdout": "", "stderr": "", "error": None}

    def hear(message: dict[str, Any]) -> None:
        nonlocal stop_after
        content = message["content"]
        if message["msg_type"] == "stream":
            outcome[content["name"]] += content["text"]
        elif message["msg_type"] == "error":
            outcome["error"] = content["ename"], content["evalue"]
        if stop_after is not None and stop_after in outcome["stdout"]:
            stop_after = None
            manager.interrupt_kernel()

    client.execute_interactive(code, timeout=120, output_hook=hear, store_history=False, allow_stdin=False)
    return outcome


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter
def test_the_stop_button_saves_and_leaves_the_kernel_as_it_was(kernel: tuple[Any, Any]) -> None:
    state = "import signal, logging, threading, torch\n" + SETTINGS
    state += """def state():
    log = logging.getLogger("resnet_train")
    names = sorted(thread.name for thread in threading.enumerate())
    return signal.getsignal(signal.SIGINT), log.handlers, log.propagate, torch.get_num_threads(), names
before = state()"""
    assert run_cell(kernel, state) == {"stdout": "", "stderr": "", "error": None}

    stopped = run_cell(kernel, "train(**settings, epochs=1000, threads=1)", stop_after=" 2/1000")
    assert stopped["error"][0] == "KeyboardInterrupt"
    assert "the state is saved" in stopped["error"][1]
    assert stopped["stderr"] == ""
    assert run_cell(kernel, "assert state() == before, (state(), before)")["error"] is None

    # The same kernel stops a run again and resumes it.
    assert run_cell(kernel, "train(resume='runs/x')", stop_after=" 4/1000")["error"][0] == "KeyboardInterrupt"
    code = "train(resume='runs/x', verbose=False, epochs=1001)"
    assert run_cell(kernel, "import time; time.sleep(0.01)")["error"] is None
    assert "resuming runs/x" in run_cell(kernel, code.replace("False", "True"), stop_after="resuming")["stdout"]


if __name__ == "__main__":
    write_notebook()
