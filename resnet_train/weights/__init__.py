"""The trained network that comes with the package; its card is README.md next to this file."""

from __future__ import annotations

from pathlib import Path

SHIPPED = "resnet20-cifar10"  # its name where a command takes a checkpoint


def shipped_checkpoint() -> Path:
    """Return the checkpoint of the network that comes with the package."""
    return Path(__file__).with_name(f"{SHIPPED}.pt")
