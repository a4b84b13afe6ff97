"""Mutation testing: change one thing in the package and see whether a test notices.

    python -m tests.harness.mutation --sample 250 --seed 1 --json mutants.jsonl
    python -m tests.harness.mutation --sample 0 --paths resnet_train/build.py --tests tests/test_build.py --jobs 2

A first run of the default suite, traced by coverage, records which tests execute which lines and how long each test
takes; it is kept in `.mutation/` and made again when a file changes. Then every mutant is written to a copy of the
tree and meets the tests that execute its line, the fastest first, until one fails. Those tests run in a fork of a
process that has imported torch and pytest, so a mutant costs a second or two.

A mutant that no test notices although it changes nothing that can be observed is entered, with the reason, in
`mutation_equivalents.txt` beside this file; it then counts neither way.
"""

from __future__ import annotations

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import hashlib
import importlib
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGE = "resnet_train"
DEFAULT_MARKERS = "not slow and not gpu and not browser"
EQUIVALENTS = Path(__file__).with_name("mutation_equivalents.txt")
# What tests import besides the package, in the process that forks.
PRELOADED = ["torch", "torch._dynamo", "torch.distributed", "torch.utils.tensorboard", "torchvision"]
PRELOADED += ["typer", "pydantic", "yaml", "tqdm", "sklearn.datasets", "scipy.stats", "hypothesis", "pytest"]
# Seconds added for the order to tests that start processes, and to those whose file does not import what is mutated.
PENALTY = 1.0


@dataclass(frozen=True)
class Mutant:
    """One change of one file: `old` at the character `start` becomes `new`."""

    path: str
    line: int  # where the change is
    first: int  # lines of the statement, or of its head, that tests must execute to notice
    last: int
    start: int
    old: str
    new: str
    kind: str

    def applied_to(self, source: str) -> str:
        """Return the mutated source."""
        assert source[self.start : self.start + len(self.old)] == self.old, self
        return source[: self.start] + self.new + source[self.start + len(self.old) :]


# --- Making mutants ---------------------------------------------------------------------------------------------------

COMPARISONS = {
    ast.Lt: ["<=", ">"],
    ast.LtE: ["<", ">="],
    ast.Gt: [">=", "<"],
    ast.GtE: [">", "<="],
    ast.Eq: ["!="],
    ast.NotEq: ["=="],
    ast.Is: ["is not"],
    ast.IsNot: ["is"],
    ast.In: ["not in"],
    ast.NotIn: ["in"],
}
OPERATORS = {
    ast.Add: ["-"],
    ast.Sub: ["+"],
    ast.Mult: ["/"],
    ast.Div: ["*"],
    ast.FloorDiv: ["*"],
    ast.Mod: ["//"],
    ast.Pow: ["*"],
    ast.BitAnd: ["|"],
    ast.BitOr: ["&"],
    ast.BitXor: ["&"],
    ast.LShift: [">>"],
    ast.RShift: ["<<"],
}
TEXT_OF = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
}
TWINS = [("min", "max"), ("any", "all"), ("minimum", "maximum"), ("zeros", "ones"), ("sum", "mean"), ("floor", "ceil"),
         ("zeros_like", "ones_like"), ("argmin", "argmax"), ("train", "eval"), ("append", "remove")]  # fmt: skip
TWIN = {a: b for pair in TWINS for a, b in (pair, pair[::-1])}
SILENT_CALLS = {"debug", "info", "warning", "getLogger", "cast", "TypeVar", "Registry", "Option", "Argument"}


class Mutator(ast.NodeVisitor):
    """Collect all mutants of one file."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source = path, source
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.lines = source.splitlines()
        self.mutants: list[Mutant] = []
        self.region = (1, 1)
        self.settings: set[str] = set()
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config":
                self.settings.add(node.attr)
        self.visit(tree)

    def offset(self, line: int, column: int) -> int:
        """Return the character offset of a line and a column in UTF-8 bytes, as ast counts."""
        return self.line_starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def span(self, node: Any) -> tuple[int, int]:
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end]

    def add(self, node: Any, new: str, kind: str) -> None:
        """Replace the whole node."""
        start, end = self.span(node)
        self.add_at(start, self.source[start:end], new, kind)

    def add_at(self, start: int, old: str, new: str, kind: str) -> None:
        line = self.source.count("\n", 0, start) + 1
        self.mutants.append(Mutant(self.path, line, *self.region, start, old, new, kind))

    def add_between(self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str) -> None:
        """Replace an operator between two nodes."""
        gap_start, gap_end = self.span(left)[1], self.span(right)[0]
        at = self.source.find(old, gap_start, gap_end)
        if at >= 0:
            self.add_at(at, old, new, kind)

    # --- Statements ---

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            before = self.region
            head_end = node.body[0].lineno - 1 if getattr(node, "body", None) else node.end_lineno
            self.region = node.lineno, max(node.lineno, head_end or 0)
            self.drop_statement(node)
            super().visit(node)
            self.region = before
        else:
            super().visit(node)

    def drop_statement(self, node: ast.stmt) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else []
        dropped = (
            isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete)
            or (targets and all(isinstance(t, ast.Attribute | ast.Subscript) for t in targets))
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not is_silent(node.value))
        )
        if dropped:
            self.add(node, "pass", "statement dropped")

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # no docstrings
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in {"__repr__", "__str__"}:
            return
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        for new in OPERATORS.get(type(node.op), []):
            self.add_between(node.target, node.value, TEXT_OF[type(node.op)] + "=", new + "=", "operator")
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass  # dropped as a whole; its message is text

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_Return(self, node: ast.Return) -> None:
        if isinstance(node.value, ast.Name | ast.Attribute | ast.Call):
            self.add(node.value, "None", "return value dropped")
        self.generic_visit(node)

    # --- Conditions ---

    def force(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Constant):
            for value in ("True", "False"):
                self.add(test, value, "condition fixed")

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in self.text(node.test) or "__main__" in self.text(node.test):
            return
        self.force(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.force(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self.add(node.test, "False", "condition fixed")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.force(test)
        self.generic_visit(node)

    # --- Expressions ---

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:]):
            for new in COMPARISONS[type(operator)]:
                self.add_between(left, right, TEXT_OF[type(operator)], new, "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = isinstance(node.left, ast.JoinedStr) or isinstance(getattr(node.left, "value", None), str)
        union = isinstance(node.op, ast.BitOr) and self.text(node.right) == "None"
        if not text and not union:
            for new in OPERATORS.get(type(node.op), []):
                self.add_between(node.left, node.right, TEXT_OF[type(node.op)], new, "operator")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            self.add_between(left, right, old, new, "and/or")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.add(node, self.text(node.operand), "negation dropped")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(node, str(not value), "constant")
        elif isinstance(value, int):
            news = [f"{value + 1}"] + ([f"{value - 1}", f"{2 * value}"] if abs(value) > 1 else [])
            for new in news:
                self.add(node, new, "constant")
        elif isinstance(value, float):
            self.add(node, repr(value * 2) if value else "1.0", "constant")
            if value:
                self.add(node, repr(value / 2), "constant")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass  # text for people; before Python 3.12 its parts have no positions either

    def visit_Subscript(self, node: ast.Subscript) -> None:
        # Tuple[...], dict[...] and the like at module level are types.
        if isinstance(node.value, ast.Name) and node.value.id in {
            "tuple",
            "list",
            "dict",
            "Callable",
            "Registry",
            "Literal",
            "Annotated",
        }:
            return
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if is_silent(node):
            return
        name = call_name(node)
        if name in TWIN:
            start, end = self.span(node.func)
            self.add_at(end - len(name), name, TWIN[name], "function swapped")
        if (
            len(node.args) >= 2
            and name != "isinstance"
            and not any(isinstance(argument, ast.Starred) for argument in node.args[:2])
        ):
            first, second = node.args[:2]
            if self.text(first) != self.text(second) and not isinstance(second, ast.GeneratorExp):
                start, end = self.span(first)[0], self.span(second)[1]
                gap = self.source[self.span(first)[1] : self.span(second)[0]]
                self.add_at(
                    start, self.source[start:end], self.text(second) + gap + self.text(first), "arguments swapped"
                )
        for keyword in node.keywords:
            if keyword.arg is None:
                continue
            self.drop_keyword(node, keyword)
            value = keyword.value
            if isinstance(value, ast.Attribute) and self.text(value) == f"config.{value.attr}":
                others = sorted(self.settings - {value.attr})
                if others:
                    other = others[sum(map(ord, value.attr)) % len(others)]
                    self.add(value, f"config.{other}", "another setting")
        self.generic_visit(node)

    def drop_keyword(self, call: ast.Call, keyword: ast.keyword) -> None:
        start, end = self.span(keyword)
        tail = self.source[end : self.span(call)[1]]
        length = len(tail) - len(tail.lstrip(", \n")) if tail.lstrip().startswith(",") else 0
        self.add_at(start, self.source[start : end + length], "", "keyword dropped")


def call_name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_silent(node: ast.Call) -> bool:
    """Return whether a call only prints or logs, so that its arguments are text."""
    return call_name(node) in SILENT_CALLS


def all_mutants(root: Path, path: str) -> list[Mutant]:
    """Return every mutant of a file in the order of the file; a few do not compile."""
    return sorted(set(Mutator(path, (root / path).read_text()).mutants), key=lambda m: (m.start, m.kind, m.new))


def compiles(mutant: Mutant, source: str) -> bool:
    """Return whether the mutated file is Python."""
    try:
        compile(mutant.applied_to(source), mutant.path, "exec")
    except SyntaxError:
        return False
    return True


def draw_sample(root: Path, paths: list[str], size: int, seed: int) -> list[Mutant]:
    """Return about `size` mutants, each file with a share by its number of lines; all of them if size is 0."""
    lines = {path: len((root / path).read_text().splitlines()) for path in paths}
    chosen = []
    for path in paths:
        source, mutants = (root / path).read_text(), all_mutants(root, path)
        random.Random(f"{seed} {path}").shuffle(mutants)  # so that a file's sample depends on that file alone
        count = len(mutants) if not size else round(size * lines[path] / sum(lines.values()) + 0.25)
        valid = itertools.islice((mutant for mutant in mutants if compiles(mutant, source)), count)
        chosen += sorted(valid, key=lambda mutant: mutant.start)
    return chosen


def show(mutant: Mutant, root: Path) -> str:
    """Return the mutant as the lines of a unified diff that differ, with its place."""
    source = (root / mutant.path).read_text()
    before, after = source.splitlines(), mutant.applied_to(source).splitlines()
    while before and after and before[0] == after[0]:
        del before[0], after[0]
    while before and after and before[-1] == after[-1]:
        del before[-1], after[-1]
    diff = [f"- {line.strip()}" for line in before] + [f"+ {line.strip()}" for line in after]
    return f"{mutant.path}:{mutant.line} ({mutant.kind})\n" + "\n".join(f"    {line}" for line in diff)


# --- Which tests can notice -------------------------------------------------------------------------------------------


class Tracing:
    """A pytest plugin that records which tests and fixtures execute which lines, and each test's processor seconds."""

    def __init__(self, package: Path) -> None:
        import coverage

        self.coverage = coverage.Coverage(data_file=None, source=[str(package)])
        self.contexts = ["import"]
        self.fixtures: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self.spawning: set[str] = set()
        self.current = ""
        sys.addaudithook(self.audit)

    def audit(self, event: str, _: object) -> None:
        if self.current and event in {"subprocess.Popen", "os.fork", "os.posix_spawn"}:
            self.spawning.add(self.current)

    @contextlib.contextmanager
    def context(self, name: str) -> Iterator[None]:
        self.contexts.append(name)
        self.coverage.switch_context(name)
        try:
            yield
        finally:
            self.contexts.pop()
            self.coverage.switch_context(self.contexts[-1])

    def wrap(self, item: Any) -> Iterator[Any]:
        self.current = item.nodeid
        self.fixtures[item.nodeid] = [f"fixture:{name}" for name in item.fixturenames]
        for name in ("tests.harness.processes", "tests.processes"):
            if hasattr(sys.modules.get(name), "_ask") and {"run_forked", "start"} & set(vars(item.module)):
                self.spawning.add(item.nodeid)
        processor, clock = processor_seconds(), time.monotonic()
        with self.context(item.nodeid):
            result = yield
        # On a busy machine the clock says little; what grandchildren compute is not counted yet.
        waited = (time.monotonic() - clock) / 4
        self.seconds[item.nodeid] = round(max(processor_seconds() - processor, waited), 2)
        return result


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def record_map(root: Path, given: list[str], out: Path) -> None:
    """Run tests under coverage, the default suite or what pytest is given, and write the map of lines to tests."""
    import pytest

    tracing = Tracing(root / PACKAGE)

    class Plugin:
        def pytest_sessionstart(self) -> None:
            tracing.coverage.start()

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: Any) -> Any:
            return (yield from tracing.wrap(item))

        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(self, fixturedef: Any) -> Any:
            with tracing.context(f"fixture:{fixturedef.argname}"):
                return (yield)

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                tracing.failed.add(report.nodeid)

    os.chdir(root)
    pytest.main(["-q", "-p", "no:cacheprovider", "-m", DEFAULT_MARKERS, *given], plugins=[Plugin()])
    tracing.coverage.stop()
    data = tracing.coverage.get_data()
    lines: dict[str, dict[str, list[str]]] = {}
    for file in data.measured_files():
        path = str(Path(file).relative_to(root))
        lines[path] = {str(line): sorted(names) for line, names in data.contexts_by_lineno(file).items()}
    tests = {
        name: {
            "seconds": seconds,
            "fixtures": tracing.fixtures.get(name, []),
            "failed": name in tracing.failed,
            "spawning": name in tracing.spawning,
        }
        for name, seconds in tracing.seconds.items()
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"lines": lines, "tests": tests}))


class TestMap:
    """Which tests to run for a mutant, in which order."""

    def __init__(self, root: Path, path: Path) -> None:
        recorded = json.loads(path.read_text())
        self.tests: dict[str, dict[str, Any]] = {
            name: test for name, test in recorded["tests"].items() if not test["failed"]
        }
        self.lines = recorded["lines"]
        self.of_context: dict[str, set[str]] = collections.defaultdict(set)
        for name, test in self.tests.items():
            for context in [name, *test["fixtures"]]:
                self.of_context[context].add(name)
        self.sources = {file: (root / file).read_text() for file in {name.split("::")[0] for name in self.tests}}

    def tests_of(self, mutant: Mutant, budget: float) -> list[str]:
        """Return the tests that execute the mutant's statement, the likely and the fast ones first.

        Statements that run at import count as executed by whatever executes anything of their file. Tests that start
        processes may execute anything. The list ends where the tests' recorded seconds exceed `budget`.
        """
        of_file = self.lines.get(mutant.path, {})
        contexts = {name for line in range(mutant.first, mutant.last + 1) for name in of_file.get(str(line), [])}
        in_process = self.expand(contexts)
        if not in_process:
            at_import = any(str(line) in of_file for line in range(mutant.first, mutant.last + 1))
            if at_import:
                in_process = self.expand({name for names in of_file.values() for name in names})
        module = mutant.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        importing = {
            file for file, text in self.sources.items() if f"{module} import" in text or f"import {module}" in text
        }
        spawning = {name for name, test in self.tests.items() if test["spawning"]}
        chosen, total = [], 0.0

        def cost(name: str) -> float:
            test = self.tests[name]
            distance = name.split("::")[0] not in importing
            return float(test["seconds"]) + PENALTY * (distance + 2 * (test["spawning"] and name not in in_process))

        for name in sorted(in_process | spawning, key=lambda name: (cost(name), name)):
            total += self.tests[name]["seconds"]
            if chosen and total > budget:
                break
            chosen.append(name)
        return chosen

    def expand(self, contexts: set[str]) -> set[str]:
        return {test for context in contexts for test in self.of_context.get(context, ())}


# --- Running mutants --------------------------------------------------------------------------------------------------


class Order:
    """A pytest plugin that runs the given tests only, in the given order, and remembers the first that fails."""

    def __init__(self, names: list[str]) -> None:
        self.rank = {name: number for number, name in enumerate(names)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid or "collection"


def copy_tree(root: Path, target: Path) -> None:
    """Copy what tests need of the repository."""
    skipped = shutil.ignore_patterns(".git", ".venv", ".mutation", "*.egg-info", ".*_cache", "build", "dist")
    shutil.copytree(root, target, ignore=skipped, dirs_exist_ok=True)
    shutil.rmtree(target / "runs", ignore_errors=True)  # the package's own `runs` stays


def run_in_fork(tree: Path, names: list[str], seconds: float) -> str:
    """Run tests in a forked process and return the name of the first that failed, "" if none did."""
    answer = tree.with_suffix(".answer")
    answer.write_text("died")
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
            answer.write_text(run_tests(tree, names))
            code = 0
        except BaseException as error:
            answer.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20 * seconds  # for tests that wait instead of computing
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            answer.write_text("time is up")
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # processes that the tests left behind
    return answer.read_text()


def run_tests(tree: Path, names: list[str]) -> str:
    """Run tests of a tree in this process, which must not have imported the package."""
    for name in [name for name in sys.modules if name.split(".")[0] in {PACKAGE, "tests"}]:
        del sys.modules[name]
    os.chdir(tree)
    sys.path[:] = [str(tree), *(entry for entry in sys.path if entry not in {"", str(Path.cwd())})]
    os.environ["PYTHONPATH"] = str(tree)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import pytest

    order = Order(names)
    files = list(dict.fromkeys(name.split("::")[0] for name in names))
    temporary = tree.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    quiet = "ignore::pytest.PytestAssertRewriteWarning"  # its plugins were imported before the fork
    options = ["-W", quiet, "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", f"--basetemp={temporary}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([*options, *files], plugins=[order])
    assert importlib.import_module(PACKAGE).__file__ == str(tree / PACKAGE / "__init__.py")
    return order.failed or ("" if code == 0 else f"exit code {int(code)}")


def try_mutant(mutant: Mutant, tree: Path, tests: TestMap, budget: float) -> dict[str, Any]:
    """Return a row for the JSON file: the mutant, which test noticed it, and how long that took."""
    names = tests.tests_of(mutant, budget)
    path, start = tree / mutant.path, time.monotonic()
    source, status = path.read_text(), path.stat()
    path.write_text(mutant.applied_to(source))
    os.utime(path, (1, 1 + mutant.start))  # so that no compiled file fits
    try:
        seconds = 3 * sum(tests.tests[name]["seconds"] for name in names) + 30
        noticed = run_in_fork(tree, names, seconds) if names else ""
    finally:
        path.write_text(source)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    seconds = round(time.monotonic() - start, 1)
    return {**asdict(mutant), "noticed": noticed, "tests": len(names), "seconds": seconds}


def serve(tree: Path, tests: TestMap, budget: float) -> None:
    """Read mutants from stdin, one JSON object a line, and answer with their rows on stdout."""
    for module in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    fastest = sorted(tests.tests, key=lambda name: float(tests.tests[name]["seconds"]))[:200]
    failed = run_in_fork(tree, fastest, 300)
    if failed:
        raise SystemExit(f"without a mutation {failed} fails")
    for line in sys.stdin:
        print(json.dumps(try_mutant(Mutant(**json.loads(line)), tree, tests, budget)), flush=True)


class Worker:
    """A process with a copy of the tree that tries one mutant after the other."""

    def __init__(self, root: Path, map_path: Path, budget: float, folder: Path) -> None:
        tree = folder / "tree"
        copy_tree(root, tree)
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(tree)], check=False)
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(tree), str(map_path), str(budget)]
        quiet = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "HYPOTHESIS_DERANDOMIZE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, **quiet}
        )

    def __call__(self, mutant: Mutant) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(mutant)) + "\n")
        self.process.stdin.flush()
        row: dict[str, Any] = json.loads(self.process.stdout.readline())
        return row


# --- Reporting --------------------------------------------------------------------------------------------------------


def read_equivalents() -> dict[tuple[str, str, str, str], str]:
    """Return the reasons by path, text of the line, and change."""
    if not EQUIVALENTS.exists():
        return {}
    rows = [line.split(" | ") for line in EQUIVALENTS.read_text().splitlines() if line and not line.startswith("#")]
    return {(path, line, old, new): reason for path, line, old, new, reason in rows}


def key_of(mutant: Mutant, root: Path) -> tuple[str, str, str, str]:
    """Return the key of a mutant in the list of equivalents, without a line number, which would change."""
    line = (root / mutant.path).read_text().splitlines()[mutant.line - 1].strip()
    one_line = [" ".join(text.split()) for text in (line, mutant.old, mutant.new)]
    return mutant.path, one_line[0], one_line[1], one_line[2]


def report(rows: list[dict[str, Any]], root: Path) -> str:
    """Return the table by file, and the survivors."""
    equivalents = read_equivalents()
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    survivors = []
    for row in rows:
        mutant = as_mutant(row)
        state = "noticed" if row["noticed"] else "survived"
        if state == "survived" and key_of(mutant, root) in equivalents:
            state = "equivalent"
        if state == "survived":
            survivors.append(
                f"{show(mutant, root)}\n    # {' | '.join(key_of(mutant, root))} | ({row['tests']} tests ran)"
            )
        table[mutant.path][state] += 1
    total = sum(table.values(), collections.Counter())
    text = [f"{'file':44} noticed survived equivalent"]
    for path, counts in [*sorted(table.items()), ("all", total)]:
        counted = counts["noticed"] + counts["survived"]
        share = f"{counts['noticed'] / counted:.1%}" if counted else ""
        text.append(f"{path:44} {counts['noticed']:7} {counts['survived']:8} {counts['equivalent']:10} {share:>7}")
    return "\n".join([*text, "", *survivors])


def as_mutant(row: dict[str, Any]) -> Mutant:
    return Mutant(**{name: row[name] for name in Mutant.__dataclass_fields__})


def digest(root: Path, tests: list[str]) -> str:
    """Return a name for the state of the package and its tests, and the tests that are run."""
    files = sorted([*(root / PACKAGE).rglob("*.py"), *(root / "tests").rglob("*.py")])
    return hashlib.blake2b(
        b"".join([*(file.read_bytes() for file in files), *map(str.encode, tests)]), digest_size=6
    ).hexdigest()


def main() -> None:
    """Run from the root of the repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=250, help="how many mutants; 0 tries all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--paths", nargs="*", help="files or folders; the whole package if not given")
    parser.add_argument(
        "--json", type=Path, help="append a line for each mutant; those already there are not tried again"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time")
    parser.add_argument("--budget", type=float, default=25.0, help="seconds of tests for one mutant, as recorded")
    parser.add_argument("--tests", nargs="*", default=[], help="test files; the default suite if not given")
    parser.add_argument("--list", action="store_true", help="print the sample and try nothing")
    arguments = parser.parse_args()
    root = Path.cwd()
    given = [root / path for path in arguments.paths or [PACKAGE]]
    files = [file for path in given for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    sample = draw_sample(root, [str(file.relative_to(root)) for file in files], arguments.sample, arguments.seed)
    if arguments.list:
        print("\n".join(show(mutant, root) for mutant in sample))
        return
    map_path = root / ".mutation" / f"{digest(root, arguments.tests)}.json"
    if not map_path.exists():
        print("recording which tests execute which lines …", file=sys.stderr)
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--record",
            str(root),
            str(map_path),
            *arguments.tests,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "PYTHONPATH": str(root)}
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    rows = []
    if arguments.json and arguments.json.exists():
        rows = [json.loads(line) for line in arguments.json.read_text().splitlines()]
    done = {as_mutant(row) for row in rows}
    rows = [row for row in rows if as_mutant(row) in set(sample)]
    left, lock = [mutant for mutant in sample if mutant not in done], threading.Lock()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        idle = [Worker(root, map_path, arguments.budget, Path(folder) / str(n)) for n in range(arguments.jobs)]

        def try_one(mutant: Mutant) -> None:
            with lock:
                worker = idle.pop()
            row = worker(mutant)
            with lock:
                idle.append(worker)
                rows.append(row)
                if arguments.json:
                    with arguments.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                state = f"noticed by {row['noticed']}" if row["noticed"] else "SURVIVED"
                print(
                    f"{len(rows)}/{len(sample)} {row['seconds']:.0f} s {state}: {show(mutant, root)}", file=sys.stderr
                )

        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(try_one, left))
        for worker in idle:
            worker.process.kill()
    print(report(rows, root))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), TestMap(Path(sys.argv[2]), Path(sys.argv[3])), float(sys.argv[4]))
    elif sys.argv[1:2] == ["--record"]:
        record_map(Path(sys.argv[2]), sys.argv[4:], Path(sys.argv[3]))
    else:
        main()
