"""Small trainers for the tests of the training loop."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch

from resnet_train.data.augment import Normalize, RandomCrop, RandomFlip
from resnet_train.data.loader import BatchLoader
from resnet_train.data.plan import draw_plan, fixed_plan
from resnet_train.loggers.base import Logger
from resnet_train.models import create_model, measure_complexity
from resnet_train.optim.ema import AveragedModel
from resnet_train.optim.optimizers import build_optimizer
from resnet_train.optim.schedules import build_schedule
from resnet_train.training.trainer import Trainer

CPU = torch.device("cpu")
NUM_CLASSES = 3
cached_complexity = cache(measure_complexity)  # the deepest networks take seconds


def tiny_images(num_images: int = 48, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Random uint8 images whose brightness tells their class."""
    rng = np.random.default_rng(7)
    labels = np.arange(num_images) % NUM_CLASSES
    images = rng.integers(0, 80, size=(num_images, 3, size, size)) + 80 * labels[:, None, None, None]
    return images.astype(np.uint8), labels.astype(np.int64)


def tiny_trainer(epochs: int = 2, seed: int = 0, batch_size: int = 8, model=None, **settings) -> Trainer:
    """A resnet8 on tiny images: 6 steps an epoch."""
    images, labels = tiny_images()
    transforms = [RandomCrop(1), RandomFlip(), Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))]
    mix = settings.pop("mix", None)
    train_loader = BatchLoader(
        images,
        labels,
        batch_size=batch_size,
        transforms=transforms,
        plan=partial(draw_plan, seed, num_images=len(labels), transforms=transforms, mix=mix),
        device=CPU,
        drop_last=True,
    )
    test_loader = BatchLoader(
        images,
        labels,
        batch_size=20,
        transforms=transforms[-1:],
        plan=lambda _: fixed_plan(len(labels)),
        device=CPU,
    )
    torch.manual_seed(seed)
    model = model or create_model("resnet8", NUM_CLASSES)
    lr = settings.pop("lr", 0.05)
    name = settings.pop("optimizer", "sgd")
    optimizer = build_optimizer(name, model, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    logger, saver = settings.pop("logger", Logger()), settings.pop("saver", None)
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        schedule=build_schedule("cosine", epochs=epochs, steps_per_epoch=len(train_loader)),
        train_loader=train_loader,
        eval_loaders={"test": test_loader},
        num_classes=NUM_CLASSES,
        averaged=AveragedModel(model, 0.9) if settings.pop("ema", False) else None,
        epochs=epochs,
        lr=lr,
        seed=seed,
        **settings,
    )
    trainer.attach(logger, saver)
    return trainer


def assert_same_tensors(left: object, right: object, where: str = "") -> None:
    """Nested states are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same_tensors(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right)):
            assert_same_tensors(a, b, f"{where}[{number}]")
    else:
        assert left == right, f"{where}: {left} is not {right}"
