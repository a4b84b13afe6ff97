"""Junk in flags and YAML files gives one line that names the setting and leaves no folder, or starts a run."""

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
from tests.harness.cli import SMALL, Outcome, RunCli
from tests.test_config import BOOLEANS

# What errors call an unknown name; other errors contain the name of the setting.
KINDS = {"arch": "architecture", "dataset": "data set", "device": "device", "optimizer": "optimizer",
         "schedule": "schedule"}  # fmt: skip
# Settings for which a random value may be valid and make the run large.
ENLARGES = {"arch", "image_size", "threads", "dataset", "train_size"}
ACCEPTED = "error: accepted (Accepted; --debug shows the traceback)"
HEALTH = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
QUICK = settings(max_examples=12, deadline=None, database=None, suppress_health_check=HEALTH)
THOROUGH = settings(max_examples=1000, deadline=None, database=None, suppress_health_check=HEALTH)

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
    """Raised where training would begin."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """End each accepted run where its training would begin, after its folder and loggers were created."""

    def fit(trainer: Trainer) -> None:
        raise Accepted("accepted")

    monkeypatch.setattr(Trainer, "fit", fit)


def is_small(name: str, value: object) -> bool:
    """Return whether a run with this value starts quickly if the value is accepted."""
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
    """Check that the run starts, or that one line names a setting and nothing is left behind."""
    folders = [path for path in cwd.iterdir() if path.suffix != ".yaml"]
    for path in folders:
        shutil.rmtree(path)
    assert "Traceback" not in outcome.stderr + outcome.stdout
    assert outcome.stdout == ""
    if outcome.code == 1:
        assert outcome.stderr.splitlines()[-1] == ACCEPTED
        return
    line = outcome.error  # asserts exit code 2
    assert line.isprintable()
    assert any(name in line or name.replace("_", "-") in line or KINDS.get(name, name) in line for name in names), line
    assert folders == [], line


def check_flag(name: str, value: str, run_cli: RunCli, cwd: Path) -> None:
    """Check the command with this flag after those of a small run."""
    assume(is_small(name, value))
    flag = "--" + name.replace("_", "-")
    # A shell passes bytes that are not UTF-8 as low surrogates; it never passes others.
    assume(not re.search("[\ud800-\udc7f\udd00-\udfff]", value))
    outcome = run_cli("resnet-train", *SMALL, "--no-tensorboard", f"{flag}={value}", cwd=cwd)
    check_outcome(outcome, [name, *related(name)], cwd)


def related(name: str) -> list[str]:
    """Return what an error may name instead of this setting, because the two contradict each other."""
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
    """Check the command with a YAML file of these values, and flags of a small run for the others."""
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


@QUICK
@given(name=VALUED, value=TEXTS)
@example(name="name", value="\udc80")
@example(name="output_dir", value="x" * 5000)
@example(name="data_dir", value="\udc80")
@example(name="milestones", value="1e308,inf")
@example(name="milestones", value="1e308")
@example(name="progressive_sizes", value="8:")
def test_junk_flag_is_named_or_starts_a_run(name: str, value: str, run_cli: RunCli, tmp_path: Path) -> None:
    check_flag(name, value, run_cli, tmp_path)


@QUICK
@given(values=FIELDS)
@example(values={"progressive_sizes": [[4, 0.5, 1]]})
@example(values={"progressive_sizes": [[4, 10**400]]})
@example(values={"progressive_sizes": {"8": 0.5}})
@example(values={"milestones": {"1": 2}})
def test_junk_value_in_a_file_is_named_or_starts_a_run(values: dict[str, Any], run_cli: RunCli, tmp_path: Path) -> None:
    check_file(values, run_cli, tmp_path)


@pytest.mark.slow
@THOROUGH
@given(name=VALUED, value=TEXTS)
def test_thousand_junk_flags_are_named_or_start_a_run(name: str, value: str, run_cli: RunCli, tmp_path: Path) -> None:
    check_flag(name, value, run_cli, tmp_path)


@pytest.mark.slow
@THOROUGH
@given(values=FIELDS)
def test_thousand_junk_files_are_named_or_start_a_run(values: dict[str, Any], run_cli: RunCli, tmp_path: Path) -> None:
    check_file(values, run_cli, tmp_path)


@QUICK
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode(errors="replace"))))
@example(content=b"&a [*a]")
@example(content=b"lr: &a\n  x: *a\n")
@example(content=b"? [1, 2]\n: 3\n")
@example(content=b"--- 1\n--- 2\n")
@example(content=b"lr: !!python/object/apply:os.system ['true']\n")
@example(content=b"[" * 5000)
@example(content=b"lr: 1\nlr: 2\n")
def test_file_of_junk_is_named_in_the_error(content: bytes, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "junk.yaml").write_bytes(content)
    outcome = run_cli("resnet-train", "--config", "junk.yaml", *SMALL, "--no-tensorboard", cwd=tmp_path)
    check_outcome(outcome, ["junk.yaml"], tmp_path)


@pytest.mark.parametrize("name", option_names())
def test_setting_rejects_a_value_that_is_never_valid(name: str, run_cli: RunCli, tmp_path: Path) -> None:
    """Guard the property tests, which a command that accepts everything would pass."""
    (tmp_path / "junk.yaml").write_text(f"{name}: {{a: [1]}}\n")
    outcome = run_cli("resnet-train", "--config", "junk.yaml", cwd=tmp_path)
    assert re.fullmatch(rf"error: {name} \(=\{{'a': \[1\]\}}\) .* in junk\.yaml", outcome.error)
    assert [path.name for path in tmp_path.iterdir()] == ["junk.yaml"]
