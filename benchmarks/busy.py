"""Images per second alongside other busy processes, for several spin counts of OpenMP's waiting threads.

    python benchmarks/busy.py --out benchmarks/results/busy-cpu.json
    python benchmarks/busy.py --counts default,1000,10000,100000 --rounds 1

Each spin count has one process, which waits while another is timed. Rounds are interleaved. `default` leaves the
environment unchanged, as for a script that imports torch first; the console scripts use the count in
`resnet_train/cli/__init__.py`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

RECIPES = ("resnet20", "quickstart")
BUSY = "while True: pass"
WARMUP_STEPS = 1


def work(seconds: float) -> None:
    """Measure one recipe for each line on stdin that names it, and print its images per second."""
    from resnet_train.config import make_config
    from resnet_train.jobs import measure
    from resnet_train.recipes import find_recipe, read_yaml
    from resnet_train.runtime.device import prepare_machine

    device = prepare_machine("cpu", 0)
    trainings = {}
    for recipe in RECIPES:
        config = make_config({**read_yaml(find_recipe(recipe)), "amp": "off"})
        trainer = measure.build_bench_trainer(config, measure.random_data(config), device)
        trainings[recipe] = measure.train(trainer, config)
    for line in sys.stdin:
        training = trainings[line.strip()]
        for _ in range(WARMUP_STEPS):
            next(training)
        num_images, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            num_images += next(training)
        print(num_images / (time.perf_counter() - start), flush=True)


@contextmanager
def worker(count: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Start a process that measures with a spin count."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    if count != "default":
        environment["GOMP_SPINCOUNT"] = count
    command = [sys.executable, __file__, "--seconds", str(seconds), "--worker"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], recipe: str) -> float:
    """Return the images per second of one measurement in a worker."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{recipe}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Run a number of processes that compute endlessly."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_all(counts: list[str], most_busy: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the images per second of each round by recipe, number of busy processes and spin count."""
    rates: dict[str, Any] = {r: {n: {c: [] for c in counts} for n in range(most_busy + 1)} for r in RECIPES}
    with ExitStack() as stack:
        workers = {count: stack.enter_context(worker(count, seconds)) for count in counts}
        for process in workers.values():  # build everything, and take the first steps, before the first measurement
            for recipe in RECIPES:
                ask(process, recipe)
        for number in range(most_busy + 1):
            with busy_processes(number):
                for turn in range(rounds):
                    print(f"alongside {number} busy processes, round {turn + 1}", file=sys.stderr)
                    for recipe in RECIPES:
                        for count in counts if turn % 2 == 0 else reversed(counts):
                            rates[recipe][number][count].append(ask(workers[count], recipe))
    return rates


def table(rates: dict[str, Any], counts: list[str]) -> str:
    """Return the medians as a Markdown table."""
    lines = [f"| recipe | busy processes | {' | '.join(counts)} |", "|---|---|" + "---|" * len(counts)]
    for recipe, numbers in rates.items():
        for number, by_count in numbers.items():
            cells = (f"{statistics.median(by_count[count]):,.0f}" for count in counts)
            lines.append(f"| {recipe} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    counts: Annotated[str, typer.Option(help="Spin counts, separated by commas.")] = "default,10000",
    most_busy: Annotated[int, typer.Option(help="Measure alongside 0 to N busy processes.")] = 3,
    rounds: Annotated[int, typer.Option(help="Measurements per spin count.")] = 3,
    seconds: Annotated[float, typer.Option(help="Length of a measurement.")] = 2.0,
    out: Annotated[Path | None, typer.Option(help="Also write all numbers as JSON.")] = None,
    is_worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Print the table."""
    if is_worker:
        work(seconds)
        return
    names = counts.split(",")
    rates = measure_all(names, most_busy, rounds, seconds)
    print(table(rates, names))
    if out is not None:
        import torch

        from resnet_train.runtime.environment import describe_environment

        facts = {"date": datetime.now(UTC).date().isoformat(), "environment": describe_environment(torch.device("cpu"))}
        command = {"counts": names, "rounds": rounds, "seconds": seconds}
        out.write_text(json.dumps({**facts, **command, "images_per_second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
