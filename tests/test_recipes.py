"""Recipes: the shipped ones are valid, YAML is read as version 1.2, and invalid files give one line."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from resnet_train.build import check_config
from resnet_train.config import make_config
from resnet_train.recipes import find_recipe, read_yaml, recipe_folder, recipe_names, recipe_text, to_yaml

RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read_text(text: str, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def test_shipped_recipes_are_those_in_configs() -> None:
    assert recipe_names() == RECIPES
    assert {"quickstart", "resnet18", "resnet20"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_is_valid(name: str) -> None:
    config = make_config(read_yaml(find_recipe(name)), name)
    check_config(config)
    assert config.name is None


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_head_has_its_command_and_its_result(name: str) -> None:
    head = [line for line in recipe_text(name).split("\n") if line.startswith("#")]
    assert recipe_text(name).startswith("# ")
    assert head[0].endswith((".", ". The defaults of resnet-train."))
    (command,) = [line for line in head if line.startswith("# command ")]
    (measured,) = [line for line in head if line.startswith("# measured ")]
    assert f"resnet-train --config {name}" in command
    assert len(measured.removeprefix("# measured ").strip()) > 5


def test_recipe_resnet18_has_the_default_settings() -> None:
    assert make_config(read_yaml(find_recipe("resnet18"))) == make_config({})


def test_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 3\n")
    assert find_recipe("resnet20") == recipe_folder() / "resnet20.yaml"
    assert find_recipe(str(tmp_path / "own.yaml")) == tmp_path / "own.yaml"


@pytest.mark.parametrize("name", ["resnet2O", "", "no/such.yaml", "a\0b", ".", "x" * 5000])
def test_neither_recipe_nor_file_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"^config .* is neither a recipe nor a readable file; .+$"):
        find_recipe(name)


def test_misspelled_recipe_suggests_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"; did you mean 'quickstart'\?$"):
        find_recipe("quick-start")


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("+1.5e+2", 150.0),
        ("-2e0", -2.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0.1", 0.1),
        ("12", 12),
        ("-3", -3),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1.2.3", "1.2.3"),
        ("-", [None]),
        ("[1, 2.5]", [1, 2.5]),
    ],
)
def test_scalars_are_read_as_in_yaml_1_2(scalar: str, value: Any, tmp_path: Path) -> None:
    (found,) = read_text(f"key:\n  {scalar}\n", tmp_path).values()
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_but_rejected_as_a_setting(tmp_path: Path) -> None:
    values = read_text("lr: .nan\n", tmp_path)
    assert values["lr"] != values["lr"]
    with pytest.raises(ValueError, match=r"^lr \(=nan\) must be a finite number$"):
        make_config(values)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n", "{}\n"])
def test_empty_file_holds_no_settings(text: str, tmp_path: Path) -> None:
    assert read_text(text, tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- lr: 1\n", "must be a mapping of settings .* not a list"),
        ("lr\n", "must be a mapping of settings .* not a str"),
        ("3\n", "must be a mapping of settings .* not a int"),
        ("1: 2\n", "has a key that is not a string: 1"),
        ("true: 2\n", "has a key that is not a string: True"),
        ("? [1]\n: 2\n", "is not valid YAML"),
        ("lr: [1\n", "line 2 is not valid YAML"),
        ("lr: 1\n  epochs: 2\n", "line 2 is not valid YAML"),
        ("lr: 1\n---\nlr: 2\n", "line 2 is not valid YAML"),
        ("lr: *nowhere\n", "line 1 is not valid YAML"),
        ("lr: !!python/object/apply:os.getcwd []\n", "line 1 is not valid YAML"),
        ("lr: " + "9" * 5000 + "\n", "is not valid YAML"),
        ("lr: " + "[" * 1000 + "\n", "is not valid YAML"),
        ("lr: " + "[" * 1000 + "]" * 1000 + "\n", "is not valid YAML"),
        ("lr: \x07\n", "is not valid YAML"),
        ("a\0b", "has null bytes, as UTF-16 without a byte order mark has; save it as UTF-8"),
        ("lr: 1\nepochs: 3\nlr: 2\n", "line 3 is not valid YAML: 'lr' is set twice, first on line 1"),
        ("lr: 1\n'lr': 1\n", "line 2 is not valid YAML: 'lr' is set twice, first on line 1"),
        ("{lr: 1, epochs: 3, lr: 1}\n", "line 1 is not valid YAML: 'lr' is set twice, first on line 1"),
        ("lr:\n  - a: 1\n    a: 2\n", "line 3 is not valid YAML: 'a' is set twice, first on line 2"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", "line 4 is not valid YAML: '<<' is set twice"),
        ("b:\n  <<: {x: 1, x: 2}\n", "'x' is set twice"),
        ("lr: !!bool perhaps\n", "is not valid YAML"),
        ("lr: !!int ''\n", "is not valid YAML"),
        ("lr: !!float ''\n", "is not valid YAML"),
        ("lr: !!timestamp today\n", "is not valid YAML"),
    ],
)
def test_invalid_file_gives_one_line_with_its_path(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_text(text, tmp_path)
    assert str(error.value).startswith(str(tmp_path / "some.yaml"))
    assert len(str(error.value).splitlines()) == 1


def test_a_merge_may_be_overridden(tmp_path: Path) -> None:
    text = "a: &a {lr: 1, seed: 1}\nb: &b {<<: *a, lr: 2}\nc: {<<: [*b, *a], seed: 3}\nd: {<<: *b, seed: 4}\n"
    found = read_text(text, tmp_path)
    assert found["b"] == {"lr": 2, "seed": 1}
    assert found["c"] == {"lr": 2, "seed": 3}
    assert found["d"] == {"lr": 2, "seed": 4}


MARKED = {"utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
          "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}  # fmt: skip


@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_tells_the_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(MARKED[encoding] + "epochs: 3\r\ndata_dir: größer/画像\r\n".encode(encoding))
    assert read_yaml(path) == {"epochs": 3, "data_dir": "größer/画像"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr: 1\nname: gr\xf6sser\n", r"line 2 is not UTF-8 text \(byte 0xf6\); save it as UTF-8$"),
        (bytes(range(256)), r"line 2 is not UTF-8 text \(byte 0x80\); save it as UTF-8$"),
        ("name: 画像\n".encode("cp932"), r"line 1 is not UTF-8 text \(byte 0x89\)"),
        (codecs.BOM_UTF8 + b"lr: \xff\n", r"line 1 is not UTF-8 text \(byte 0xff\)"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8", r"line 1 is not UTF-16 text"),
        ("lr: 1\n".encode("utf-16-le"), "has null bytes, as UTF-16 without a byte order mark has; save it as UTF-8$"),
    ],
)
def test_another_encoding_is_named_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^.*some\.yaml,? {message}"):
        read_yaml(path)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp437", "cp932", "latin-1"])
def test_yaml_survives_every_encoding_and_holds_no_control(encoding: str, tmp_path: Path) -> None:
    values = {
        "a": "größer",
        "b": "画像 – ×",
        "c": "\x1b[31m\x9b\x7f",
        "d": "two\nlines",
        "e": "\u202ex\u2028",
        "f": "\udcff",
    }
    text = to_yaml(values, encoding).encode(encoding).decode(encoding)
    assert text.replace("\n", "").isprintable()
    assert len(text.splitlines()) == len(values)
    assert read_text(text, tmp_path) == values


def test_missing_file_and_folder_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot read .*none\.yaml: No such file or directory$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"^cannot read .*: Is a directory$"):
        read_yaml(tmp_path)


def test_yaml_keeps_the_order_and_unicode() -> None:
    assert to_yaml({"lr": 0.1, "arch": "resnet20", "name": "größer"}) == "lr: 0.1\narch: resnet20\nname: größer\n"
