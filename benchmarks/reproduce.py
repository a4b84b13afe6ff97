"""Train a recipe with several seeds and compare its accuracy with the stored one.

    scripts/reproduce resnet20-fast --seeds 3 --data-dir data/cifar10-jpeg

Exit code 0: the mean is below the stored mean by at most the stored tolerance. 1: it is lower. The runs stay in
runs/reproduce/; the same command resumes them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from resnet_train.jobs.compare import compare

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


def train(name: str, seeds: int, dataset: str, data_dir: Path) -> list[str]:
    """Train or resume the runs; return their folders."""
    command = [sys.executable, "-m", "resnet_train.cli.train", "--config", name, "--seeds", str(seeds)]
    command += ["--dataset", dataset, "--data-dir", str(data_dir), "--output-dir", "runs/reproduce"]
    command += ["--name", f"{name}-{dataset}", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    return [run["folder"] for run in json.loads(done.stdout)["runs"]]


def main(
    name: Annotated[str, typer.Argument(help="The recipe.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 … N-1.")] = 1,
    data_dir: Annotated[Path, typer.Option(help="Folder of the data set.")] = Path("data"),
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
) -> None:
    """Train a recipe with several seeds and compare its mean final test accuracy with the stored one."""
    expected = read_expected(name)
    (group,) = compare(train(name, seeds, expected["dataset"], data_dir)).groups
    passed = 100 * group.mean >= expected["accuracy"] - expected["tolerance"]
    for run in group.runs:
        print(f"seed {run.seed}  {100 * run.accuracy:.2f} %  {run.seconds or 0:.0f} s of training")
    spread = "" if group.sd is None else f" ± {100 * group.sd:.2f}"
    print(
        f"{'pass' if passed else 'FAIL'}: {name} on {expected['dataset']}: {100 * group.mean:.2f}{spread} % "
        f"(n={group.n}), "
        f"stored {expected['accuracy']:.2f} % (n={expected['n']}), at most {expected['tolerance']:.2f} below it"
    )
    if json_path is not None:
        result = {"name": name, "group": asdict(group), "expected": expected, "pass": passed}
        json_path.write_text(json.dumps(result, indent=1))
    raise typer.Exit(0 if passed else 1)


if __name__ == "__main__":
    typer.run(main)
