"""The pictures of a run: captions, mistakes, confusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resnet_train.data.batch import Batch
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.records import About
from resnet_train.report import pictures
from resnet_train.report.pictures import IMAGE_SIDE, MARGIN, NUM_SHOWN, PER_ROW
from tests.harness.trainers import tiny_trainer

LOGITS = torch.tensor([[9.0, 0, 0], [0, 3.0, 0], [0, 0, 5.0], [0, 2.0, 0], [4.0, 0, 0]])
EVALUATION = Evaluation(loss=1.0, logits=LOGITS, labels=torch.tensor([0, 0, 1, 2, 0]))


def top_left(picture: np.ndarray, number: int, lines: int) -> tuple[int, int, int]:
    """Return the color at the top left of an image in a picture."""
    row, column = divmod(number, PER_ROW)
    cell = IMAGE_SIDE + MARGIN + lines * pictures.LINE_HEIGHT
    return tuple(picture[row * cell + MARGIN // 2, column * (IMAGE_SIDE + MARGIN) + MARGIN // 2].tolist())


def solid(*colors: int, size: int = 4) -> np.ndarray:
    """Return images uint8 [N, 3, size, size] of these greys."""
    return np.stack([np.full((3, size, size), color, dtype=np.uint8) for color in colors])


def test_images_stand_in_order_and_at_most_16_are_shown() -> None:
    picture = pictures.caption_images(solid(*range(0, 200, 10)), ["a"] * 20)
    for number in range(NUM_SHOWN):
        assert top_left(picture, number, 1) == (10 * number,) * 3
    assert picture.shape[0] == NUM_SHOWN // PER_ROW * (IMAGE_SIDE + MARGIN + pictures.LINE_HEIGHT)


@pytest.mark.parametrize("size", [1, 32, 300])
def test_images_of_every_size_fill_their_cell(size: int) -> None:
    picture = pictures.caption_images(solid(7, size=size), ["a"])
    assert (picture == 7).all(axis=2).sum() == IMAGE_SIDE**2


def test_no_images_are_an_empty_picture() -> None:
    assert (pictures.caption_images(solid(1)[:0], []) == 255).all()


def test_the_most_confident_mistake_comes_first() -> None:
    assert pictures.find_mistakes(EVALUATION).tolist() == [2, 1, 3]


def test_mistakes_are_captioned_with_prediction_and_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    monkeypatch.setattr(pictures, "caption_images", lambda images, texts: captions.extend(texts))
    pictures.draw_mistakes(EVALUATION, np.array([2, 1]), solid(1, 2), ["cat", "dog", "ship"])
    assert captions == ["ship 99%\nis dog", "dog 91%\nis cat"]


def test_mixed_images_have_both_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    about = About.model_construct(mean=[0.5] * 3, std=[0.25] * 3, classes=["cat", "dog"])
    shown: list[tuple[np.ndarray, list[str]]] = []
    monkeypatch.setattr(pictures, "caption_images", lambda *arguments: shown.append(arguments))
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.tensor([0]), torch.tensor([1]), torch.tensor([0.7]))
    pictures.draw_batch(batch, about)
    pictures.draw_batch(Batch(torch.full((1, 3, 2, 2), 2.0), torch.tensor([1])), about)
    (mixed, plain) = shown
    assert (mixed[1], plain[1]) == (["70% cat\n30% dog"], ["dog"])
    assert (mixed[0].max(), plain[0].min()) == (128, 255)


@pytest.mark.parametrize("num_classes", [2, 20, 100, 300])
def test_a_confusion_matrix_shades_each_cell_by_its_share(num_classes: int) -> None:
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    confusion[:, 0] = 5
    hostile = ["", "a\nb\x1b[31m", "ß" * 500, *map(str, range(num_classes))]
    picture = pictures.draw_confusion(confusion, hostile[:num_classes])
    dark = (picture == [8, 48, 107]).all(axis=2)
    columns = np.flatnonzero(dark.any(axis=0))
    assert dark.any()
    assert columns.max() - columns.min() < picture.shape[1] / num_classes + 1
    assert picture.shape[0] < 1500


def test_gathered_indices_follow_the_outputs_of_all_ranks() -> None:
    loader = tiny_trainer().eval_loaders["test"]
    loader.batch_size, loader.num_ranks = 20, 3
    outputs = []
    for rank in range(3):
        loader.rank = rank
        outputs += [loader.labels[loader.plan(0).order[start : start + 20][rank::3]] for start in range(0, 48, 20)]
    expected = torch.cat(outputs).numpy()
    assert (loader.labels.numpy()[loader.gathered_indices()] == expected).all()
    assert sorted(loader.gathered_indices()) == list(range(48))
