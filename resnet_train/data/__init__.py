"""Data sets as arrays, and the batches made from them."""

from resnet_train.data import sources  # noqa: F401 - importing a source registers it
