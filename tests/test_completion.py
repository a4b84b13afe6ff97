"""Completion by shells: flags, values, runs, without importing torch."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_train.cli import choices
from resnet_train.cli.commands import COMMANDS
from resnet_train.cli.completion import install_completion, show_completion, split_values
from resnet_train.data.dataset import DATASETS
from resnet_train.models import list_models
from resnet_train.optim.optimizers import OPTIMIZERS
from resnet_train.optim.schedules import SCHEDULES
from resnet_train.recipes import recipe_names
from resnet_train.registry import recording
from resnet_train.weights import SHIPPED
from tests.harness.cli import PACKAGE_PARENT, RunCli, run_python


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a run, a checkpoint and a YAML file."""
    (tmp_path / "runs" / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.pt").touch()
    (tmp_path / "own.yaml").touch()
    monkeypatch.chdir(tmp_path)


def complete(line: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what bash would offer for the last word of a line."""
    words = [part for part in re.split(r"[ ]|(=)", line) if part is not None]  # as COMP_WORDBREAKS does
    monkeypatch.setenv(f"_{words[0].replace('-', '_').upper()}_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1 - (words[-1] == "" and words[-2] == "=")))
    outcome = run_cli(words[0], cwd=tmp_path)
    assert outcome.code == 0, outcome
    return outcome.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("resnet-train --wei", ["--weight-decay"]),
        ("resnet-train --no-tens", ["--no-tensorboard"]),
        ("resnet-train --arch resnet1", ["resnet18", "resnet101", "resnet152", "resnet110", "resnet1202"]),
        ("resnet-train --arch=resnet15", ["resnet152"]),
        ("resnet-train --flip ", ["random", "alternating", "none"]),
        ("resnet-train --flip=", ["random", "alternating", "none"]),
        ("resnet-train --epochs=3 --flip a", ["alternating"]),
        ("resnet-train --config resnet20-f", ["resnet20-fast"]),
        ("resnet-train -c ow", ["own.yaml"]),
        ("resnet-train --optimizer ", ["sgd", "adamw", "muon"]),
        ("resnet-train --resume ", ["auto", "runs/mine"]),
        ("resnet-train --lr ", []),
        ("resnet-train --milestones ", []),
        ("resnet-bench --schedule one", ["one-cycle"]),
        ("resnet-eval ", ["runs/mine", SHIPPED]),
        ("resnet-predict resnet20-c", [SHIPPED]),
        ("resnet-eval elsewhere/", ["elsewhere/model.pt"]),
        ("resnet-eval ./runs/m", ["./runs/mine"]),
        ("resnet-eval nowhere/", []),
        ("resnet-eval runs/mine --tta f", ["flip", "flip-shift"]),
        ("resnet-predict runs/m", ["runs/mine"]),
        ("resnet-info sch", ["schedules"]),
        ("resnet-info resnet20-f", ["resnet20-fast"]),
        ("resnet-info runs/", ["runs/mine"]),
    ],
)
def test_shell_offers_flags_and_values(
    line: str, expected: list[str], run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete(line, run_cli, tmp_path, monkeypatch)[: len(expected) or 1] == expected


PLUGIN = """
raise RuntimeError("this plugin was run")
add_setting("beta", float | None, None, "Decay of the mean.", ge=0)
add_setting("invert", bool, False, "Invert the images.")
add_setting("kind", Literal["old", "new"], "new", "Which one.")

@register_model("tiny")
def tiny(num_classes=10): ...

@OPTIMIZERS.register("nadam")
def nadam(model, *, lr): ...

@DATASETS.register("dark_digits")
def dark_digits(split): ...
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("resnet-train --plugin own.py --arch ti", ["tiny"]),
        ("resnet-train --plugin=own.py --optimizer na", ["nadam"]),
        ("resnet-train --plugin own.py --be", ["--beta"]),
        ("resnet-train --plugin own.py --no-inv", ["--no-invert"]),
        ("resnet-bench --plugin own.py --kind ol", ["old"]),
        ("resnet-train -c with.yaml --arch ti", ["tiny"]),
        ("resnet-train --plugin none.py --plugin own.py --arch=ti", ["tiny"]),
        ("resnet-train --arch ti", []),
        ("resnet-eval runs/mine --plugin own.py --dataset da", ["dark_digits"]),
    ],
)
def test_names_of_a_plugin_are_offered_without_running_it(
    line: str, expected: list[str], run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    (tmp_path / "with.yaml").write_text("plugin: own.py\n")
    with recording() as undo:
        offered = complete(line, run_cli, tmp_path, monkeypatch)
    for take_back in undo:
        take_back()
    assert offered == expected


def test_offered_names_are_those_of_the_registries() -> None:
    assert list(choices.architectures()) == [entry.name for entry in list_models()]
    assert list(choices.recipes()) == recipe_names()
    assert sorted(choices.datasets()) == sorted(DATASETS.names())
    assert choices.optimizers() == {name: OPTIMIZERS[name].__doc__.partition("\n")[0] for name in OPTIMIZERS.names()}
    assert choices.schedules() == {name: SCHEDULES[name].__doc__.partition("\n")[0] for name in SCHEDULES.names()}


def test_completion_and_the_page_of_settings_import_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from resnet_train.cli import choices, info; choices.values_of('dataset'); info._find_topics(''); "
        "from resnet_train.jobs.settings import settings_page; settings_page(); print('torch' in sys.modules)"
    )
    assert run_python("-c", program, cwd=tmp_path) == (0, "False\n", "")


def test_runs_and_checkpoints_are_told_apart() -> None:
    assert choices.runs() == {"runs/mine": "run"}
    assert choices.runs("elsewhere/") == {"elsewhere/model.pt": "checkpoint"}


def test_words_split_at_equals_are_joined() -> None:
    environ = {"COMP_WORDS": "x\n--a\n=\nb\n--c\n=", "COMP_CWORD": "5"}
    split_values(environ)
    assert environ == {"COMP_WORDS": "x\n--a\nb\n--c\n", "COMP_CWORD": "4"}
    environ = {"COMP_WORDS": "x\nrun\n--a\n=\nb\n=", "COMP_CWORD": "4"}
    split_values(environ)
    assert environ == {"COMP_WORDS": "x\nrun\n--a\nb\n=", "COMP_CWORD": "3"}  # nothing is split after a value


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_script_covers_every_command(shell: str) -> None:
    script = show_completion(shell)
    for command in COMMANDS:
        assert f"_{command.name.replace('-', '_').upper()}_COMPLETE" in script


def test_unknown_shell_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shell 'csh'; known: bash, zsh, fish"):
        show_completion("csh")


def test_installing_writes_a_start_up_file_for_bash(tmp_path: Path) -> None:
    code = "from resnet_train.cli.completion import install_completion; print(install_completion())"
    fake = "import shellingham; shellingham.detect_shell = lambda *a: ('bash', 'bash'); "
    outcome = run_python("-c", fake + code, cwd=tmp_path, HOME=str(tmp_path))
    assert outcome.code == 0, outcome
    assert outcome.stdout.splitlines()[-1] == "Open a new terminal to use it."
    bashrc = (tmp_path / ".bashrc").read_text()
    for command in COMMANDS:
        path = tmp_path / ".bash_completions" / f"{command.name}.sh"
        assert f"source '{path}'" in bashrc
        assert path.is_file()


def test_installing_for_an_unknown_shell_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet_train.cli.completion._run_typer", lambda *_: "")
    with pytest.raises(ValueError, match="the shell is not known; add the output of --show-completion SHELL"):
        install_completion()


# --- Real shells -----------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder with the console scripts, as pip would install them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in COMMANDS:
        script = folder / command.name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {command.module} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    return folder


def type_into(shell: list[str], text: str, until: str, programs: Path, home: Path) -> str:
    """Return what an interactive shell shows after some text is typed, once `until` is in it or 20 s are over."""
    import pty  # not on Windows

    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": PACKAGE_PARENT,
        "HOME": str(home),
        "TERM": "dumb",
    }
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(shell[0], shell, environment)
    os.write(terminal, text.encode())
    shown, end = "", time.monotonic() + 20
    while until not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 4096).decode(errors="replace")
            except OSError:
                break
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_the_name_of_a_network(tmp_path: Path, programs: Path) -> None:
    (tmp_path / ".bashrc").write_text(show_completion("bash"))
    shell = ["bash", "--rcfile", str(tmp_path / ".bashrc"), "-i"]
    typed, expected = "resnet-train --arch wide_resnet2\t", "wide_resnet28_10"
    assert expected in type_into(shell, typed, expected, programs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--arch=wide_resnet2\t", "--arch=wide_resnet28_10"),
        ("--resume runs/mi\t", "runs/mine"),
        ("-c own\t", "-c own.yaml"),
    ],
)
def test_bash_completes_other_values(typed: str, expected: str, tmp_path: Path, programs: Path) -> None:
    (tmp_path / ".bashrc").write_text(show_completion("bash"))
    shell = ["bash", "--rcfile", str(tmp_path / ".bashrc"), "-i"]
    assert expected in type_into(shell, f"resnet-train {typed}", expected, programs, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes_the_name_of_a_network(tmp_path: Path, programs: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": PACKAGE_PARENT,
        "HOME": str(tmp_path),
    }
    script = f"{show_completion('fish')}\ncomplete --do-complete 'resnet-train --arch wide_resnet2'"
    done = subprocess.run(["fish", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("wide_resnet28_10\twide_resnet, 36.5 M parameters"), done


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes_the_name_of_a_network(tmp_path: Path, programs: Path) -> None:
    (tmp_path / ".zshrc").write_text(f"autoload -Uz compinit; compinit -u\n{show_completion('zsh')}\n")
    shown = type_into(["zsh", "-i"], "resnet-train --arch wide_resnet2\t", "28_10", programs, tmp_path)
    assert "wide_resnet28_10" in shown
