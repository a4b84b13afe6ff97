"""Progressive image sizes: the schedule, the scaling, and the steps of a run that use each size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from resnet_train.config import make_config, to_plain
from resnet_train.data.progressive import resize, size_schedule
from tests.harness.trainers import tiny_trainer


def test_each_size_lasts_until_its_share_of_the_run():
    size_at = size_schedule([(16, 0.3), (24, 0.6)], full_size=32, total_steps=10)
    assert [size_at(step) for step in range(10)] == [16] * 3 + [24] * 3 + [32] * 4


def test_images_are_scaled_antialiased_in_their_memory_format():
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    small = resize(images, 16)
    assert small.shape == (2, 3, 16, 16)
    assert small.is_contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, expected)
    assert (small - F.interpolate(images, size=(16, 16), mode="bilinear")).abs().max() > 0.01  # that would alias
    assert resize(images, 32) is images


def test_each_step_of_a_run_has_its_size():
    loader = tiny_trainer(epochs=2, arch="resnet9", image_size=16, progressive_sizes="8:0.5,12:0.75").train_loader
    sizes = [batch.images.shape[-1] for epoch in range(2) for batch in loader.epoch(epoch)]  # 6 steps an epoch
    assert sizes == [8] * 6 + [12] * 3 + [16] * 3
    assert [batch.images.shape[-1] for batch in loader.epoch(1, first_batch=2)] == [12, 16, 16, 16]


@pytest.mark.parametrize("given", ["16:0.4,24:0.7", [[16, 0.4], [24, 0.7]], ((16, 0.4), (24, 0.7))])
def test_stages_are_read_from_text_and_lists_and_written_as_text(given):
    config = make_config({"progressive_sizes": given})
    assert config.progressive_sizes == ((16, 0.4), (24, 0.7))
    assert to_plain(config)["progressive_sizes"] == "16:0.4,24:0.7"
    assert make_config(to_plain(config)) == config


@pytest.mark.parametrize(
    "given", ["16", "16:", "", "24:0.4,16:0.7", "16:0.7,24:0.4", "2:0.5", "16:1.0", "16:0", "32:0.5", [16], "16:0.4:1"]
)
def test_senseless_stages_are_refused_by_name(given):
    with pytest.raises(ValueError, match=r"^progressive_sizes \("):
        make_config({"progressive_sizes": given})
