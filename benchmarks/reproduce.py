"""Train a recipe with several seeds and compare its accuracy with the stored one.

    scripts/reproduce resnet20-fast --seeds 3 --data-dir data/cifar10-jpeg

Exit code 0: the mean is at most the stored tolerance below the stored mean. 1: it is further below. The runs stay in
runs/reproduce/; the same command resumes them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

EXPECTED = Path(__file__).with_name("expected.yaml")


def read_expected(name: str) -> dict[str, Any]:
    """Return the stored mean, tolerance and data set of a recipe.

    Raises:
        typer.BadParameter: Nothing is stored for it.
    """
    stored = yaml.safe_load(EXPECTED.read_text(encoding="utf-8"))
    if name not in stored:
        raise typer.BadParameter(f"nothing is stored for {name!r}; choose from {', '.join(sorted(stored))}")
    return stored[name]


def train(name: str, seed: int, dataset: str, data_dir: Path) -> dict[str, Any]:
    """Train or resume one run; return its final test accuracy in percent and its seconds of training."""
    command = [sys.executable, "-m", "resnet_train.cli.train", "--config", name, "--seed", str(seed)]
    command += ["--dataset", dataset, "--data-dir", str(data_dir), "--output-dir", "runs/reproduce"]
    command += ["--name", f"{name}-{dataset}-seed{seed}", "--resume", "auto", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    result = json.loads(done.stdout)
    timing = (Path(result["folder"]) / "timing.csv").read_text().splitlines()
    column = timing[0].split(",").index("train_seconds")
    seconds = sum(float(row.split(",")[column]) for row in timing[1:])
    return {
        "seed": seed,
        "accuracy": 100 * result["final"]["scores"]["test"]["accuracy"],
        "train_seconds": round(seconds, 1),
    }


def main(
    name: Annotated[str, typer.Argument(help="The recipe.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 … N-1.")] = 1,
    data_dir: Annotated[Path, typer.Option(help="Folder of the data set.")] = Path("data"),
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
) -> None:
    """Train a recipe with several seeds and compare its mean final test accuracy with the stored one."""
    expected = read_expected(name)
    runs = [train(name, seed, expected["dataset"], data_dir) for seed in range(seeds)]
    accuracies = [run["accuracy"] for run in runs]
    mean = statistics.mean(accuracies)
    spread = f" ± {statistics.stdev(accuracies):.2f}" if seeds > 1 else ""
    passed = mean >= expected["accuracy"] - expected["tolerance"]
    for run in runs:
        print(f"seed {run['seed']}  {run['accuracy']:.2f} %  {run['train_seconds']:.0f} s of training")
    print(
        f"{'pass' if passed else 'FAIL'}: {name} on {expected['dataset']} {mean:.2f}{spread} % (n={seeds}), "
        f"stored {expected['accuracy']:.2f} % (n={expected['n']}), at most {expected['tolerance']:.2f} below it"
    )
    if json_path is not None:
        json_path.write_text(json.dumps({"name": name, "runs": runs, "expected": expected, "pass": passed}, indent=1))
    raise typer.Exit(0 if passed else 1)


if __name__ == "__main__":
    typer.run(main)
