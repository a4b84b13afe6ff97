"""What surrounds the package: metadata, workflows, scripts and the citation agree with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import resnet_train
from resnet_train.runtime.extras import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [*sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ROOT / ".pre-commit-config.yaml"]
SCRIPTS = [*sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file()), ROOT / ".ci" / "run"]


def test_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (resnet_train.__version__, PROJECT["license"])


def test_tested_versions_of_python_are_the_classified_ones() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["linux"]["strategy"]["matrix"]["python"]
    classified = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d", text)]
    assert tested == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS], ids=lambda path: path.name)
def test_file_is_yaml_and_names_files_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text)
    for named in re.findall(r"(?:tests|docs|scripts|\.ci)/[\w./-]*\w", text):
        assert (ROOT / named).exists(), named


def test_dockerfile_copies_files_that_exist_and_are_sent() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    copied = {name for line in lines for name in line[1:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_package_is_typed() -> None:
    assert (ROOT / "resnet_train" / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["classifiers"]


@pytest.mark.parametrize(("package", "extra"), EXTRAS.items())
def test_extra_named_in_a_message_installs_the_package(package: str, extra: str) -> None:
    installed = [re.split(r"[<>=!~\[; ]", text)[0] for text in PROJECT["optional-dependencies"][extra]]
    assert package.replace("_", "-") in [name.replace("_", "-") for name in installed]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_bash_that_old_versions_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    # Since bash 4: arrays with names, |&, ${x,,}, mapfile. Before bash 4.4 an empty array is unset.
    assert not re.search(r"declare -A|\|&|&>>|\$\{\w+(,,|\^\^|@[A-Z])|mapfile|readarray|coproc", text)
    assert not re.search(r'(?<!\+)"\$\{\w+\[@\]\}"', text)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_scripts_install_only_what_has_changed(tmp_path: Path) -> None:
    # A stand-in for python counts the calls of pip, and a file says whether another copy was installed since.
    bin_folder, project, other = tmp_path / "env" / "bin", tmp_path / "pyproject.toml", tmp_path / "other"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").write_text(
        f'#!/bin/sh\n[ "$1" = - ] && exec test ! -e {other}\necho "$@" >>{tmp_path}/calls\n'
    )
    (bin_folder / "python").chmod(0o755)
    project.write_text("1")

    def num_installed(what: str) -> int:
        environment = os.environ | {"VIRTUAL_ENV": str(tmp_path / "env"), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
        command = f". {ROOT}/scripts/_environment; ensure_environment {what}"
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, env=environment, check=True)
        return len((tmp_path / "calls").read_text().splitlines())

    assert [num_installed(what) for what in (".", ".", ".[dev]", ".[dev]", ".")] == [1, 1, 2, 2, 2]
    project.write_text("2")
    assert [num_installed(what) for what in (".[dev]", ".")] == [3, 3]  # the first contains the second
    other.touch()
    assert num_installed(".") == 4
