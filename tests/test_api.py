"""The functions of the package: what they take and return, what they raise, and that they leave nothing behind."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import resnet_train
from resnet_train import create_model, evaluate, export, load_model, predict, train
from resnet_train.config import make_config
from resnet_train.loggers.console import shown_log
from resnet_train.training.trainer import Trainer
from tests.harness.cli import Outcome, RunCli, epochs_shown, run_python

DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "arch": "resnet8",
    "image_size": 8,
    "train_size": 64,
    "batch_size": 32,
    "epochs": 2,
    "device": "cpu",
    "amp": "off",
    "tensorboard": False,
}


@pytest.fixture
def folder(trained: tuple[Path, Outcome]) -> Path:
    return trained[0]


def in_process() -> dict[str, Any]:
    """Return what other code in this process can see of its settings."""
    package = logging.getLogger("resnet_train")
    numbers = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)]
    return {
        "signals": [signal.getsignal(number) for number in numbers],
        "log": (package.handlers, package.propagate, package.level, logging.root.handlers),
        "warnings": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "kernels": (
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
        ),
        "random": torch.get_rng_state().tolist(),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "folder": Path.cwd(),
        "running": sorted(thread.name for thread in threading.enumerate()),
        "gradients": torch.is_grad_enabled(),
    }


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Check that what is done inside leaves the process as it was."""
    before = in_process()
    yield
    for name, value in in_process().items():
        assert value == before[name], name


@pytest.fixture
def unchanged(trained: tuple[Path, Outcome]) -> Iterator[None]:
    # `trained` has imported sklearn and torch's compiler, which set environment variables.
    with process_unchanged():
        yield


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, resnet_train; print(*dir(resnet_train)); print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    names, heavy = run_python("-c", code, cwd=tmp_path).stdout.splitlines()
    assert set(resnet_train.__all__) <= set(names.split())
    assert heavy == "set()"


@pytest.mark.parametrize("name", resnet_train.__all__)
def test_every_public_function_has_a_documented_signature(name: str) -> None:
    assert callable(getattr(resnet_train, name))
    assert getattr(resnet_train, name).__doc__


def test_unknown_attribute_of_the_package_is_named() -> None:
    with pytest.raises(AttributeError, match=r"^module 'resnet_train' has no attribute 'trian'$"):
        resnet_train.trian  # noqa: B018


# --- Training --------------------------------------------------------------------------------------------------------


def test_train_returns_records_and_folder(tmp_path: Path, unchanged: None) -> None:
    result = train(**DIGITS, output_dir=tmp_path, verbose=False)
    assert [record.epoch for record in result.records] == [1, 2]
    assert result.records[-1] == result.final
    assert (Path(result.folder) / "checkpoints" / "model.pt").is_file()
    assert result.name == "resnet8-digits-image-size8-train-size64-epochs2-batch-size32-amp-off-seed0"


def test_train_shows_what_the_command_shows(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(**DIGITS, name="x")
    shown = capfd.readouterr()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in DIGITS.items() if name != "tensorboard"]
    command = run_cli("resnet-train", *flags, "--no-tensorboard", "--name=y", "--json", cwd=tmp_path)
    lines, expected = (text.replace("runs/y", "runs/x").splitlines() for text in (shown.err, command.stderr))
    assert [line[:45] for line in lines] == [line[:45] for line in expected]  # what follows is the speed
    assert epochs_shown(shown.err) == ["1/2", "2/2"]
    assert shown.out == ""
    printed = json.loads(command.stdout)
    assert printed["records"] == [record.to_plain() for record in result.records]


def test_train_takes_a_recipe_and_a_config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []
    monkeypatch.setattr("resnet_train.api.train_run", lambda *arguments: received.append(arguments))
    train("quickstart", lr=0.2, output_dir=tmp_path)
    config, given, resume, name = received.pop()
    assert (config.dataset, config.lr, config.output_dir) == ("digits", 0.2, tmp_path)
    assert (resume, name) == (None, "quickstart-digits-lr0.2-seed0")

    train(make_config({"arch": "resnet20", "lr": 0.3}), epochs=3, resume="auto")
    config, given, resume, name = received.pop()
    assert given == {"arch": "resnet20", "lr": 0.3, "epochs": 3}
    assert (config, resume) == (make_config(given), "auto")

    (tmp_path / "own.yaml").write_text("arch: resnet32\n")
    train(tmp_path / "own.yaml")
    assert received.pop()[0].arch == "resnet32"

    train(dataset="digits", image_size=8, weights=folder / "checkpoints" / "model.pt")
    config, _, _, name = received.pop()
    assert config.arch == "resnet8"  # that of the weights
    assert name == "resnet8-digits-weights-run-image-size8-seed0"


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {"epcohs": 3}, r"unknown setting 'epcohs'; did you mean 'epochs'\?"),
        ((), {"epochs": 0}, r"epochs \(=0\) must be greater than or equal to 1"),
        ((), {"optimizer": "adamw", "nesterov": True}, r"nesterov \(=true\) has no effect"),
        (("resnet20-fats",), {}, "neither a recipe nor a readable file; did you mean 'resnet20-fast'"),
        ((), {"resume": "runs/none", "name": "x"}, "^name cannot be combined with the path of a run to resume"),
        ((), {"resume": "runs/none"}, "cannot read runs/none: No such file or directory"),
        ((), {"data_dir": "${UNSET}/x"}, "needs the environment variable UNSET, which is not set"),
    ],
)
def test_bad_settings_are_value_errors_with_the_words_of_the_command(
    arguments: tuple[str, ...],
    settings: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchanged: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(*arguments, verbose=False, **settings)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()


def test_a_finished_run_returns_its_result_again(tmp_path: Path) -> None:
    first = train(**DIGITS, output_dir=tmp_path, verbose=False)
    again = train(resume=first.folder, verbose=False)
    assert again.records == first.records
    longer = train(resume=first.folder, epochs=3, verbose=False)
    assert longer.records[:2] == first.records
    assert [record.epoch for record in longer.records] == [1, 2, 3]


def test_an_interrupt_saves_and_leaves_the_process_as_it_was(
    tmp_path: Path, unchanged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def interrupt(self: Trainer, batch: Any) -> None:
        step(self, batch)
        if self.progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt, match="the state is saved; continue with: resnet-train --resume"):
            train(**DIGITS, output_dir=tmp_path, name="x", threads=2, deterministic=True, verbose=False)
    stopped = train(resume=tmp_path / "x", verbose=False)
    whole = train(**DIGITS, output_dir=tmp_path, name="y", threads=2, deterministic=True, verbose=False)
    assert stopped.records == whole.records


def test_trainings_in_turn_leave_no_network_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[weakref.ref[Any]] = []
    build = Trainer.__post_init__

    def remember(self: Trainer) -> None:
        build(self)
        trainers.extend([weakref.ref(self), weakref.ref(self.model)])

    monkeypatch.setattr(Trainer, "__post_init__", remember)
    for name in "ab":
        train(**DIGITS, output_dir=tmp_path, name=name, verbose=False)
    gc.collect()
    assert len(trainers) == 4
    assert [kept for kept in trainers if kept() is not None] == []


def test_training_in_a_thread_equals_training(tmp_path: Path, unchanged: None) -> None:
    results = []
    options = {**DIGITS, "output_dir": tmp_path, "verbose": False}
    thread = threading.Thread(target=lambda: results.append(train(**options, name="a")))
    thread.start()
    thread.join()
    results.append(train(**options, name="b"))
    assert results[0].records == results[1].records


def test_a_second_training_at_a_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        train(**DIGITS, output_dir=tmp_path, verbose=False)

    monkeypatch.setattr("resnet_train.api.train_run", again)
    with pytest.raises(RuntimeError, match="another thread of this process is training"):
        train(**DIGITS, output_dir=tmp_path, verbose=False)
    monkeypatch.undo()
    assert len(train(**DIGITS, output_dir=tmp_path, verbose=False).records) == 2


def test_a_handler_of_the_caller_is_the_only_one() -> None:
    logger, handler = logging.getLogger("resnet_train"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        with shown_log():
            assert logger.handlers == [handler]
    finally:
        logger.removeHandler(handler)


# --- Loading and predicting ------------------------------------------------------------------------------------------


@pytest.fixture
def forms(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Yield one picture of 20×12 pixels in every form."""
    pixels = np.random.default_rng(1).integers(0, 256, size=(20, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as opened:
        yield {
            "path": tmp_path / "x.png",
            "text": str(tmp_path / "x.png"),
            "opened": opened,
            "image": Image.fromarray(pixels),
            "array": pixels,
            "planes": pixels.transpose(2, 0, 1),
            "tensor": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "opaque": np.dstack([pixels, np.full((20, 12), 255, np.uint8)]),
        }


def test_a_picture_is_prepared_alike_in_every_form(folder: Path, forms: dict[str, Any]) -> None:
    model = load_model(folder)
    expected = model.transform(forms["path"])
    assert (expected.shape, expected.dtype) == ((1, 3, 8, 8), torch.float32)
    for name, picture in forms.items():
        assert torch.equal(model.transform(picture), expected), name
    batch = model.transform([forms["image"], forms["array"]])
    assert torch.equal(batch, expected.expand(2, -1, -1, -1))
    assert torch.equal(model.transform(np.stack([forms["planes"]] * 3)), expected.expand(3, -1, -1, -1))
    gray = forms["array"][..., 0]
    assert torch.equal(model.transform(gray), model.transform(np.dstack([gray] * 3)))


def test_a_large_jpeg_is_prepared_as_the_command_does(folder: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, size=(300, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg")
    model = load_model(folder)
    with Image.open(tmp_path / "x.jpg") as opened:
        assert torch.equal(model.transform(opened), model.transform(tmp_path / "x.jpg"))
        assert opened.size == (200, 300)


def test_a_picture_of_the_caller_is_not_changed(folder: Path) -> None:
    picture = Image.new("RGB", (20, 12), "red")
    picture.getexif()[0x0112] = 6  # turned by 90°
    before = picture.tobytes()
    load_model(folder).transform(picture)
    assert (picture.tobytes(), picture.size, picture.getexif()[0x0112]) == (before, (20, 12), 6)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"must have uint8 pixels from 0 to 255, not float32"),
        (np.zeros((5, 5, 2), np.uint8), r"with C 1, 3 or 4, not \[5, 5, 2\]"),
        (np.zeros(4, np.uint8), r"not \[4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"not \[0, 4, 3\]"),
        ("nothing.png", r"^cannot read nothing.png: No such file"),
        (None, r"must be a path, a PIL image, an array or a tensor, not NoneType"),
        (Image.new("F", (4, 4)), "32 bits and no fixed range"),
    ],
)
def test_a_picture_of_another_kind_is_refused(folder: Path, picture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(folder).transform(picture)


def test_a_loaded_model_knows_what_it_is(folder: Path) -> None:
    model = load_model(folder)
    assert not model.training
    assert model.classes == tuple("0123456789")
    assert type(model.network) is type(create_model("resnet8"))
    assert (model.config.dataset, model.about.image_size, model.calibration is not None) == ("digits", 8, True)
    assert torch.equal(model(torch.ones(2, 3, 8, 8)), model.network(torch.ones(2, 3, 8, 8)))


def test_predictions_are_those_of_the_command(
    folder: Path, forms: dict[str, Any], run_cli: RunCli, tmp_path: Path
) -> None:
    outcome = run_cli("resnet-predict", folder, forms["path"], "--json", cwd=tmp_path)
    (expected,) = json.loads(outcome.stdout)["predictions"]
    model = load_model(folder).train()
    with process_unchanged():
        predictions = [*predict(folder, list(forms.values()), batch_size=1), *predict(model, forms["path"])]
    for found in predictions:
        assert [(one.name, one.probability) for one in found.top] == [tuple(one.values()) for one in expected["top"]]
        assert (found.calibrated, found.unknown) == (expected["calibrated"], expected["unknown"])
    assert [found.top[0].name for found in predict(model, list(forms.values()), batch_size=3)] == [
        expected["top"][0]["name"]
    ] * len(forms)
    assert model.training


def test_predictions_name_their_pictures(folder: Path, forms: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "x.png")
    names = [found.image for found in predict(folder, [forms["path"], forms["opened"], forms["array"]])]
    assert names == [path, path, "2"]
    assert predict(folder, []) == []
    assert [len(found.top) for found in predict(folder, np.zeros((2, 8, 8, 3), np.uint8), top=99)] == [10, 10]
    with pytest.raises(ValueError, match=r"^top \(=0\) must be at least 1"):
        predict(folder, path, top=0)


# --- Evaluating ------------------------------------------------------------------------------------------------------


def test_an_evaluation_is_that_of_the_command(folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    numbers = json.loads(run_cli("resnet-eval", folder, "--json", cwd=tmp_path).stdout)
    for model in (folder, str(folder), [folder], load_model(folder)):
        with process_unchanged():
            found = evaluate(model, verbose=False)
        assert (found.n, found.top1, found.loss) == (numbers["n"], numbers["top1"], numbers["loss"])
    assert evaluate(folder, split="val", predictions=tmp_path / "p.csv", verbose=False).n == 60
    assert (tmp_path / "p.csv").is_file()


def test_a_changed_model_is_evaluated_as_it_is(folder: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert evaluate(model, verbose=False).top1 < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splt": "val"}, r"unknown option 'splt'; did you mean 'split'\?"),
        ({"split": "vla"}, "unknown split 'vla'; use test, val or train"),
        ({"tta": "flip"}, "tta needs the path of a checkpoint instead of a loaded model"),
        ({"dataset": "cifar1000"}, r"unknown data set 'cifar1000'; did you mean 'cifar100'\?"),
    ],
)
def test_bad_options_of_an_evaluation_are_value_errors(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(load_model(folder), verbose=False, **options)


def test_a_network_without_description_is_refused(folder: Path) -> None:
    message = "a Linear does not know its classes and preprocessing; use a model that load_model returns"
    for use in (evaluate, lambda model: predict(model, [])):
        with pytest.raises(ValueError, match=message):
            use(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_an_exported_file_predicts_alike(folder: Path, tmp_path: Path, unchanged: None) -> None:
    found = export(folder, tmp_path / "x.pt", format="pt", verbose=False)
    assert found.num_bytes == (tmp_path / "x.pt").stat().st_size
    picture = np.zeros((8, 8, 3), np.uint8)
    assert predict(tmp_path / "x.pt", picture)[0].top == predict(folder, picture)[0].top
    with pytest.raises(ValueError, match="unknown format 'onxn'"):
        export(folder, tmp_path / "x.onnx", format="onxn", verbose=False)


def test_the_log_is_shown_on_stdout_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Shell:
        kernel = object()

    class IPython:
        get_ipython = Shell

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    with shown_log():
        logging.getLogger("resnet_train.x").info("hello")
    assert capsys.readouterr() == ("hello\n", "")
