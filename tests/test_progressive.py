"""Progressive image sizes: the schedule, the scaling, and where in a run each size is used."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from resnet_train.config import make_config, to_plain
from resnet_train.data.loader import resize
from resnet_train.data.progressive import size_schedule
from tests.harness.trainers import tiny_trainer


def test_each_size_lasts_until_its_share_of_the_run():
    size_at = size_schedule([(16, 0.3), (24, 0.6)], full_size=32, total_steps=10)
    assert [size_at(step) for step in range(10)] == [16] * 3 + [24] * 3 + [32] * 4


def test_images_are_scaled_down_antialiased_and_keep_their_memory_order():
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    small = resize(images, 16)
    assert small.shape == (2, 3, 16, 16)
    assert small.is_contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, expected)
    assert (small - F.interpolate(images, size=(16, 16), mode="bilinear")).abs().max() > 0.01  # that would alias
    assert resize(images, 32) is images


def test_a_run_sees_each_size_at_its_steps_also_when_it_enters_an_epoch_in_the_middle():
    trainer = tiny_trainer(epochs=2)  # 6 steps an epoch
    trainer.train_loader.size_at = size_schedule([(4, 0.5), (6, 0.75)], 8, 12)
    sizes = [batch.images.shape[-1] for epoch in range(2) for batch in trainer.train_loader.epoch(epoch)]
    assert sizes == [4] * 6 + [6] * 3 + [8] * 3
    assert [batch.images.shape[-1] for batch in trainer.train_loader.epoch(1, first_batch=2)] == [6, 8, 8, 8]


@pytest.mark.parametrize("given", ["16:0.4,24:0.7", [[16, 0.4], [24, 0.7]], ((16, 0.4), (24, 0.7))])
def test_stages_are_read_from_text_and_lists_and_written_as_text(given):
    config = make_config({"progressive_sizes": given})
    assert config.progressive_sizes == ((16, 0.4), (24, 0.7))
    assert to_plain(config)["progressive_sizes"] == "16:0.4,24:0.7"
    assert make_config(to_plain(config)) == config


@pytest.mark.parametrize(
    "given", ["16", "16:", "", "24:0.4,16:0.7", "16:0.7,24:0.4", "2:0.5", "16:1.0", "16:0", "32:0.5", [16], "16:0.4:1"]
)
def test_stages_that_make_no_sense_are_refused_by_name(given):
    with pytest.raises(ValueError, match=r"^progressive_sizes \("):
        make_config({"progressive_sizes": given})
