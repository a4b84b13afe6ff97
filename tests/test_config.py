"""Settings: defaults, ranges, error messages, and which may change when a run is resumed."""

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
    FINE_TUNING,
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
from resnet_train.models import list_models
from resnet_train.recipes import read_yaml, to_yaml

BOOLEANS = {name for name in option_names() if TrainConfig.model_fields[name].annotation in (bool, bool | None)}
PANELS = {NETWORK, NETWORK_OPTIONS, FINE_TUNING, DATA, AUGMENTATION, OPTIMIZATION, RUN, MACHINE}


def message_of(values: dict[str, Any]) -> str:
    """Return the error message of `make_config`, which must be one line."""
    with pytest.raises(ValueError, match=r".") as error:
        make_config(values)
    assert not isinstance(error.value, ValidationError)
    assert "\n" not in str(error.value)
    return str(error.value)


def round_trip(config: TrainConfig, path: Path) -> TrainConfig:
    """Write a config to YAML and read it back."""
    path.write_text(to_yaml(to_plain(config)), encoding="utf-8")
    return make_config(read_yaml(path), str(path))


def test_empty_settings_give_the_documented_defaults() -> None:
    config = make_config({})
    assert (config.arch, config.dataset, config.epochs, config.batch_size) == ("resnet18", "cifar10", 200, 128)
    assert (config.lr, config.momentum, config.weight_decay, config.schedule) == (0.1, 0.9, 5e-4, "cosine")
    assert (config.seed, config.val_size, config.output_dir, config.device) == (0, 0, Path("runs"), "auto")


@pytest.mark.parametrize("name", option_names())
def test_default_is_within_its_range(name: str) -> None:
    default = TrainConfig.model_fields[name].default
    assert getattr(make_config({name: default}), name) == default


def test_defaults_round_trip_through_yaml(tmp_path: Path) -> None:
    assert round_trip(TrainConfig(), tmp_path / "config.yaml") == TrainConfig()


def test_all_kinds_of_values_round_trip_through_yaml(tmp_path: Path) -> None:
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
def test_name_that_looks_like_another_type_round_trips(name: str, tmp_path: Path) -> None:
    config = make_config({"name": name})
    assert round_trip(config, tmp_path / "config.yaml") == config


def test_config_is_frozen() -> None:
    config = make_config({})
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0


def test_unknown_setting_suggests_the_nearest_name() -> None:
    assert message_of({"bach_size": 3}) == "unknown setting 'bach_size'; did you mean 'batch_size'?"
    assert message_of({"Learning": 3}).startswith("unknown setting 'Learning'")
    assert message_of({"zzzzzzzz": 3}) == "unknown setting 'zzzzzzzz'"


def test_error_names_the_source() -> None:
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
def test_invalid_value_gives_one_line_with_name_and_value(name: str, value: Any, shown: str) -> None:
    message = message_of({name: value})
    assert message.startswith(f"{name} (={shown}")
    assert len(message) < 200
    assert "<class" not in message


@pytest.mark.parametrize("name", [name for name in option_names() if name not in BOOLEANS])
@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_rejected_by_other_settings(name: str, value: bool) -> None:
    assert message_of({name: value}) == f"{name} (={str(value).lower()}) must not be true or false"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize(
    "name", ["lr", "momentum", "weight_decay", "warmup_epochs", "gamma", "label_smoothing", "clip_grad", "milestones"]
)
def test_infinite_and_nan_are_rejected(name: str, value: Any) -> None:
    assert message_of({name: value}).startswith(f"{name} (=")


def test_long_value_is_truncated_in_the_error() -> None:
    assert len(message_of({"epochs": "9" * 10_000 + "x"})) < 250


def test_two_invalid_values_are_both_named() -> None:
    message = message_of({"epochs": 0, "lr": -1})
    assert "epochs (=0)" in message
    assert "lr (=-1)" in message


def test_nesterov_requires_momentum() -> None:
    assert message_of({"nesterov": True, "momentum": 0}) == "momentum (=0) must be greater than 0 with nesterov"
    assert make_config({"nesterov": True}).nesterov


def test_warmup_is_at_most_the_run() -> None:
    assert message_of({"epochs": 5, "warmup_epochs": 6}) == "warmup_epochs (=6) must be at most epochs (=5)"
    assert make_config({"epochs": 5, "warmup_epochs": 5}).warmup_epochs == 5


def test_reflect_padding_is_smaller_than_the_image() -> None:
    message = message_of({"padding_mode": "reflect", "crop_padding": 8, "image_size": 8})
    assert message.startswith("crop_padding (=8) must be less than image_size (=8)")
    assert make_config({"padding_mode": "reflect", "crop_padding": 7, "image_size": 8}).crop_padding == 7
    assert make_config({"padding_mode": "zeros", "crop_padding": 8, "image_size": 8}).crop_padding == 8


def test_cutout_is_at_most_twice_the_image() -> None:
    assert message_of({"cutout": 17, "image_size": 8}) == "cutout (=17) must be at most twice image_size (=8)"
    assert make_config({"cutout": 16, "image_size": 8}).cutout == 16


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("100,150", (100, 150)),
        ("none", None),
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
def test_milestones_parse_from_text_lists_and_numbers(value: Any, expected: Any) -> None:
    assert make_config({"milestones": value}).milestones == expected


@pytest.mark.parametrize(
    "value",
    ["", ",", "a,b", "150,100", "100,100", "0,100", "-1,5", "100;150", [], [150, 100], [0], [[1]], [None], [True], {}],
)
def test_invalid_milestones_are_rejected(value: Any) -> None:
    assert message_of({"milestones": value}).startswith("milestones (=")


@pytest.mark.parametrize("name", ["a/b", "/a", "a\\b", "..", ".", "a\0b", "a\nb", "a\x1fb"])
def test_name_must_be_a_plain_folder_name(name: str) -> None:
    message = message_of({"name": name})
    assert message.startswith("name (=")
    assert message.endswith("must be a plain folder name")


@pytest.mark.parametrize(("name", "largest"), [("cutout", 1024), ("name", "a" * 200)])
def test_the_largest_value_is_accepted_and_no_larger(name: str, largest: Any) -> None:
    values = {"image_size": 1024, name: largest}
    assert getattr(make_config(values), name) == largest
    assert message_of(values | {name: largest + (1 if isinstance(largest, int) else "a")}).startswith(f"{name} (=")


def test_name_has_at_most_200_bytes() -> None:
    assert message_of({"name": "ö" * 101}).endswith("must be at most 200 bytes long")
    assert make_config({"name": "ö" * 100}).name == "ö" * 100


def test_network_options_are_those_of_the_architectures() -> None:
    shown = {name for name in option_names() if option_metadata(name)["panel"] == NETWORK_OPTIONS}
    assert shown == {option for entry in list_models() for option in entry.options}
    assert all(getattr(make_config({}), name) is None for name in shown)


@pytest.mark.parametrize("name", option_names())
def test_setting_has_a_help_text_and_a_panel(name: str) -> None:
    description = TrainConfig.model_fields[name].description
    assert description
    assert description.strip().endswith(".")
    assert option_metadata(name)["panel"] in PANELS


def test_short_flags_are_unique() -> None:
    shorts = [short for name in option_names() if (short := option_metadata(name)["short"])]
    taken = Counter([*shorts, "-c", "-h"])
    assert max(taken.values()) == 1
    assert all(len(short) == 2 and short[0] == "-" for short in shorts)


def test_plain_config_holds_primitives_only() -> None:
    plain = to_plain(make_config({"milestones": "1,2", "data_dir": "x"}))
    assert list(plain) == option_names()
    assert plain["data_dir"] == "x"
    assert plain["milestones"] == [1.0, 2.0]
    assert all(value is None or type(value) in (str, int, float, bool, list) for value in plain.values())


def another_value(name: str) -> Any:
    """Return a valid plain value of a setting that differs from its default."""
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
    raise AssertionError(f"found no other value of {name}")


CHANGEABLE = [name for name in option_names() if option_metadata(name)["on_resume"] == "free"]
FIXED = [name for name in option_names() if option_metadata(name)["on_resume"] == "fixed"]


def test_settings_that_affect_the_result_are_fixed_on_resume() -> None:
    assert {
        "arch", "dataset", "image_size", "train_size", "val_size", "crop_padding", "padding_mode", "flip", "cutout",
        "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup_epochs",
        "milestones", "gamma", "label_smoothing", "clip_grad", "seed", "channels_last", "stem", "norm_order",
        "shortcut", "zero_init_residual", "drop_path",
    } <= set(FIXED)  # fmt: skip
    assert {
        "data_dir", "name", "output_dir", "eval_every", "save_every", "log_every", "tensorboard", "device",
        "threads", "compile",
    } <= set(CHANGEABLE)  # fmt: skip


@pytest.mark.parametrize("name", CHANGEABLE)
def test_other_settings_may_change_on_resume(name: str) -> None:
    config = merge_on_resume(to_plain(TrainConfig()), {name: another_value(name)})
    assert config == make_config({name: another_value(name)})
    assert config != TrainConfig()


@pytest.mark.parametrize("name", FIXED)
def test_change_of_a_fixed_setting_names_both_values(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} ") as error:
        merge_on_resume(to_plain(TrainConfig()), {name: another_value(name)})
    before, after = getattr(TrainConfig(), name), getattr(make_config({name: another_value(name)}), name)
    assert f"{name} (={after}) " in str(error.value)
    assert f"(it was {before});" in str(error.value)


def test_epochs_may_be_raised_but_not_lowered_on_resume() -> None:
    saved = to_plain(TrainConfig())
    assert merge_on_resume(saved, {"epochs": 201}) == make_config({"epochs": 201})
    with pytest.raises(ValueError, match=r"^epochs \(=199\) must not be less than at the start of the run \(=200\)$"):
        merge_on_resume(saved, {"epochs": 199})


def test_same_value_in_another_form_is_no_change() -> None:
    saved = to_plain(make_config({"lr": 0.05, "milestones": [1, 2]}))
    assert merge_on_resume(saved, {"lr": "5e-2", "milestones": "1,2", "arch": "resnet18"}) == make_config(saved)


def test_resumed_run_keeps_settings_that_are_not_given() -> None:
    saved = to_plain(make_config({"lr": 0.05, "epochs": 7}))
    assert merge_on_resume(saved, {"epochs": 9}) == make_config({"lr": 0.05, "epochs": 9})


def test_invalid_config_in_a_checkpoint_names_its_source() -> None:
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


ANY_VALUES = st.dictionaries(NAMES, JSON_LIKE, max_size=5)
QUICK = settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
THOROUGH = settings(QUICK, max_examples=1000)


def check_any_values(values: dict[str, Any]) -> None:
    """Check that values give a config or a one-line ValueError."""
    try:
        outcome: TrainConfig | ValueError = make_config(values)
    except ValueError as error:
        outcome = error
    assert isinstance(outcome, TrainConfig) or type(outcome) is ValueError
    assert len(str(outcome).splitlines()) == 1


def check_round_trip(name: str, value: Any, folder: Path) -> None:
    """Check that a value, if it is valid, survives YAML."""
    try:
        config = make_config({name: value})
    except ValueError:
        config = make_config({})
    assert round_trip(config, folder / "round-trip.yaml") == config


@QUICK
@given(values=ANY_VALUES)
@example(values={"self": 1})
@example(values={"milestones": 10**400})
@example(values={"lr": 10**400})
@example(values={"milestones": [10**400]})
@example(values={"name": SURROGATE})
@example(values={"data_dir": SURROGATE})
def test_any_values_give_a_config_or_one_line(values: dict[str, Any]) -> None:
    check_any_values(values)


@pytest.mark.slow
@THOROUGH
@given(values=ANY_VALUES)
def test_thousand_values_give_a_config_or_one_line(values: dict[str, Any]) -> None:
    check_any_values(values)


@QUICK
@given(name=st.sampled_from(option_names()), value=JSON_LIKE)
def test_valid_values_round_trip_through_yaml(tmp_path_factory: pytest.TempPathFactory, name: str, value: Any) -> None:
    check_round_trip(name, value, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@THOROUGH
@given(name=st.sampled_from(option_names()), value=JSON_LIKE)
def test_thousand_values_round_trip_through_yaml(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any
) -> None:
    check_round_trip(name, value, tmp_path_factory.getbasetemp())
