"""Train, resume, evaluate and use ResNets on CIFAR-10.

>>> from resnet_train import create_model
>>> model = create_model("resnet20", num_classes=10)

docs/python.md shows the functions in use. They are imported on first use, because torch takes 2 s to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_train.api import compare, create_model, evaluate, export, load_model, predict, train

__version__ = "0.2.0"
__all__ = ["compare", "create_model", "evaluate", "export", "load_model", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("resnet_train.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
