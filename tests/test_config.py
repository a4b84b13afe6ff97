"""The settings: defaults, ranges, messages, and what may change when a run is resumed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from resnet_train.config import (
    AUGMENTATION,
    DATA,
    MACHINE,
    NETWORK,
    NETWORK_OPTIONS,
    OPTIMIZATION,
    RUN,
    TrainConfig,
    make_config,
    merge_on_resume,
    option_metadata,
    option_names,
    to_plain,
)
from resnet_train.recipes import read_yaml, to_yaml

BOOLEANS = {name for name in option_names() if TrainConfig.model_fields[name].annotation in (bool, bool | None)}
PANELS = {NETWORK, NETWORK_OPTIONS, DATA, AUGMENTATION, OPTIMIZATION, RUN, MACHINE}


def message_of(values: dict[str, Any]) -> str:
    """The one line with which `make_config` refuses."""
    with pytest.raises(ValueError, match=r".") as error:
        make_config(values)
    assert not isinstance(error.value, ValidationError)
    assert "\n" not in str(error.value)
    return str(error.value)


def round_trip(config: TrainConfig, path: Path) -> TrainConfig:
    path.write_text(to_yaml(to_plain(config)), encoding="utf-8")
    return make_config(read_yaml(path), str(path))


def test_no_settings_give_the_documented_defaults() -> None:
    config = make_config({})
    assert (config.arch, config.dataset, config.epochs, config.batch_size) == ("resnet18", "cifar10", 200, 128)
    assert (config.lr, config.momentum, config.weight_decay, config.schedule) == (0.1, 0.9, 5e-4, "cosine")
    assert (config.seed, config.val_size, config.output_dir, config.device) == (0, 0, Path("runs"), "auto")


@pytest.mark.parametrize("name", option_names())
def test_a_default_is_inside_its_range(name: str) -> None:
    default = TrainConfig.model_fields[name].default
    assert getattr(make_config({name: default}), name) == default


def test_defaults_survive_the_way_through_yaml(tmp_path: Path) -> None:
    assert round_trip(TrainConfig(), tmp_path / "config.yaml") == TrainConfig()


def test_every_kind_of_value_survives_the_way_through_yaml(tmp_path: Path) -> None:
    config = make_config(
        {
            "lr": 1e-05,
            "weight_decay": 1e-300,
            "label_smoothing": 0.1 + 0.2,
            "milestones": [1, 2.5, 1e16],
            "progressive_sizes": "8:0.123456789,16:0.5",
            "warmup_epochs": 0,
            "train_size": 100,
            "nesterov": True,
            "seed": 2**63 - 1,
            "name": "größer: a 'run' #1 \U0001f600",
            "data_dir": "/tmp/a b\tc\nd/\u2028",
            "flip": "none",
        }
    )
    assert round_trip(config, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "name",
    ["1e3", "1e-3", "5E+1", "1.", ".5", "12", "0x10", "010", "1_000", "1:30", ".inf", "nan", "on", "off", "yes", "no",
     "true", "False", "null", "~", "y", "2024-01-01", "=", "<<", "-", "?", "&a", "*a", "!x", "%", "@", "`", " a ", "a:",
     "a: b", "#a", "a #b", "[", "{", "'", '"', "---"],
)  # fmt: skip
def test_a_name_that_looks_like_something_else_survives_the_way_through_yaml(name: str, tmp_path: Path) -> None:
    config = make_config({"name": name})
    assert round_trip(config, tmp_path / "config.yaml") == config


def test_settings_cannot_be_changed_afterwards() -> None:
    config = make_config({})
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    assert message_of({"bach_size": 3}) == "unknown setting 'bach_size'; did you mean 'batch_size'?"
    assert message_of({"Learning": 3}).startswith("unknown setting 'Learning'")
    assert message_of({"zzzzzzzz": 3}) == "unknown setting 'zzzzzzzz'"


def test_a_message_names_the_source() -> None:
    with pytest.raises(ValueError, match=r"^epochs \(=0\) must be greater than or equal to 1 in my\.yaml$"):
        make_config({"epochs": 0}, source="my.yaml")
    with pytest.raises(ValueError, match=r"^unknown setting 'epoch' in my\.yaml; did you mean 'epochs'\?$"):
        make_config({"epoch": 1}, source="my.yaml")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("epochs", 0, "0"),
        ("epochs", 1_000_001, "1000001"),
        ("epochs", 1.5, "1.5"),
        ("epochs", "many", "'many'"),
        ("epochs", None, "None"),
        ("epochs", math.nan, "nan"),
        ("epochs", math.inf, "inf"),
        ("epochs", [1], "[1]"),
        ("batch_size", -1, "-1"),
        ("image_size", 7, "7"),
        ("image_size", 1025, "1025"),
        ("train_size", 0, "0"),
        ("val_size", -1, "-1"),
        ("lr", 0, "0"),
        ("lr", -0.1, "-0.1"),
        ("lr", math.nan, "nan"),
        ("lr", math.inf, "inf"),
        ("lr", -math.inf, "-inf"),
        ("lr", "nan", "'nan'"),
        ("lr", "1e999", "'1e999'"),
        ("lr", "", "''"),
        ("lr", {"value": 1}, "{'value': 1}"),
        ("momentum", 1, "1"),
        ("momentum", -0.1, "-0.1"),
        ("weight_decay", -1e-9, "-1e-09"),
        ("gamma", 0, "0"),
        ("gamma", 1.1, "1.1"),
        ("label_smoothing", 1.0, "1.0"),
        ("clip_grad", -1, "-1"),
        ("warmup_epochs", -1, "-1"),
        ("crop_padding", 257, "257"),
        ("padding_mode", "edge", "'edge'"),
        ("flip", "both", "'both'"),
        ("flip", False, "false"),
        ("seed", -1, "-1"),
        ("seed", 2**63, str(2**63)),
        ("threads", 4097, "4097"),
        ("nesterov", "perhaps", "'perhaps'"),
        ("nesterov", 2, "2"),
        ("arch", 18, "18"),
        ("arch", None, "None"),
        ("dataset", ["digits"], "['digits']"),
        ("name", "", "''"),
        ("name", "x" * 201, "'xxx"),
        ("data_dir", 3, "3"),
        ("data_dir", "a\0b", r"'a\x00b'"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_setting_and_value(name: str, value: Any, shown: str) -> None:
    message = message_of({name: value})
    assert message.startswith(f"{name} (={shown}")
    assert len(message) < 200
    assert "<class" not in message


@pytest.mark.parametrize("name", [name for name in option_names() if name not in BOOLEANS])
@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_number_and_no_name(name: str, value: bool) -> None:
    assert message_of({name: value}) == f"{name} (={str(value).lower()}) must not be true or false"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize(
    "name", ["lr", "momentum", "weight_decay", "warmup_epochs", "gamma", "label_smoothing", "clip_grad", "milestones"]
)
def test_no_number_may_be_infinite_or_nan(name: str, value: Any) -> None:
    assert message_of({name: value}).startswith(f"{name} (=")


def test_a_long_value_is_cut() -> None:
    assert len(message_of({"epochs": "9" * 10_000 + "x"})) < 250


def test_two_bad_values_are_both_named_in_one_line() -> None:
    message = message_of({"epochs": 0, "lr": -1})
    assert "epochs (=0)" in message
    assert "lr (=-1)" in message


def test_nesterov_needs_momentum() -> None:
    assert message_of({"nesterov": True, "momentum": 0}) == "momentum (=0) must be greater than 0 with nesterov"
    assert make_config({"nesterov": True}).nesterov


def test_warmup_fits_into_the_run() -> None:
    assert message_of({"epochs": 5, "warmup_epochs": 6}) == "warmup_epochs (=6) must be at most epochs (=5)"
    assert make_config({"epochs": 5, "warmup_epochs": 5}).warmup_epochs == 5


def test_reflection_needs_an_image_larger_than_the_padding() -> None:
    message = message_of({"padding_mode": "reflect", "crop_padding": 8, "image_size": 8})
    assert message.startswith("crop_padding (=8) must be less than image_size (=8)")
    assert make_config({"padding_mode": "reflect", "crop_padding": 7, "image_size": 8}).crop_padding == 7
    assert make_config({"padding_mode": "zeros", "crop_padding": 8, "image_size": 8}).crop_padding == 8


def test_cutout_fits_the_image() -> None:
    assert message_of({"cutout": 17, "image_size": 8}) == "cutout (=17) must be at most twice image_size (=8)"
    assert make_config({"cutout": 16, "image_size": 8}).cutout == 16


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("100,150", (100, 150)),
        (" 100 , 150 ", (100, 150)),
        ("100", (100,)),
        ("0.5,1.5,", (0.5, 1.5)),
        ([100, 150], (100, 150)),
        (["100", 150.5], (100, 150.5)),
        (100, (100,)),
        (2.5, (2.5,)),
        (None, None),
    ],
)
def test_milestones_are_read_from_text_lists_and_a_lone_number(value: Any, expected: Any) -> None:
    assert make_config({"milestones": value}).milestones == expected


@pytest.mark.parametrize(
    "value",
    ["", ",", "a,b", "150,100", "100,100", "0,100", "-1,5", "100;150", [], [150, 100], [0], [[1]], [None], [True], {}],
)
def test_bad_milestones_are_refused(value: Any) -> None:
    assert message_of({"milestones": value}).startswith("milestones (=")


@pytest.mark.parametrize("name", ["a/b", "/a", "a\\b", "..", ".", "a\0b", "a\nb", "a\x1fb"])
def test_a_name_must_be_one_folder(name: str) -> None:
    message = message_of({"name": name})
    assert message.startswith("name (=")
    assert message.endswith("must be a plain folder name")


def test_a_name_has_at_most_200_bytes() -> None:
    assert message_of({"name": "ö" * 101}).endswith("must be at most 200 bytes long")
    assert make_config({"name": "ö" * 100}).name == "ö" * 100


def test_options_of_the_network_are_as_the_network_has_them_unless_given() -> None:
    options = [name for name in option_names() if option_metadata(name)["panel"] == NETWORK_OPTIONS]
    assert options == ["stem", "norm_order", "zero_init_residual", "drop_path", "shortcut"]
    assert [getattr(make_config({}), name) for name in options] == [None] * 5
    assert [TrainConfig.model_fields[name].default for name in options] == [None] * 5


@pytest.mark.parametrize("name", option_names())
def test_every_setting_has_a_help_text_and_a_panel(name: str) -> None:
    description = TrainConfig.model_fields[name].description
    assert description
    assert description.strip().endswith((".", ">."))
    assert option_metadata(name)["panel"] in PANELS


def test_short_flags_are_unique_and_free() -> None:
    shorts = [short for name in option_names() if (short := option_metadata(name)["short"])]
    taken = Counter([*shorts, "-c", "-h"])
    assert max(taken.values()) == 1
    assert all(len(short) == 2 and short[0] == "-" for short in shorts)


def test_plain_values_are_strings_numbers_lists_and_none() -> None:
    plain = to_plain(make_config({"milestones": "1,2", "data_dir": "x"}))
    assert list(plain) == option_names()
    assert plain["data_dir"] == "x"
    assert plain["milestones"] == [1.0, 2.0]
    assert all(value is None or type(value) in (str, int, float, bool, list) for value in plain.values())


def another_value(name: str) -> Any:
    """A valid value of a setting that is not its default, by itself and as YAML has it."""
    field = TrainConfig.model_fields[name]
    numbers = [1, 2, 0.5, 8, 64, 300]
    allowed = [value for part in get_args(field.annotation) for value in (part, *get_args(part))]
    kinds: list[Any] = [*allowed, not field.default, *numbers, [1.0], "another", "1", "8:0.5"]
    for value in kinds:
        try:
            if getattr(make_config({name: value}), name) != field.default:
                return value
        except ValueError:
            continue
    raise AssertionError(f"no other value of {name} found")


MAY_CHANGE = [name for name in option_names() if option_metadata(name)["on_resume"]]
MUST_STAY = [name for name in option_names() if name not in MAY_CHANGE]


def test_what_decides_the_result_must_stay_on_resume_and_the_rest_may_change() -> None:
    assert {
        "arch", "dataset", "image_size", "train_size", "val_size", "crop_padding", "padding_mode", "flip", "cutout",
        "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup_epochs",
        "milestones", "gamma", "label_smoothing", "clip_grad", "seed", "channels_last", "stem", "norm_order",
        "shortcut", "zero_init_residual", "drop_path",
    } <= set(MUST_STAY)  # fmt: skip
    assert {
        "data_dir", "epochs", "name", "output_dir", "eval_every", "save_every", "log_every", "tensorboard", "device",
        "threads", "compile",
    } <= set(MAY_CHANGE)  # fmt: skip


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_a_setting_that_leaves_the_result_alone_may_change_on_resume(name: str) -> None:
    config = merge_on_resume(to_plain(TrainConfig()), {name: another_value(name)})
    assert config == make_config({name: another_value(name)})
    assert config != TrainConfig()


@pytest.mark.parametrize("name", MUST_STAY)
def test_a_setting_that_changes_the_result_is_refused_on_resume_with_both_values(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} ") as error:
        merge_on_resume(to_plain(TrainConfig()), {name: another_value(name)})
    before, after = getattr(TrainConfig(), name), getattr(make_config({name: another_value(name)}), name)
    assert f"{name} (={after}) " in str(error.value)
    assert f"(it was {before});" in str(error.value)


def test_a_setting_given_again_as_it_was_is_no_change() -> None:
    saved = to_plain(make_config({"lr": 0.05, "milestones": [1, 2]}))
    assert merge_on_resume(saved, {"lr": "5e-2", "milestones": "1,2", "arch": "resnet18"}) == make_config(saved)


def test_a_resumed_run_keeps_what_is_not_given() -> None:
    saved = to_plain(make_config({"lr": 0.05, "epochs": 7}))
    assert merge_on_resume(saved, {"epochs": 9}) == make_config({"lr": 0.05, "epochs": 9})


def test_a_bad_checkpoint_config_is_refused_with_its_source() -> None:
    with pytest.raises(ValueError, match="unknown setting 'old' in the checkpoint"):
        merge_on_resume({"old": 1}, {})


SURROGATE = "\ud800"
TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "nan", "-inf", "1e999", "0x10", "1_0", "auto", "random", "true", "a\0b", SURROGATE, "٣"]),
)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(option_names()) | TEXT


@settings(max_examples=200, deadline=None, database=None)
@given(values=st.dictionaries(NAMES, JSON_LIKE, max_size=5))
@example(values={"self": 1})
@example(values={"milestones": 10**400})
@example(values={"lr": 10**400})
@example(values={"milestones": [10**400]})
@example(values={"name": SURROGATE})
@example(values={"data_dir": SURROGATE})
def test_any_values_give_a_config_or_one_line(values: dict[str, Any]) -> None:
    try:
        outcome: TrainConfig | ValueError = make_config(values)
    except ValueError as error:
        outcome = error
    assert isinstance(outcome, TrainConfig) or type(outcome) is ValueError
    assert len(str(outcome).splitlines()) == 1


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(option_names()), value=JSON_LIKE)
def test_what_is_accepted_survives_the_way_through_yaml(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any
) -> None:
    try:
        config = make_config({name: value})
    except ValueError:
        config = make_config({})
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    assert round_trip(config, path) == config
