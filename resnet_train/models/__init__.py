"""Networks: `create_model("resnet18", num_classes=10)`."""

# Importing a family registers it; `list_models` keeps this order.
# isort: off
from resnet_train.models import resnet, cifar_resnet, preact, wide, resnext, resnet9  # noqa: F401

# isort: on
from resnet_train.models.complexity import Complexity, measure_complexity
from resnet_train.models.registry import ModelEntry, create_model, find_model, list_models, register_model, sketch_model

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
