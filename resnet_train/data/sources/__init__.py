"""The data sets, one file per source; each registers itself in `resnet_train.data.dataset.DATASETS`."""

# `resnet-info datasets` lists them in this order.
# isort: off
from resnet_train.data.sources import cifar, cifar10_tests, digits, folder  # noqa: F401
