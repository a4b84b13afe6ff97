"""Networks: `create_model("resnet18", num_classes=10)`."""

from resnet_train.models.complexity import Complexity, measure_complexity
from resnet_train.models.registry import ModelEntry, create_model, find_model, list_models, register_model, sketch_model
from resnet_train.registry import import_modules

__all__ = [
    "Complexity",
    "ModelEntry",
    "create_model",
    "find_model",
    "list_models",
    "measure_complexity",
    "register_model",
    "sketch_model",
]

# Importing a family registers it; `list_models` lists these first, in this order, then those of other files.
import_modules(__name__, __path__, first=("resnet", "cifar_resnet", "preact", "wide", "resnext", "resnet9"))
