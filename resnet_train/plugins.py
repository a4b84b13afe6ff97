"""Plugins: the user's Python files, and installed packages, that register networks, augmentations and so on.

A plugin registers where it is imported, as the package's own files do; docs/plugins/README.md shows how. A file is run
when the user names it, never because a checkpoint does. An installed package announces its modules as entry points
in the group `resnet_train.plugins`.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from resnet_train.registry import recording

GROUP = "resnet_train.plugins"


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin.

    Attributes:
        name: the name of the file or of the entry point.
        version: the SHA-256 of the file, or the name and version of the package.
        path: the file; None if it is installed.
        unload: calls that undo what it has registered.
    """

    name: str
    version: str
    path: Path | None = None
    unload: list[Callable[[], object]] = field(default_factory=list, repr=False, compare=False)


_LOADED: dict[str, Plugin] = {}


def loaded_plugins() -> dict[str, Plugin]:
    """Return the loaded plugins by name."""
    return dict(_LOADED)


def load_plugins(paths: Iterable[str]) -> None:
    """Load the files that are not loaded yet, and reload those that have changed since.

    Raises:
        ValueError: a file can't be read, fails, or registers a name that is taken; or two files have one name.
    """
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if files.setdefault(path.name, path).absolute() != path.absolute():
            raise ValueError(f"plugins {files[path.name]} and {path} have the same name; rename one of them")
    for path in files.values():
        load_plugin(path)


def load_plugin(path: Path | str) -> None:
    """Load one file, unless it is loaded and unchanged.

    Raises:
        ValueError: it can't be read, fails, or registers a name that is taken.
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read plugin {path}: {reason}") from None

    # An edited file replaces what it registered before.
    version = hashlib.sha256(source).hexdigest()
    if (before := _LOADED.get(path.name)) is not None:
        if before.version == version:
            return
        unload(before.name)
    _register(Plugin(path.name, version, path), lambda: _run_file(path, source))


def load_installed() -> None:
    """Load the plugins that installed packages announce and that are not loaded yet.

    Raises:
        ValueError: one fails, or registers a name that is taken.
    """
    for entry in entry_points(group=GROUP):
        if entry.name not in _LOADED:
            package = entry.dist
            version = f"{package.name} {package.version}" if package is not None else ""
            _register(Plugin(entry.name, version), entry.load)


def unload(name: str) -> None:
    """Undo what a plugin has registered."""
    for call in _LOADED.pop(name).unload:
        call()


def _register(plugin: Plugin, run: Callable[[], object]) -> None:
    """Run a plugin and record what it registers; if it fails, undo all of it.

    Raises:
        ValueError: it fails; the message has the line.
    """
    with recording() as undo:
        try:
            run()
        except BaseException as error:
            for call in undo:
                call()
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ValueError(f"plugin {_describe_error(plugin, error)}") from error
    plugin.unload.extend(undo)
    _LOADED[plugin.name] = plugin


def _run_file(path: Path, source: bytes) -> None:
    """Run a file as a module with its name, which dataclasses and pickles look for."""
    name = f"{GROUP}.{path.stem}"
    module = ModuleType(name)
    module.__file__ = str(path)
    code = compile(source, str(path), "exec")
    sys.modules[name] = module
    linecache.checkcache(str(path))  # tracebacks show the lines as they are now
    exec(code, module.__dict__)  # noqa: S102 - the user has named the file


def _describe_error(plugin: Plugin, error: BaseException) -> str:
    """Return where and why a plugin failed: `my.py, line 3: ValueError: …`."""
    where = str(plugin.path) if plugin.path else f"{plugin.name} of the installed package {plugin.version}"
    if isinstance(error, SyntaxError) and error.filename == str(plugin.path):
        return f"{where}, line {error.lineno}: {error.msg}"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(plugin.path)]
    line = f", line {lines[-1].lineno}" if lines else ""
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return f"{where}{line}: {kind}{str(error) or 'no message'}"


def describe_plugins(paths: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """Return what a checkpoint says about the plugins of a run: its files, and the packages that are installed."""
    files = {Path(path).name: path for path in paths}
    return {
        plugin.name: {"version": plugin.version, "path": files.get(plugin.name)}
        for plugin in _LOADED.values()
        if plugin.path is None or plugin.name in files
    }
