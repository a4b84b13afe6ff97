"""Every setting takes effect: parts built from a config against computations written out here."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from resnet_train import build
from resnet_train.config import make_config
from resnet_train.models import create_model
from resnet_train.runtime.distributed import ALONE, Processes
from tests.harness.trainers import CPU, TINY, tiny_data, tiny_trainer

PLAIN = {"crop_padding": 0, "flip": "none", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "lr": 0.2}


class TinyNet(nn.Module):
    """A convolution, a norm and a linear layer: one parameter of every kind that optimizers tell apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, images):
        return self.linear(self.norm(self.conv(images)).relu().mean((2, 3)))


def loaders(data=None, processes=ALONE, **settings):
    """Return the training and the evaluation loaders of a config."""
    config = make_config({**TINY, **PLAIN, **settings})
    return build.build_loaders(config, data or numbered_data(config.image_size), CPU, processes)


def numbered_data(size=8, num_images=48):
    """Return images of one class each: a gray of their index in the left half, of 100 plus their index in the right."""
    columns = np.repeat([0, 100], size // 2)
    images = np.arange(num_images)[:, None, None, None] + np.broadcast_to(columns, (num_images, 3, size, size))
    data = tiny_data(num_images, size)
    classes = tuple(str(index) for index in range(num_images))
    dataset = replace(data.train, images=images.astype(np.uint8), labels=np.arange(num_images), classes=classes)
    return replace(data, train=dataset, test=dataset)


def batches_of(loader, epoch=0):
    """Return the labels, images and mixing of a whole epoch, joined."""
    batches = list(loader.epoch(epoch))
    columns = zip(*(batch for batch in batches))
    return type(batches[0])(*(None if column[0] is None else torch.cat(column) for column in columns))


def normalized(data, indices):
    """Return images as the network must see them: 0–1, minus the mean, over the deviation of `tiny_data`."""
    return (torch.from_numpy(data.train.images[np.asarray(indices)]) / 255 - 0.5) / 0.25


# --- A step of training ----------------------------------------------------------------------------------------------


def textbook_sgd(model, batches, *, rates, momentum=0.0, nesterov=False, weight_decay=0.0, no_decay=False, clip=0.0,
                 smoothing=0.0, parts=1):  # fmt: skip
    """Train by hand; return the mean losses and the gradient norms."""
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    losses, norms = [], []
    for batch, rate in zip(batches, rates):
        model.zero_grad()
        loss = 0.0
        for images, labels in zip(batch.images.chunk(parts), batch.labels.chunk(parts)):
            log_shares = model(images).log_softmax(1)
            target = (1 - smoothing) * F.one_hot(labels, 3) + smoothing / 3
            part = -(target * log_shares).sum(1).mean() / parts
            part.backward()
            loss += part.item()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        scale = min(1.0, clip / norm) if clip else 1.0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                decay = 0.0 if no_decay and parameter.ndim == 1 else weight_decay
                gradient = parameter.grad * scale + decay * parameter
                velocity[name] = momentum * velocity[name] + gradient
                parameter -= rate * (gradient + momentum * velocity[name] if nesterov else velocity[name])
        losses.append(loss)
        norms.append(norm)
    return losses, norms


SGD_CASES = {
    "plain": ({}, {}),
    "learning rate": ({"lr": 0.5}, {"rates": [0.5] * 4}),
    "momentum": ({"momentum": 0.6}, {"momentum": 0.6}),
    "nesterov": ({"momentum": 0.6, "nesterov": True}, {"momentum": 0.6, "nesterov": True}),
    "weight decay": ({"weight_decay": 0.3}, {"weight_decay": 0.3}),
    "no decay": ({"weight_decay": 0.3, "no_decay_norm_bias": True}, {"weight_decay": 0.3, "no_decay": True}),
    "label smoothing": ({"label_smoothing": 0.4}, {"smoothing": 0.4}),
    "clipping": ({"clip_grad": 0.05}, {"clip": 0.05}),
    "no clipping of a short gradient": ({"clip_grad": 100.0}, {}),
    "accumulation": ({"accumulate": 4}, {"parts": 4}),
}


@pytest.mark.parametrize(("settings", "textbook"), SGD_CASES.values(), ids=SGD_CASES)
def test_sgd_steps_are_those_of_the_textbook(settings, textbook):
    reference = TinyNet()
    trainer = tiny_trainer(model=TinyNet(), **{**PLAIN, "schedule": "constant", **settings})
    batches = list(trainer.train_loader.epoch(0))[:4]
    losses, norms = textbook_sgd(reference, batches, **{"rates": [0.2] * 4, **textbook})
    trainer.model.train()
    for batch in batches:
        trainer.train_step(batch)
    assert_close_parameters(trainer.model, reference)
    sums = trainer.read_sums()
    assert sums["loss"] == pytest.approx(8 * sum(losses), rel=1e-5)
    assert sums["grad_norm"] == pytest.approx(sum(norms), rel=1e-5)


def assert_close_parameters(model, reference, **tolerance):
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **{"rtol": 1e-5, "atol": 1e-6, **tolerance}, msg=name)


@pytest.mark.parametrize("no_decay", [False, True])
def test_adamw_takes_rate_decay_and_its_exceptions(no_decay):
    reference = TinyNet()
    settings = {**PLAIN, "optimizer": "adamw", "lr": 0.01, "weight_decay": 2.0, "schedule": "constant"}
    trainer = tiny_trainer(model=TinyNet(), **settings, no_decay_norm_bias=no_decay)
    weights = [p for p in reference.parameters() if p.ndim > 1 or not no_decay]
    vectors = [p for p in reference.parameters() if p.ndim == 1 and no_decay]
    groups = [{"params": weights}] + [{"params": vectors, "weight_decay": 0.0}] * no_decay
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=2.0)
    trainer.model.train()
    for batch in list(trainer.train_loader.epoch(0))[:3]:
        trainer.train_step(batch)
        optimizer.zero_grad()
        F.cross_entropy(reference(batch.images), batch.labels).backward()
        optimizer.step()
    assert_close_parameters(trainer.model, reference, atol=1e-5)


@pytest.mark.parametrize("changed", [{}, {"momentum": 0.5}, {"weight_decay": 3.0}, {"lr": 0.02}], ids=str)
def test_muon_takes_rate_momentum_and_decay(changed):
    settings = {"lr": 0.01, "momentum": 0.95, "weight_decay": 0.0, **changed}
    model, reference = TinyNet(), TinyNet()
    matrix = nn.Parameter(reference.conv.weight.detach().flatten(1))
    start = matrix.detach().clone()
    optimizer = torch.optim.Muon([matrix], **settings, adjust_lr_fn="match_rms_adamw")
    trainer = tiny_trainer(model=model, **{**PLAIN, "optimizer": "muon", "schedule": "constant", **settings})
    trainer.model.train()
    for batch in list(trainer.train_loader.epoch(0))[:3]:
        reference.load_state_dict(model.state_dict())
        F.cross_entropy(reference(batch.images), batch.labels).backward()
        matrix.grad = reference.conv.weight.grad.flatten(1)
        optimizer.step()
        reference.zero_grad()
        trainer.train_step(batch)
    moved = (matrix - start).norm()
    assert (model.conv.weight.flatten(1) - matrix).norm() < 0.02 * moved  # torch iterates in bfloat16


def learning_rates(**settings):
    """Return the learning rate of every group of the optimizer at each of 24 steps, 6 an epoch."""
    trainer = tiny_trainer(model=TinyNet(), **{**PLAIN, "epochs": 4, "lr": 0.5, "no_decay_norm_bias": True, **settings})
    rates = []
    for epoch in range(4):
        for batch in trainer.train_loader.epoch(epoch):
            trainer.train_step(batch)
            rates.append([float(group["lr"]) for group in trainer.optimizer.param_groups])
    assert all(rate == of_step[0] for of_step in rates for rate in of_step)
    return [of_step[0] for of_step in rates]


COSINE = [0.25 * (1 + math.cos(math.pi * step / 24)) for step in range(24)]
SCHEDULES = {
    "cosine": ({}, COSINE),
    "warm-up": (
        {"warmup_epochs": 1.5},
        [0.5 * (step + 1) / 9 for step in range(9)]
        + [0.25 * (1 + math.cos(math.pi * step / 15)) for step in range(15)],
    ),
    "milestones": ({"schedule": "multi-step", "milestones": "1,2.5"}, [0.5] * 6 + [0.05] * 9 + [0.005] * 9),
    "gamma": ({"schedule": "multi-step", "milestones": "1", "gamma": 0.3}, [0.5] * 6 + [0.15] * 18),
    "no milestones": ({"schedule": "multi-step"}, [0.5] * 12 + [0.05] * 6 + [0.005] * 6),
    "step": ({"schedule": "step", "milestones": "1", "gamma": 0.5}, [0.5 / 2 ** (step // 6) for step in range(24)]),
    "constant": ({"schedule": "constant", "optimizer": "adamw"}, [0.5] * 24),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_the_learning_rate_of_every_step_and_group(settings, expected):
    assert learning_rates(**settings) == pytest.approx(expected)


def test_one_cycle_warms_up_for_as_long_as_given():
    rates = {warmup: learning_rates(schedule="one-cycle", warmup_epochs=warmup) for warmup in (None, 2)}
    assert np.argmax(rates[2]) == 11
    assert np.argmax(rates[None]) == 6  # 30 % of 24 steps


def test_averaged_weights_follow_with_the_decay():
    trainer = tiny_trainer(model=TinyNet(), ema_decay=0.3, **PLAIN)
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.train()
    for step, batch in enumerate(list(trainer.train_loader.epoch(0))[:6]):
        trainer.train_step(batch)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in trainer.model.state_dict().items():
            blend = decay * expected[name] + (1 - decay) * value
            expected[name] = blend if value.is_floating_point() else value.clone()
    for name, value in trainer.eval_model.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_without_a_decay_the_trained_weights_are_evaluated():
    trainer = tiny_trainer(model=TinyNet(), **PLAIN)
    assert trainer.eval_model is trainer.model


@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_running_statistics_move_with_bn_momentum(momentum):
    trainer = tiny_trainer(model=TinyNet(), bn_momentum=momentum, **PLAIN)
    batch = next(trainer.train_loader.epoch(0))
    mean = copy.deepcopy(trainer.model).conv(batch.images).mean((0, 2, 3))
    trainer.model.train()
    trainer.train_step(batch)
    torch.testing.assert_close(trainer.model.norm.running_mean, momentum * mean)


# --- The network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_the_seed_decides_the_initial_weights(seed):
    model = tiny_trainer(seed=seed).model
    torch.manual_seed(seed)
    expected = create_model("resnet8", 3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


NETWORKS = [
    ("resnet18", {}),
    ("resnet18", {"stem": "imagenet"}),
    ("resnet18", {"norm_order": "conv-relu-bn"}),
    ("resnet18", {"zero_init_residual": True}),
    ("resnet18", {"drop_path": 0.5}),
    ("resnet8", {"shortcut": "projection"}),
    ("resnet20", {}),
]


@pytest.mark.parametrize(("arch", "options"), NETWORKS, ids=str)
def test_architecture_and_its_options_reach_the_network(arch, options):
    model = tiny_trainer(arch=arch, image_size=32, **options).model
    torch.manual_seed(0)
    expected = create_model(arch, 3, **options).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32)
    outputs = []
    for network in (model, expected):
        torch.manual_seed(1)
        outputs.append(network.train()(images))
    torch.testing.assert_close(*outputs)
    given = {name: value for name, value in options.items() if value is not None}
    assert build.arch_options(make_config({"arch": arch, **options})) == given


def test_the_network_has_an_output_for_every_class():
    assert tiny_trainer(data=numbered_data()).model.linear.out_features == 48


@pytest.mark.parametrize(("amp", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16),
                                               ("off", torch.float32), ("auto", torch.float32)])  # fmt: skip
def test_mixed_precision_computes_convolutions_in_its_format(amp, expected):
    trainer = tiny_trainer(model=TinyNet(), amp=amp, **PLAIN)
    seen = []
    trainer.model.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.train_step(next(trainer.train_loader.epoch(0)))
    assert seen == [expected]


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last_is_the_memory_order_of_images_and_weights(channels_last):
    trainer = tiny_trainer(channels_last=channels_last)
    images = next(trainer.train_loader.epoch(0)).images
    evaluated = next(trainer.eval_loaders["test"].epoch(0)).images
    for tensor in (images, evaluated, trainer.model.conv1.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) is channels_last


@pytest.mark.parametrize(
    ("settings", "num_networks"), [({}, 0), ({"compile": True}, 1), ({"compile": True, "ema_decay": 0.9}, 2)]
)
def test_networks_are_compiled_in_place_if_asked(settings, num_networks, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled.append((type(module), options)))
    tiny_trainer(model=TinyNet(), **settings)
    assert compiled == [(TinyNet, {"mode": "default", "fullgraph": True, "dynamic": False})] * num_networks


def test_synchronized_norms_are_refused_without_a_gpu():
    with pytest.raises(ValueError, match=r"^sync_bn \(=true\) works only on CUDA GPUs, not on cpu$"):
        tiny_trainer(sync_bn=True)


def test_capture_is_refused_with_several_processes():
    config = make_config({**TINY, "capture": True})
    with pytest.raises(ValueError, match=r"^capture \(=true\) works only on one CUDA GPU, not with 2 processes; leave"):
        build.build_trainer(config, tiny_data(), torch.device("cuda"), Processes(0, 2))


@pytest.mark.parametrize(
    ("num_ranks", "accumulate", "message"),
    [
        (3, 1, r"^batch_size \(=8\) must be a multiple of the number of processes \(=3\): "),
        (4, 4, r"^batch_size \(=8\) must be a multiple of the number of processes \(=4\) times accumulate \(=4\): "),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(num_ranks, accumulate, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(accumulate=accumulate, processes=Processes(0, num_ranks))


# --- The images ------------------------------------------------------------------------------------------------------


def test_unchanged_images_are_normalized_and_keep_their_labels():
    data = numbered_data()
    batch = batches_of(loaders(data)[0])
    torch.testing.assert_close(batch.images, normalized(data, batch.labels))
    assert sorted(batch.labels.tolist()) == list(range(48))
    assert batch.weights is None


def test_the_order_depends_on_seed_and_epoch_alone():
    first, again, other = (loaders(seed=seed)[0] for seed in (0, 0, 1))
    orders = [tuple(batches_of(loader, epoch).labels.tolist()) for loader in (first, again, other) for epoch in (0, 1)]
    assert orders[:2] == orders[2:4]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("batch_size", [10, 48])
def test_batches_have_the_batch_size_and_the_rest_is_left_out(batch_size):
    train_loader, _ = loaders(batch_size=batch_size)
    assert [len(batch.labels) for batch in train_loader.epoch(0)] == [batch_size] * (48 // batch_size)


def shifts_of(padding):
    """Return how far the crop moved images up and left, seen in two epochs of images with one bright pixel."""
    data = numbered_data()
    images = np.zeros_like(data.train.images)
    images[:, :, 4, 4] = 255
    data = replace(data, train=replace(data.train, images=images))
    train_loader, _ = loaders(data, crop_padding=padding)
    bright = [batches_of(train_loader, epoch).images[:, 0] > 0 for epoch in range(4)]
    return [set((4 - torch.cat(bright).nonzero()[:, axis]).tolist()) for axis in (1, 2)]


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crops_move_by_up_to_the_padding_each_way(padding):
    expected = set(range(-padding, padding + 1))
    assert shifts_of(padding) == [expected, expected]


@pytest.mark.parametrize(("mode", "is_black"), [("zeros", True), ("reflect", False)])
def test_the_padding_is_black_or_the_mirrored_image(mode, is_black):
    data = numbered_data()
    data = replace(data, train=replace(data.train, images=np.full_like(data.train.images, 255)))
    images = batches_of(loaders(data, crop_padding=2, padding_mode=mode)[0]).images
    assert bool((images == -2).any()) is is_black
    assert set(images.unique().tolist()) == ({-2.0, 2.0} if is_black else {2.0})


def flipped(loader, epoch):
    """Return which images are mirrored in an epoch, by index; their left half is then the brighter one."""
    batch = batches_of(loader, epoch)
    mirrored = batch.images[:, 0, 0, 0] > batch.images[:, 0, 0, -1]
    return dict(sorted(zip(batch.labels.tolist(), mirrored.tolist()))).values()


def test_random_flips_are_drawn_again_in_every_epoch():
    epochs = [list(flipped(loaders(flip="random")[0], epoch)) for epoch in range(20)]
    assert 0.4 < np.mean(epochs) < 0.6
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert 0.3 < np.mean(np.array(epochs[0::2]) ^ np.array(epochs[1::2])) < 0.7


def test_alternating_flips_show_both_sides_in_two_epochs():
    train_loader, _ = loaders(flip="alternating")
    first, second, third = (np.array(list(flipped(train_loader, epoch))) for epoch in range(3))
    assert 0.2 < first.mean() < 0.8
    assert (first ^ second).all()
    assert (first == third).all()


def test_no_flips_without_a_flip():
    assert not any(flipped(loaders(flip="none")[0], 0))


@pytest.mark.parametrize("side", [4, 6])
def test_cutout_blanks_squares_of_its_side_with_the_mean(side):
    images = batches_of(loaders(tiny_data(480, 16), image_size=16, cutout=side)[0]).images
    blank = (images == 0).sum((1, 2, 3)) / 3  # no pixel is the mean by itself
    assert blank.max() == side**2
    assert blank.min() >= (side // 2) ** 2
    assert ((images == 0).any(1) == (images == 0).all(1)).all()
    assert (images == 0).any(0).all()  # everywhere


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_random_erasing_blanks_with_its_probability(probability):
    images = batches_of(loaders(tiny_data(960, 16), image_size=16, random_erasing=probability)[0]).images
    blank = (images == 0).all(1)
    assert blank.any((1, 2)).float().mean().item() == pytest.approx(probability, abs=0.05)
    assert blank.any(0).all()  # everywhere


def test_trivial_augment_changes_most_images():
    data = numbered_data()
    batch = batches_of(loaders(data, trivial_augment=True)[0])
    changed = (batch.images != normalized(data, batch.labels)).any((1, 2, 3))
    assert changed.float().mean() > 0.5


@pytest.mark.parametrize("alpha", [0.3, 8.0])
def test_mixup_blends_by_a_weight_from_its_beta_distribution(alpha):
    data = numbered_data()
    train_loader, _ = loaders(data, mixup=alpha)
    epochs = [batches_of(train_loader, epoch) for epoch in range(20)]
    for batch in epochs[:2]:
        shares = batch.weights[:, None, None, None]
        own, partner = normalized(data, batch.labels), normalized(data, batch.partner_labels)
        torch.testing.assert_close(batch.images, shares * own + (1 - shares) * partner)
        assert (batch.labels != batch.partner_labels).float().mean() > 0.8
    weights = torch.cat([batch.weights for batch in epochs]).numpy()
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.5, 100.0])
def test_the_area_of_a_cutmix_box_has_its_beta_distribution(alpha):
    data = numbered_data(16)
    train_loader, _ = loaders(data, image_size=16, cutmix=alpha)
    epochs = [batches_of(train_loader, epoch) for epoch in range(20)]
    for batch in epochs[:2]:
        own, partner = normalized(data, batch.labels), normalized(data, batch.partner_labels)
        pasted = ((batch.images - own).abs() > 1e-6) & ((batch.images - partner).abs() < 1e-6)
        same = (batch.images - own).abs() < 1e-6
        assert (pasted | same).all()
        share = same.float().mean((1, 2, 3))
        others = batch.labels != batch.partner_labels
        torch.testing.assert_close(share[others], batch.weights[others])
    # A box of even side around a random pixel, clipped at the border, drawn here with scipy's own numbers.
    drawn = stats.beta(alpha, alpha).rvs(20_000, random_state=1)
    half = (np.sqrt(1 - drawn) * 16 / 2).astype(int)
    centers = np.random.default_rng(2).integers(0, 16, (20_000, 2))
    sides = np.minimum(centers + half[:, None], 16) - np.maximum(centers - half[:, None], 0)
    weights = torch.cat([batch.weights for batch in epochs]).numpy()
    quantiles = np.linspace(0.05, 0.95, 10)
    expected = np.quantile(1 - sides.prod(1) / 256, quantiles)
    assert np.quantile(weights, quantiles) == pytest.approx(expected, abs=0.04)


def test_a_coin_decides_between_mixup_and_cutmix():
    data = numbered_data()
    train_loader, _ = loaders(data, mixup=100.0, cutmix=100.0)
    weights = torch.cat([batches_of(train_loader, epoch).weights for epoch in range(20)])
    is_cut = weights >= 0.75  # boxes have 4 × 4 of 64 pixels at most; blends have about half of each image
    assert 0.4 < is_cut.float().mean() < 0.6
    assert (weights[is_cut] * 64).frac().max() == 0
    assert weights[~is_cut].mean() == pytest.approx(0.5, abs=0.02)


def test_progressive_sizes_are_shares_of_the_whole_run():
    train_loader, _ = loaders(progressive_sizes="4:0.25,6:0.75", epochs=4)
    sizes = [batch.images.shape[-1] for epoch in range(4) for batch in train_loader.epoch(epoch)]
    assert sizes == [4] * 6 + [6] * 12 + [8] * 6
    assert {batch.images.shape[-1] for batch in loaders(epochs=4)[0].epoch(0)} == {8}


def test_evaluation_normalizes_with_the_training_statistics():
    data = numbered_data()
    changed = replace(data.train, mean=(0.0,) * 3, std=(1.0,) * 3)
    _, eval_loaders = loaders(replace(data, test=changed), flip="random", crop_padding=2, cutout=4, mixup=1.0)
    batch = batches_of(eval_loaders["test"])
    assert batch.labels.tolist() == list(range(48))
    torch.testing.assert_close(batch.images, normalized(data, range(48)))
    assert list(eval_loaders) == ["test"]


def test_validation_images_are_held_out_and_chosen_on():
    data = replace(numbered_data(), train_indices=np.arange(0, 48, 2), val_indices=np.arange(1, 48, 4))
    train_loader, eval_loaders = loaders(data)
    assert sorted(batches_of(train_loader).labels.tolist()) == list(range(0, 48, 2))
    assert batches_of(eval_loaders["val"]).labels.tolist() == list(range(1, 48, 4))
    torch.testing.assert_close(batches_of(eval_loaders["val"]).images, normalized(data, range(1, 48, 4)))
    assert len(batches_of(eval_loaders["test"]).labels) == 48
    assert list(loaders(replace(data, test=None))[1]) == ["val"]


def test_ranks_share_every_batch_and_every_evaluation():
    whole, whole_eval = loaders(mixup=0.5, flip="random")
    ranks = [loaders(mixup=0.5, flip="random", processes=Processes(rank, 2)) for rank in range(2)]
    for batch, *parts in zip(whole.epoch(1), *(train_loader.epoch(1) for train_loader, _ in ranks), strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, batch.images[rank::2])
            assert torch.equal(part.labels, batch.labels[rank::2])
    for rank, (_, eval_loaders) in enumerate(ranks):
        labels = batches_of(eval_loaders["test"]).labels
        assert torch.equal(labels, batches_of(whole_eval["test"]).labels[rank::2])


# --- What is refused -------------------------------------------------------------------------------------------------


REFUSED = {
    "unknown data set": ({"dataset": "digit"}, r"^unknown data set 'digit'; did you mean 'digits'\?"),
    "unknown optimizer": ({"optimizer": "sdg"}, r"^unknown optimizer 'sdg'; did you mean 'sgd'\?"),
    "unknown schedule": ({"schedule": "cosin"}, r"^unknown schedule 'cosin'; did you mean 'cosine'\?"),
    "unknown architecture": ({"arch": "resnet19"}, r"^unknown architecture 'resnet19'"),
    "nesterov without momentum": (
        {"optimizer": "adamw", "nesterov": True},
        r"^nesterov \(=true\) has no effect with optimizer adamw",
    ),
    "small images": ({"image_size": 31}, r"^image_size \(=31\) must be at least 32, the stride of resnet18"),
    "small images at first": (
        {"image_size": 64, "progressive_sizes": "16:0.2,48:0.5"},
        r"^progressive_sizes \(from 16\) must be at least 32, the stride of resnet18",
    ),
    "a single value a norm": (
        {"image_size": 32, "batch_size": 4, "accumulate": 4},
        r"^batch_size \(=4\) must be more than accumulate \(=4\) for images of 32 pixels",
    ),
}
STRIDE_32 = {"arch": "resnet18", "stem": "imagenet"}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_is_refused_before_data_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        build.check_config(make_config({**STRIDE_32, **settings}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nesterov": True},
        {"image_size": 64, "batch_size": 4, "accumulate": 4},
        {"image_size": 32, "batch_size": 8, "accumulate": 4},
        {"image_size": 64, "progressive_sizes": "32:0.2,48:0.5"},
    ],
    ids=str,
)
def test_what_can_be_built_is_not_refused(settings):
    build.check_config(make_config({**STRIDE_32, **settings}))


def load(monkeypatch, test="same", val=None, **settings):
    """Load the data of a config from a source that notes what it is asked for."""
    asked, train = [], settings.pop("train", tiny_data().train)

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": train, "val": val}.get(arguments[1], train if test == "same" else test)

    monkeypatch.setattr(build, "load_dataset", load_dataset)
    config = make_config({**TINY, "dataset": "folder", "data_dir": "there", **settings})
    return build.load_data(config), [(name, split, str(folder), size) for name, split, folder, size, _ in asked]


def test_data_is_loaded_as_the_settings_say_and_split(monkeypatch):
    other = tiny_data(12).train
    data, asked = load(monkeypatch, test=other, val_size=9, train_size=30)
    assert asked == [("folder", split, "there", 8) for split in ("train", "val", "test")]
    assert len(data.train) == 48
    assert data.test is other
    assert (len(data.train_indices), len(data.val_indices)) == (30, 9)
    assert np.bincount(data.train.labels[data.val_indices]).tolist() == [3, 3, 3]
    assert not set(data.train_indices) & set(data.val_indices)


def test_a_batch_may_be_all_training_images_but_no_more():
    assert len(tiny_trainer(batch_size=48).train_loader) == 1
    with pytest.raises(ValueError, match=r"^batch_size \(=49\) must be at most the number of training images \(=48\)$"):
        tiny_trainer(batch_size=49)


def test_without_test_images_validation_images_are_needed(monkeypatch):
    assert load(monkeypatch, test=None, val_size=9)[0].test is None
    with pytest.raises(ValueError, match=r"some of its 48 images .* --test-size 10 or --val-size 10$"):
        load(monkeypatch, test=None)


def test_validation_images_of_the_data_set_are_used(monkeypatch):
    own = replace(tiny_data(12).train, fingerprint="own")
    data = load(monkeypatch, test=None, val=own)[0]
    assert data.val is own
    assert len(data.val_indices) == 0
    config = make_config({**TINY, "dataset": "folder"})
    assert build.describe_network(config, data).val_fingerprint == "own"
    _, eval_loaders = build.build_loaders(config, data, torch.device("cpu"))
    assert {split: loader.num_images for split, loader in eval_loaders.items()} == {"val": 12}
    with pytest.raises(ValueError, match=r"^val_size \(=9\) has no effect: there has 12 validation images"):
        load(monkeypatch, val=own, val_size=9)


def test_classes_must_be_the_same_and_at_least_two(monkeypatch):
    tiny = tiny_data().train
    with pytest.raises(ValueError, match=r"^train and test images have different classes$"):
        load(monkeypatch, test=replace(tiny, classes=("a", "b", "d")))
    one = replace(tiny, classes=("a",), labels=np.zeros_like(tiny.labels))
    with pytest.raises(ValueError, match=r"^there has only one class \('a'\)"):
        load(monkeypatch, train=one)
    two = replace(tiny, classes=("a", "b"), labels=tiny.labels % 2)
    assert load(monkeypatch, train=two)[0].train is two


# --- What is known of a run ------------------------------------------------------------------------------------------


def test_a_checkpoint_describes_its_network():
    config = make_config({**TINY, "arch": "resnet20", "shortcut": "projection", "dataset": "digits"})
    assert build.describe_network(config, tiny_data()).model_dump() == {
        "arch": "resnet20",
        "arch_options": {"shortcut": "projection"},
        "classes": ["a", "b", "c"],
        "image_size": 8,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "dataset": "digits",
        "title": "tiny",
        "fingerprint": "tiny",
        "test_fingerprint": "tiny",
        "val_fingerprint": "",
    }
