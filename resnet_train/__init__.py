"""Train, resume and evaluate ResNets on CIFAR-10.

>>> from resnet_train.models import create_model
>>> model = create_model("resnet20", num_classes=10)
"""

__version__ = "0.1.0"
