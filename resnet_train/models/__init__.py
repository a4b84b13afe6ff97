"""The networks: `create_model("resnet18", num_classes=10)`."""

from resnet_train.models import resnet, cifar_resnet  # noqa: F401, I001 - importing a family registers it, in this order
from resnet_train.models.complexity import Complexity, measure_complexity
from resnet_train.models.registry import ModelEntry, create_model, find_model, list_models, register_model

__all__ = [
    "Complexity",
    "ModelEntry",
    "create_model",
    "find_model",
    "list_models",
    "measure_complexity",
    "register_model",
]
