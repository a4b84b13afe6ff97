"""Folders for the Hugging Face Hub: true numbers, a card that works, hostile names inert, pushes only when asked."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from resnet_train.runs.checkpoint import read_checkpoint, read_model, write_checkpoint
from resnet_train.runtime.extras import EXTRAS, import_extra
from resnet_train.text import escape
from tests.harness.cli import Outcome, RunCli
from tests.test_export import export

ROOT = Path(__file__).parents[1]
HOSTILE = [
    "two\nlines",
    "\x1b[31mred\x1b[0m",
    "\u202ereversed",
    "]]><script>alert(1)</script>",
    "---\nlicense: mit",
    "{{ x }} | `code` | **bold**",
    "# heading",
    "![](https://example.com/x.png)",
    "```\nimport os\n```",
    "'\"&amp;: - [a](javascript:b) \ud800",
]


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Outcome]) -> Path:
    return trained[0] / "checkpoints" / "model.pt"


@pytest.fixture(scope="module")
def folder(model: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported folder. Read only."""
    cwd = tmp_path_factory.mktemp("hub")
    outcome = export(run_cli, model, "-f", "hub", "-o", "net", "--license", "mit", cwd=cwd)
    assert (outcome.code, outcome.stderr) == (0, "")
    return cwd / "net"


def split_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the YAML and the Markdown of a card."""
    empty, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", split_card(folder)[1], re.DOTALL)
    return code


def test_numbers_of_the_card_are_those_of_resnet_eval(folder: Path, model: Path, run_cli: RunCli) -> None:
    front, body = split_card(folder)
    expected = json.loads(run_cli("resnet-eval", model, "--json", cwd=folder).stdout)
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "top-1 accuracy", "value": expected["top1"]}]
    assert result["dataset"] == {"type": "imagefolder", "name": expected["title"], "split": "test"}
    low, high = expected["ci95"]
    assert f"| top-1 accuracy | {expected['top1']:.2%} (95 % interval {low:.2%} to {high:.2%}) |" in body
    assert f"| mean cross-entropy | {expected['loss']:.4f} |" in body
    assert f"On {expected['n']} test images of" in body


def test_the_card_is_valid_for_the_hub(folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-classification"
    assert {"resnet8", "image-classification"} < set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.dataset_split) == ("accuracy", "test")


def test_lines_of_the_card_load_the_network(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = code_of(folder)
    assert len([line for line in code.splitlines() if line]) <= 3
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - what the card tells its readers to do
    weights = names["model"].network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in read_model(model).weights.items())


def test_config_describes_the_network(folder: Path, model: Path) -> None:
    found, checkpoint = json.loads((folder / "config.json").read_text()), read_model(model)
    assert checkpoint.calibration is not None
    assert list(found["id2label"].values()) == checkpoint.about.classes
    assert (found["arch"], found["image_size"], found["mean"]) == ("resnet8", 8, checkpoint.about.mean)
    assert found["calibration"]["temperature"] == checkpoint.calibration.temperature


def test_every_command_reads_the_folder(folder: Path, model: Path, run_cli: RunCli) -> None:
    found, expected = (
        json.loads(run_cli("resnet-eval", path, "--json", cwd=folder).stdout) for path in (folder, model)
    )
    assert (found["top1"], found["loss"]) == (expected["top1"], expected["loss"])
    assert export(run_cli, model, "--check", folder, cwd=folder).code == 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_check_finds_a_changed_folder(name: str, model: Path, folder: Path, run_cli: RunCli, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data.replace(b"resnet8", b"resnet9"))
    outcome = export(run_cli, model, "--check", copy, cwd=tmp_path)
    assert outcome.code == 1
    assert name in outcome.stderr


def test_without_test_images_the_card_says_not_measured(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(model)
    contents["config"]["dataset"] = contents["about"]["dataset"] = "cifar10"
    write_checkpoint(tmp_path / "x.pt", contents)
    outcome = export(run_cli, "x.pt", "-f", "hub", cwd=tmp_path)
    assert outcome.code == 0
    assert outcome.stderr.startswith("warning: the card will have no measured numbers: ")
    front, body = split_card(tmp_path / "x-hub")
    assert "model-index" not in front
    assert "Not measured" in body
    assert front["datasets"] == ["uoft-cs/cifar10"]


def test_an_epoch_chosen_on_the_test_set_is_not_praised(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.pt", {**read_checkpoint(model), "chosen_on": "test"})
    assert export(run_cli, "x.pt", "-f", "hub", cwd=tmp_path).code == 0
    front, body = split_card(tmp_path / "x-hub")
    assert "do not report this accuracy" in body
    assert "model-index" not in front


def test_hostile_names_are_inert_in_the_card(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    contents = read_checkpoint(model)
    contents["about"] |= {"classes": HOSTILE, "title": "".join(HOSTILE)}
    contents["environment"]["torch"] = "<b>`2`</b>"
    contents["config"]["name"] = "```x"
    write_checkpoint(tmp_path / "x.pt", contents)
    outcome = export(run_cli, "x.pt", "-f", "hub", cwd=tmp_path)
    assert outcome.code == 0, outcome
    front, body = split_card(tmp_path / "x-hub")
    assert front["license"] == "unknown"
    assert all(c.isprintable() or c == "\n" for c in body)
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    parts = [token for block in parsed for token in (block, *(block.children or []))]
    used = {token.type.removesuffix("_open").removesuffix("_close") for token in parts}
    assert used <= {"heading", "paragraph", "inline", "text", "text_special", "fence", "code_inline", "softbreak"}
    assert [token.tag for token in parts if token.type == "heading_open"] == ["h1", "h2", "h2", "h2", "h2"]
    shown = "".join(token.content for token in parts if token.type in ("text", "text_special"))
    assert all(escape(name) in shown for name in HOSTILE)
    found = json.loads((tmp_path / "x-hub" / "config.json").read_text())
    assert list(found["id2label"].values()) == HOSTILE


def test_the_card_says_that_other_code_trained_the_weights(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    torch.save(read_model(model).weights, tmp_path / "foreign.pt")
    given = ["--arch", "resnet8", "--normalize", "0.5,0.25"]
    outcome = export(run_cli, "foreign.pt", "-f", "hub", "--dataset", "digits", *given, cwd=tmp_path)
    assert outcome.code == 0, outcome
    front, body = split_card(tmp_path / "foreign-hub")
    assert "The weights were trained by other code" in body
    assert front["model-index"][0]["results"][0]["dataset"]["split"] == "test"


def test_an_unknown_license_is_refused(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    error = export(run_cli, model, "-f", "hub", "--license", "MIT License", cwd=tmp_path).error
    assert "license (='MIT License') must be an identifier of the Hub" in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_replaced(model: Path, run_cli: RunCli, tmp_path: Path) -> None:
    assert export(run_cli, model, "-f", "hub", "-o", "net", cwd=tmp_path).code == 0
    assert "net exists" in export(run_cli, model, "-f", "hub", "-o", "net", cwd=tmp_path).error
    (tmp_path / "net" / "README.md").write_text("edited")
    assert export(run_cli, model, "-f", "hub", "-o", "net", "--force", cwd=tmp_path).code == 0
    assert split_card(tmp_path / "net")
    (tmp_path / "net" / "thesis.tex").write_text("mine")
    error = export(run_cli, model, "-f", "hub", "-o", "net", "--force", cwd=tmp_path).error
    assert error == "error: net holds thesis.tex, which no export wrote; choose another --output"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


# --- Pushing ---------------------------------------------------------------------------------------------------------


class Api:
    """The part of `huggingface_hub.HfApi` that a push uses."""

    calls: ClassVar[list[tuple[str, Any]]] = []
    error: ClassVar[Exception | None] = None

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> str:
        self.calls.append(("create", repo_id))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append(("upload", {path.name for path in Path(folder_path).iterdir()}))
        if self.error is not None:
            raise self.error


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    monkeypatch.setattr(Api, "calls", [])
    return Api


def test_a_push_uploads_the_checked_folder(
    api: type[Api], model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = export(run_cli, model, "-f", "hub", "-o", "net", "--push", "me/net", cwd=tmp_path)
    assert outcome.code == 0, outcome
    assert "pushed      https://huggingface.co/me/net" in outcome.stdout
    assert api.calls == [("create", "me/net"), ("upload", {"README.md", "config.json", "model.safetensors"})]
    # The lines of the card fetch from there.
    fetched = lambda repo, name: str(tmp_path / "net" / name) if repo == "me/net" else ""  # noqa: E731
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    names: dict[str, Any] = {}
    exec(code_of(tmp_path / "net"), names)  # noqa: S102
    assert names["model"](torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_a_refused_push_keeps_the_folder(
    api: type[Api], model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "error", RuntimeError("401 Client Error\nUnauthorized"))
    outcome = export(run_cli, model, "-f", "hub", "-o", "net", "--push", "me/net", cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == "error: cannot push net to me/net: 401 Client Error Unauthorized\n"
    assert split_card(tmp_path / "net")


def test_a_push_is_checked_before_anything_is_done(
    api: type[Api], model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = ["-f", "hub", "-o", "net", "--push"]
    assert "must be USER/NAME" in export(run_cli, model, *push, "a/b/c", cwd=tmp_path).error
    assert (
        "--push has no effect with --format pt" in export(run_cli, model, "-f", "pt", "--push", "a", cwd=tmp_path).error
    )
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    error = export(run_cli, model, *push, "me/net", cwd=tmp_path).error
    assert error == "error: --push needs a token of huggingface.co: run `hf auth login`, or set HF_TOKEN"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = export(run_cli, model, *push, "me/net", cwd=tmp_path).error
    assert error == ('error: --push needs huggingface-hub, which is not installed: pip install "resnet-train[hub]"')
    assert list(tmp_path.iterdir()) == []
    assert api.calls == []


# --- Extras ----------------------------------------------------------------------------------------------------------


def test_extras_are_those_of_the_project_file() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(re.match(rf"{package.replace('_', '-')}\W", line) for line in extras[extra]), package
    assert {"export", "hub"} <= set(re.findall(r"\w+", next(line for line in extras["dev"] if "resnet-train[" in line)))


@pytest.mark.parametrize(
    ("package", "form"),
    [("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "onnx"), ("safetensors", "safetensors"),
     ("safetensors", "hub")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(
    package: str, form: str, model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    error = export(run_cli, model, "-f", form, "-o", "x", cwd=tmp_path).error
    remedy = 'pip install "resnet-train[export]"'
    assert error == f"error: --format {form} needs {package}, which is not installed: {remedy}"
    assert list(tmp_path.iterdir()) == []


def test_a_broken_package_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "safetensors.py").write_text("import nothing_here")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "safetensors", raising=False)
    with pytest.raises(ModuleNotFoundError, match="nothing_here"):
        import_extra("safetensors", "a test")
