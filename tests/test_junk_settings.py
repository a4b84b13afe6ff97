"""Junk in flags and YAML files: one line that names the setting, exit code 2, and no folder; or a run that starts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from resnet_train.config import option_names
from resnet_train.training.trainer import Trainer
from tests.conftest import SMALL, Outcome, RunCli
from tests.test_config import BOOLEANS

# What an unknown name is called; every other message has the setting's own name.
KINDS = {"arch": "architecture", "dataset": "data set", "device": "device", "optimizer": "optimizer",
         "schedule": "schedule"}  # fmt: skip
# Where junk may be meant as it is, and the run is no longer small: huge images, a thousand threads, a compiler.
ENLARGES = {"arch", "image_size", "threads", "dataset", "train_size"}
ACCEPTED = "error: accepted (Accepted; --debug shows the traceback)"
HEALTH = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
QUICKLY = settings(max_examples=25, deadline=None, database=None, suppress_health_check=HEALTH)
LONG = settings(max_examples=1000, deadline=None, database=None, suppress_health_check=HEALTH)

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**18, 10**400]),
    st.floats(),
    st.sampled_from([1e-320, -0.0, 1e308]),
)
WORDS = st.sampled_from(
    ["", " ", "nan", "-inf", "1e999", "1e-3", "0x10", "1_0", "1,5", "true", "off", "null", "~", "none", "auto", "--lr",
     "-", "--", "..", "/", "a/b", "a\tb", "\x1b[2J", "٣", "½", "ö" * 300, "x" * 5000, "8:0.5", "8:0.5,4:0.7", "8:",
     ":", "8:0.5:1", "a:b", "1,2,x", "5,4", "3,,", "cuda:99", "meta", "resnet", "resnet3", "cifar", "%s", "{0}",
     "$(x)", "\udc80", "\u2028"]
)  # fmt: skip
CHARACTERS = st.characters(exclude_characters="\0")
TEXTS = st.one_of(WORDS, st.text(CHARACTERS, max_size=12), NUMBERS.map(lambda number: str(number)[:4000]))
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(CHARACTERS, max_size=12)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


class Accepted(Exception):
    """The run would train now."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is accepted ends where its training would begin, with its folder made and its loggers told."""

    def fit(trainer: Trainer) -> None:
        raise Accepted("accepted")

    monkeypatch.setattr(Trainer, "fit", fit)


def is_small(name: str, value: object) -> bool:
    """Whether a run with this value is made in a moment, if it is accepted."""
    if name not in ENLARGES:
        return True
    if isinstance(value, str) and name in {"image_size", "threads", "train_size"}:
        try:
            value = float(value)
        except ValueError:
            return True
    if isinstance(value, int | float):
        return not 2 < value < 5000
    return not re.fullmatch(r"(resnet|cifar)\d{2,}", str(value))


def check_outcome(outcome: Outcome, names: list[str], cwd: Path) -> None:
    """It is accepted, or refused in one line that names a setting, with nothing left behind."""
    folders = [path for path in cwd.iterdir() if path.suffix != ".yaml"]
    for path in folders:
        shutil.rmtree(path)
    assert "Traceback" not in outcome.stderr + outcome.stdout
    assert outcome.stdout == ""
    if outcome.code == 1:
        assert outcome.stderr.splitlines()[-1] == ACCEPTED
        return
    line = outcome.error  # the only one on stderr; exit code 2
    assert line.isprintable()
    assert any(name in line or name.replace("_", "-") in line or KINDS.get(name, name) in line for name in names), line
    assert folders == [], line


def check_flag(name: str, value: str, run_cli: RunCli, cwd: Path) -> None:
    """The command with this flag, behind those of a small run."""
    assume(is_small(name, value))
    flag = "--" + name.replace("_", "-")
    # As a shell passes it on: bytes that are no text are surrogates, other surrogates do not exist.
    assume(not re.search("[\ud800-\udc7f\udd00-\udfff]", value))
    outcome = run_cli("resnet-train", *SMALL, "--no-tensorboard", f"{flag}={value}", cwd=cwd)
    check_outcome(outcome, [name, *related(name)], cwd)


def related(name: str) -> list[str]:
    """Settings that a value of this one may not fit to; the message may begin with them."""
    return {
        "accumulate": ["batch_size"],
        "output_dir": ["run folder"],
        "name": ["run folder"],
        "data_dir": [],
        "batch_size": ["images"],
        "train_size": ["batch_size"],
        "val_size": ["train_size"],
        "image_size": ["progressive_sizes", "cutout", "crop_padding"],
        "arch": ["image_size"],
    }.get(name, [])


def check_file(values: dict[str, Any], run_cli: RunCli, cwd: Path) -> None:
    """The command with a YAML file of these values, and flags for a small run where it has none."""
    assume(all(is_small(name, value) for name, value in values.items()))
    try:
        text = yaml.safe_dump(values, allow_unicode=True)
        (cwd / "junk.yaml").write_text(text, encoding="utf-8")
    except (UnicodeEncodeError, yaml.YAMLError):
        assume(False)
    pairs = dict(zip(SMALL[::2], SMALL[1::2]))
    own = {"--" + name.replace("_", "-") for name in values}
    small = [part for flag, value in pairs.items() if flag not in own for part in (flag, value)]
    if "--tensorboard" not in own:
        small.append("--no-tensorboard")
    outcome = run_cli("resnet-train", "--config", "junk.yaml", *small, cwd=cwd)
    check_outcome(outcome, [*values, *(other for name in values for other in related(name)), "junk.yaml"], cwd)


VALUED = st.sampled_from([name for name in option_names() if name not in BOOLEANS])
FIELDS = st.dictionaries(st.sampled_from(option_names()), TREES, min_size=1, max_size=3)


@QUICKLY
@given(name=VALUED, value=TEXTS)
@example(name="name", value="\udc80")
@example(name="output_dir", value="x" * 5000)
@example(name="data_dir", value="\udc80")
@example(name="milestones", value="1e308,inf")
@example(name="milestones", value="1e308")
@example(name="progressive_sizes", value="8:")
def test_a_junk_flag_is_refused_by_name_or_starts_a_run(name: str, value: str, run_cli: RunCli, tmp_path: Path) -> None:
    check_flag(name, value, run_cli, tmp_path)


@QUICKLY
@given(values=FIELDS)
@example(values={"progressive_sizes": [[4, 0.5, 1]]})
@example(values={"progressive_sizes": [[4, 10**400]]})
@example(values={"progressive_sizes": {"8": 0.5}})
@example(values={"milestones": {"1": 2}})
def test_a_junk_value_in_a_file_is_refused_by_name_or_starts_a_run(
    values: dict[str, Any], run_cli: RunCli, tmp_path: Path
) -> None:
    check_file(values, run_cli, tmp_path)


@pytest.mark.slow
@LONG
@given(name=VALUED, value=TEXTS)
def test_a_thousand_junk_flags_are_refused_by_name_or_start_a_run(
    name: str, value: str, run_cli: RunCli, tmp_path: Path
) -> None:
    check_flag(name, value, run_cli, tmp_path)


@pytest.mark.slow
@LONG
@given(values=FIELDS)
def test_a_thousand_junk_files_are_refused_by_name_or_start_a_run(
    values: dict[str, Any], run_cli: RunCli, tmp_path: Path
) -> None:
    check_file(values, run_cli, tmp_path)


@QUICKLY
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode(errors="replace"))))
@example(content=b"&a [*a]")
@example(content=b"lr: &a\n  x: *a\n")
@example(content=b"? [1, 2]\n: 3\n")
@example(content=b"--- 1\n--- 2\n")
@example(content=b"lr: !!python/object/apply:os.system ['true']\n")
@example(content=b"[" * 5000)
@example(content=b"lr: 1\nlr: 2\n")
def test_a_file_of_junk_is_refused_by_its_name(content: bytes, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "junk.yaml").write_bytes(content)
    outcome = run_cli("resnet-train", "--config", "junk.yaml", *SMALL, "--no-tensorboard", cwd=tmp_path)
    check_outcome(outcome, ["junk.yaml"], tmp_path)


@pytest.mark.parametrize("name", option_names())
def test_every_setting_refuses_what_none_of_them_means_by_its_name(name: str, run_cli: RunCli, tmp_path: Path) -> None:
    """Guards the property tests, which a command that accepts everything would pass."""
    (tmp_path / "junk.yaml").write_text(f"{name}: {{a: [1]}}\n")
    outcome = run_cli("resnet-train", "--config", "junk.yaml", cwd=tmp_path)
    assert re.fullmatch(rf"error: {name} \(=\{{'a': \[1\]\}}\) .* in junk\.yaml", outcome.error)
    assert [path.name for path in tmp_path.iterdir()] == ["junk.yaml"]
