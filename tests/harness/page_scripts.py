"""The scripts of an exported page, run by Node.js instead of a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = files("resnet_train.export") / "page"
LOGITS = """
const [page, pixels] = process.argv.slice(1).map(path => require("fs").readFileSync(path));
const part = id => page.toString().match(new RegExp(`id="${id}">([^<]*)<`))[1];
const run = prepareNetwork(JSON.parse(part("network")), part("weights"));
const {size} = JSON.parse(part("network")), length = 3 * size * size, logits = [];
for (let at = 0; at < pixels.length; at += length) logits.push(Array.from(run(pixels.subarray(at, at + length))));
console.log(JSON.stringify(logits));
"""
SQUARE = """
const [path, width, height, size, isJpeg] = process.argv.slice(1);
const pixels = new Uint8ClampedArray(require("fs").readFileSync(path));
const readRows = (y, count) => pixels.slice(y * width * 4, (y + count) * width * 4);
console.log(JSON.stringify(Array.from(toSquare(readRows, +width, +height, +size, isJpeg === "True"))));
"""


def run_in_node(scripts: list[str], code: str, *arguments: object) -> Any:
    """Run code after scripts of the page, and return the JSON that it prints."""
    node = shutil.which("node")
    if not node:
        pytest.skip("Node.js is not installed")
    texts = [(PAGE / name).read_text(encoding="utf-8").replace('"use strict";', "") for name in scripts]
    command = [node, "--eval", "\n".join([*texts, code]), "--", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def compute_logits(page: Path, pixels: np.ndarray, folder: Path) -> np.ndarray:
    """Return the logits [B, C] that the scripts of a page compute for uint8 [B, 3, S, S]."""
    (folder / "pixels").write_bytes(pixels.tobytes())
    return np.array(run_in_node(["network.js"], LOGITS, page, folder / "pixels"), np.float32)


def to_square(rgba: np.ndarray, size: int, is_jpeg: bool, folder: Path) -> np.ndarray:
    """Return the square [3, S, S] that the scripts make of a picture, uint8 [H, W, 4]."""
    (folder / "rgba").write_bytes(rgba.tobytes())
    height, width, _ = rgba.shape
    square = run_in_node(["picture.js"], SQUARE, folder / "rgba", width, height, size, is_jpeg)
    return np.array(square, np.uint8).reshape(3, size, size)
