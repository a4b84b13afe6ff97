"""Batches: which images they hold, in which order, resident or streamed, on one rank or several."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_train.data.augment import Cutout, Normalize, RandomCrop, RandomFlip, Transform
from resnet_train.data.loader import PREFETCHED_BATCHES, BatchLoader, eval_loader, fits_on
from resnet_train.data.mix import Mix
from resnet_train.data.plan import draw_plan, fixed_plan
from tests.harness.trainers import CPU, assert_same_tensors, tiny_images

NUM = 50
NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TRAINING = (RandomCrop(2), RandomFlip(), Cutout(4, 8))


def stored(num_images=NUM):
    """Return random images whose label is their index, so that a batch tells which images it holds."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, 3, 8, 8), dtype=np.uint8)
    return images, np.arange(num_images, dtype=np.int64)


def training_loader(seed=0, num_images=NUM, **options):
    images, labels = stored(num_images)
    count = len(options.get("indices", labels))
    options = {"batch_size": 16, "normalize": NORMALIZE, "transforms": TRAINING, "drop_last": True} | options
    return BatchLoader(
        images, labels, plan=lambda epoch: draw_plan(seed, epoch, count, options["transforms"]), device=CPU, **options
    )


def evaluation_loader(num_images=NUM, **options):
    images, labels = stored(num_images)
    count = len(options.get("indices", labels))
    options = {"batch_size": 16, "normalize": NORMALIZE} | options
    return BatchLoader(images, labels, plan=lambda epoch: fixed_plan(count), device=CPU, **options)


def labels_of(batches):
    return [batch.labels.tolist() for batch in batches]


def all_labels(batches):
    return [label for batch in batches for label in batch.labels.tolist()]


def assert_same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for one, other in zip(left, right):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 50, 64])
def test_evaluation_gives_every_image_once_in_order(batch_size, resident):
    loader = evaluation_loader(batch_size=batch_size, resident=resident)
    batches = list(loader.epoch(0))
    assert labels_of(batches) == [list(range(cut, min(cut + batch_size, NUM))) for cut in range(0, NUM, batch_size)]
    assert len(loader) == len(batches)
    expected = NORMALIZE(torch.from_numpy(stored()[0]))
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


@pytest.mark.parametrize("resident", [True, False])
def test_drop_last_drops_the_smaller_batch(resident):
    loader = training_loader(resident=resident)
    batches = list(loader.epoch(0))
    assert [len(batch.labels) for batch in batches] == [16, 16, 16]
    assert len(loader) == 3
    assert len(set(all_labels(batches))) == 48


def test_drop_last_keeps_a_last_batch_that_is_full():
    assert [len(batch.labels) for batch in training_loader(num_images=48).epoch(0)] == [16, 16, 16]


def test_drop_last_of_less_than_a_batch_gives_nothing():
    loader = training_loader(num_images=15)
    assert len(loader) == 0
    assert list(loader.epoch(0)) == []


@pytest.mark.parametrize("resident", [True, False])
def test_training_batch_is_the_plan_applied_to_each_image(resident):
    images, _ = stored()
    crop, flip, cutout = TRAINING
    plan = draw_plan(0, 3, NUM, TRAINING)
    batches = list(training_loader(resident=resident).epoch(3))
    assert all_labels(batches) == plan.order[:48].tolist()
    for batch in batches:
        for image, number in zip(batch.images, batch.labels.tolist()):
            rows = {stream: torch.from_numpy(drawn[number : number + 1]) for stream, drawn in plan.parameters.items()}
            pixels = flip(crop(torch.from_numpy(images[number : number + 1]), rows["crop"]), rows["flip"])
            assert torch.equal(image, cutout(NORMALIZE(pixels), rows["cutout"])[0])


def test_pixels_are_transformed_before_normalized_floats():
    given = []

    class OnPixels(Transform):
        def draw(self, rng, num_images, epoch):
            return np.zeros(num_images)

        def __call__(self, images, parameters):
            given.append((self.stream, images.dtype))
            return images

    class OnFloats(OnPixels):
        stream, normalized = "on-floats", True

    next(training_loader(transforms=[OnFloats(), OnPixels()]).epoch(0))
    assert given == [("on-pixels", torch.uint8), ("on-floats", torch.float32)]


@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 12))
@settings(max_examples=15, deadline=None, database=None)
def test_starting_later_gives_the_same_batches(num_images, batch_size, drop_last, resident, first):
    loader = training_loader(num_images=num_images, batch_size=batch_size, drop_last=drop_last, resident=resident)
    batches = list(loader.epoch(2))
    assert len(batches) == len(loader)
    assert_same(loader.epoch(2, first), batches[first:])


@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.integers(0, 2**40))
@settings(max_examples=8, deadline=None, database=None)
def test_resident_and_streamed_give_identical_batches(num_images, batch_size, drop_last, seed):
    options = {"num_images": num_images, "batch_size": batch_size, "drop_last": drop_last, "seed": seed}
    assert_same(training_loader(resident=True, **options).epoch(1), training_loader(resident=False, **options).epoch(1))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_ranks_take_turns_within_the_global_batch(num_ranks, resident):
    for make in (training_loader, evaluation_loader):
        whole = list(make(resident=resident).epoch(1))
        parts = [list(make(resident=resident, rank=r, num_ranks=num_ranks).epoch(1)) for r in range(num_ranks)]
        assert [len(part) for part in parts] == [len(whole)] * num_ranks
        for number, batch in enumerate(whole):
            for rank, part in enumerate(parts):
                assert torch.equal(part[number].labels, batch.labels[rank::num_ranks])
                assert torch.equal(part[number].images, batch.images[rank::num_ranks])


def test_rank_without_an_image_gets_an_empty_batch():
    batches = list(evaluation_loader(num_images=17, rank=1, num_ranks=2).epoch(0))
    assert labels_of(batches) == [list(range(1, 16, 2)), []]
    assert batches[-1].images.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("resident", [True, False])
def test_only_the_chosen_images_are_used(resident):
    chosen = np.array([3, 4, 10, 11, 12, 30, 31, 48, 49])
    loader = evaluation_loader(indices=chosen, batch_size=4, resident=resident)
    batches = list(loader.epoch(0))
    assert loader.num_images == 9
    assert labels_of(batches) == [[3, 4, 10, 11], [12, 30, 31, 48], [49]]
    expected = NORMALIZE(torch.from_numpy(stored()[0][chosen]))
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


@pytest.mark.parametrize("resident", [True, False])
def test_chosen_images_are_shuffled_among_themselves(resident):
    chosen = np.arange(1, NUM, 2)
    batches = list(training_loader(indices=chosen, batch_size=5, resident=resident).epoch(0))
    assert all_labels(batches) == chosen[draw_plan(0, 0, 25, ()).order].tolist()


@pytest.mark.parametrize("resident", [True, False])
def test_all_images_chosen_in_another_order_keep_their_labels(resident):
    chosen = np.arange(NUM)[::-1].copy()
    batches = list(evaluation_loader(indices=chosen, resident=resident).epoch(0))
    assert all_labels(batches) == chosen.tolist()
    expected = NORMALIZE(torch.from_numpy(stored()[0][chosen]))
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


@pytest.mark.parametrize("resident", [True, False])
def test_memory_mapped_images_are_never_written(tmp_path, resident):
    images, labels = stored()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    loader = BatchLoader(
        mapped,
        labels,
        batch_size=16,
        normalize=NORMALIZE,
        transforms=TRAINING,
        plan=lambda epoch: draw_plan(0, epoch, NUM, TRAINING),
        device=CPU,
        resident=resident,
        drop_last=True,
    )
    assert_same(loader.epoch(0), training_loader().epoch(0))
    assert np.array_equal(np.load(tmp_path / "images.npy"), images)


@pytest.mark.parametrize("free_bytes", [0, 1 << 40])
def test_eval_loader_gives_the_chosen_images_resident_or_not(monkeypatch, free_bytes):
    monkeypatch.setattr("resnet_train.data.loader.free_memory_bytes", lambda device: free_bytes)
    images, labels = stored()
    chosen = np.arange(5, 40, 3)
    batches = list(eval_loader(images, labels, NORMALIZE, CPU, indices=chosen, batch_size=5).epoch(0))
    assert labels_of(batches) == [chosen[:5].tolist(), chosen[5:10].tolist(), chosen[10:].tolist()]
    assert_same(batches, evaluation_loader(indices=chosen, batch_size=5).epoch(0))
    assert_same(eval_loader(images, labels, NORMALIZE, CPU).epoch(0), evaluation_loader(batch_size=NUM).epoch(0))


def test_images_are_resident_up_to_a_quarter_of_free_memory(monkeypatch):
    monkeypatch.setattr("resnet_train.data.loader.free_memory_bytes", lambda device: 4000)
    assert (fits_on(CPU, 1000), fits_on(CPU, 1001)) == (True, False)


def test_two_epochs_of_one_loader_are_independent():
    loader = training_loader(resident=False)
    expected = list(loader.epoch(0)), list(loader.epoch(1))
    pairs = list(zip(loader.epoch(0), loader.epoch(1)))
    assert_same([pair[0] for pair in pairs], expected[0])
    assert_same([pair[1] for pair in pairs], expected[1])


def test_an_exception_of_the_prefetch_thread_is_raised():
    images, labels = stored()
    loader = BatchLoader(
        images[:20],  # the third batch needs images that do not exist
        labels,
        batch_size=10,
        normalize=NORMALIZE,
        plan=lambda epoch: fixed_plan(NUM),
        device=CPU,
        resident=False,
    )
    batches = loader.epoch(0)
    assert labels_of([next(batches), next(batches)]) == [list(range(10)), list(range(10, 20))]
    with pytest.raises(IndexError, match="out of bounds"):
        next(batches)
    assert prefetch_threads() == []


@pytest.mark.parametrize("consumed", [1, 2, 4])
@pytest.mark.parametrize("leave", ["close", "drop"])
def test_leaving_early_leaves_no_thread(consumed, leave):
    batches = evaluation_loader(batch_size=1, resident=False).epoch(0)
    for number in range(consumed):
        assert next(batches).labels.tolist() == [number]
    assert len(prefetch_threads()) == 1
    if leave == "close":
        batches.close()
    else:
        del batches
    assert prefetch_threads() == []


def test_consumers_exception_leaves_no_thread():
    def consume():
        for _ in evaluation_loader(batch_size=1, resident=False).epoch(0):
            raise KeyError("the training step")

    with pytest.raises(KeyError, match="the training step"):
        consume()
    assert prefetch_threads() == []


def test_whole_epoch_leaves_no_thread():
    assert len(list(evaluation_loader(resident=False).epoch(0))) == 4
    assert prefetch_threads() == []


def test_prefetch_reads_only_a_few_batches_ahead():
    read, images = [], stored()[0]
    loader = evaluation_loader(batch_size=1, resident=False)
    recording = {"__getitem__": lambda self, numbers: read.append(numbers) or images[numbers]}
    loader.source.images = type("Recording", (), recording)()
    batches = loader.epoch(0)
    for _ in range(10):
        next(batches)
    batches.close()
    assert 10 <= len(read) <= 10 + PREFETCHED_BATCHES + 1


@pytest.mark.parametrize("mix", [None, Mix(0.4, 1.0, 8)], ids=["plain", "mixed"])
@pytest.mark.parametrize("resident", [True, False])
def test_batches_built_in_chunks_equal_those_built_singly(resident: bool, mix: Mix | None) -> None:
    images, labels = tiny_images(50)
    transforms = [RandomCrop(1), RandomFlip()]

    def loader(chunk_bytes: int) -> BatchLoader:
        return BatchLoader(
            images,
            labels,
            batch_size=8,
            normalize=NORMALIZE,
            transforms=transforms,
            plan=lambda epoch: draw_plan(0, epoch, len(labels), transforms, mix),
            device=CPU,
            resident=resident,
            chunk_bytes=chunk_bytes,
        )

    image_bytes = 4 * 3 * 8 * 8
    expected = list(loader(0).epoch(0, first_batch=1))
    assert [len(batch.labels) for batch in expected] == [8] * 5 + [2]
    for chunk_bytes in (3 * 8 * image_bytes, 1 << 30):
        batches = list(loader(chunk_bytes).epoch(0, first_batch=1))
        assert_same_tensors([list(batch) for batch in batches], [list(batch) for batch in expected])
