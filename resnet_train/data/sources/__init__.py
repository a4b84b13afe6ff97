"""The data sets, one file per source; each registers itself in `resnet_train.data.dataset.DATASETS`."""

from resnet_train.registry import import_modules

# `resnet-info datasets` lists these first, in this order, then those of other files.
import_modules(__name__, __path__, first=("cifar", "cifar10_tests", "digits", "folder"))
