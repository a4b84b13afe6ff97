"""`resnet-export --format html`: the page computes what the network computes, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_train.data.pictures import read_image
from resnet_train.export import instructions
from resnet_train.export.formats import Source
from resnet_train.export.html_page import Page
from resnet_train.export.instructions import list_instructions
from resnet_train.export.interpreter import run_instructions
from resnet_train.models import ModelEntry, list_models
from resnet_train.models.blocks import BasicBlock, Bottleneck, projection_shortcut
from resnet_train.models.cifar_resnet import CifarResNet
from resnet_train.models.preact import PreActBasicBlock, PreActBottleneck, PreActResNet
from resnet_train.models.resnet9 import ConvNormReLU, Residual
from resnet_train.models.resnext import ResNeXt
from resnet_train.records import About, Calibration
from resnet_train.runs.checkpoint import ModelCheckpoint
from resnet_train.text import escape
from tests.harness.page_scripts import compute_logits, to_square
from tests.test_report import HOSTILE


def with_head(channels: int, *layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class LargestValues(nn.Module):
    """The end of a ResNet-9."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.amax(dim=(2, 3))) * 0.125


TINY_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "pad shortcuts": partial(CifarResNet, 8, 7),
    "projections": partial(CifarResNet, 8, shortcut="projection"),
    "ImageNet stem": lambda: with_head(
        6,
        nn.Conv2d(3, 4, 7, 2, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        BasicBlock(4, 6, 2, projection_shortcut(4, 6, 2), "conv-relu-bn", drop_path=0.2),
    ),
    "bottlenecks": lambda: with_head(8, nn.Conv2d(3, 5, 3), Bottleneck(5, 2, 2, projection_shortcut(5, 8, 2))),
    "pre-activation": partial(PreActResNet, PreActBasicBlock, (2, 1), (6, 9), 6, 10, pad=True),
    "pre-activation bottlenecks": partial(PreActResNet, PreActBottleneck, (1, 2), (3, 4), 5, 10, pad=False),
    "largest values": lambda: nn.Sequential(ConvNormReLU(3, 4, pool=True), Residual(4), LargestValues(4)),
    "groups": partial(ResNeXt, groups=3, group_width=2, num_classes=10),
}
SIZE = 16
SCALE, SHIFT = torch.tensor([0.016, 0.017, 0.018]), torch.tensor([-2.1, -2.0, -1.8])


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text at the start of each, by its id or its tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = defaultdict(str)
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.open] += data


def randomize(network: nn.Module) -> nn.Module:
    """Give the norms statistics and parameters as after a training, and return the network in evaluation mode."""
    torch.manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.5, 0.5),
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2),
            ):
                nn.init.uniform_(tensor, low, high)
    return network.eval()


def make_source(network: nn.Module, classes: list[str] | None = None, calibration: Calibration | None = None) -> Source:
    """Return a network as what is exported."""
    num_classes = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1].out_features
    about = About(
        arch="tiny", arch_options={}, classes=classes or [f"class {i}" for i in range(num_classes)], image_size=SIZE,
        mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26], dataset="digits", title="digits", fingerprint="",
    )  # fmt: skip
    checkpoint = ModelCheckpoint(about=about, config={}, environment={}, model={}, calibration=calibration)
    return Source(checkpoint=checkpoint, network=network)


def random_pixels(num_images: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (num_images, 3, SIZE, SIZE), np.uint8)


def write_page(source: Source, folder: Path) -> Path:
    path = folder / "page.html"
    path.write_bytes(Page().encode(source))
    return path


@pytest.mark.parametrize("name", TINY_NETWORKS)
def test_the_scripts_compute_the_logits_of_torch(name: str, tmp_path: Path) -> None:
    source, pixels = make_source(randomize(TINY_NETWORKS[name]())), random_pixels(3)
    page = write_page(source, tmp_path)
    expected = source.compute_logits(torch.from_numpy(pixels)).numpy()
    from_page = Page().open(page, source).forward(torch.from_numpy(pixels)).numpy()  # the float16 weights, with NumPy
    assert np.abs(from_page - expected).max() < 0.01 * np.abs(expected).max()
    assert compute_logits(page, pixels, tmp_path) == pytest.approx(from_page, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("entry", list_models(), ids=lambda entry: entry.name)
def test_every_network_becomes_instructions(entry: ModelEntry) -> None:
    network = randomize(entry.constructor(num_classes=10))
    side = network.stride
    pixels = random_pixels(1)[:, :, :side, :side]
    found = run_instructions(list_instructions(network, SCALE, SHIFT, side), pixels)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels) * SCALE[:, None, None] + SHIFT[:, None, None]).numpy()
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_norms_are_folded_into_the_convolution_before_them() -> None:
    instructions = list_instructions(randomize(CifarResNet(8)), SCALE, SHIFT, SIZE)
    assert Counter(instruction.op for instruction in instructions)["affine"] == 1  # normalizes the pixels


def test_a_convolution_that_others_read_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.linear((self.norm(x) + x).mean(dim=(2, 3)))

    Page().encode(make_source(randomize(Shared())))  # fails if the instructions compute anything else


def test_a_wrong_fold_fails_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    right = instructions.MODULES[nn.BatchNorm2d]

    def with_other_mean(layer: nn.BatchNorm2d) -> object:
        changed = deepcopy(layer)
        changed.running_mean += 0.1
        return right(changed)

    monkeypatch.setitem(instructions.MODULES, nn.BatchNorm2d, with_other_mean)
    with pytest.raises(RuntimeError, match="different logits from the network"):
        Page().encode(make_source(randomize(CifarResNet(8))))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Sigmoid(), "can't run Sigmoid"),
        (nn.Conv2d(3, 3, 3, padding=2, dilation=2), r"dilation \(2, 2\)"),
        (nn.Conv2d(3, 3, (3, 1), padding=(1, 0)), r"padding \(1, 0\)"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "padding mode reflect"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AdaptiveAvgPool2d(2), "output size 2"),
        (nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
    ],
)
def test_what_a_page_cannot_run_is_named(layer: nn.Module, message: str) -> None:
    network = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with pytest.raises(ValueError, match=message):
        list_instructions(network, SCALE, SHIFT, SIZE)


class Excited(nn.Module):
    """Each channel is increased by its mean, which has another size."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(dim=(2, 3), keepdim=True)


def test_maps_of_different_sizes_are_not_added() -> None:
    network = nn.Sequential(Excited(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with pytest.raises(ValueError, match="a sum of maps of the sizes"):
        list_instructions(network, SCALE, SHIFT, SIZE)


def test_weights_too_large_for_float16_are_refused() -> None:
    network = randomize(CifarResNet(8))
    network.linear.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match="too large for float16"):
        Page().encode(make_source(network))


@pytest.mark.parametrize("place", [0.01, 0.1, 0.5, 0.999])
def test_a_changed_byte_fails_the_check(place: float, tmp_path: Path) -> None:
    source = make_source(randomize(CifarResNet(8)))
    page = write_page(source, tmp_path)
    data = bytearray(page.read_bytes())
    data[int(place * len(data))] ^= 1
    page.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        Page().open(page, source)


def test_a_page_of_another_network_fails_the_check(tmp_path: Path) -> None:
    network = randomize(CifarResNet(8))
    page = write_page(make_source(network), tmp_path)
    with pytest.raises(ValueError, match="describes another network: classes differs"):
        Page().open(page, make_source(network, [f"other {i}" for i in range(10)]))


# --- The page --------------------------------------------------------------------------------------------------------


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    network = randomize(CifarResNet(8, len(HOSTILE)))
    plain, page = (Elements(Page().encode(make_source(network, names)).decode()) for names in (None, HOSTILE))
    kept = [
        [(tag, attributes) for tag, attributes in one.elements if attributes.get("name") != "sha256"]
        for one in (plain, page)
    ]
    assert kept[0] == kept[1]  # no name adds an element or an attribute
    assert json.loads(page.texts["network"])["classes"] == [escape(name) for name in HOSTILE]


def test_the_page_may_load_nothing_and_run_only_its_script() -> None:
    text = Page().encode(make_source(randomize(CifarResNet(8)))).decode()
    page = Elements(text)
    policy = next(
        attributes["content"]
        for tag, attributes in page.elements
        if "content" in attributes and "http-equiv" in attributes
    )
    assert policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.texts[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert not re.search(r"""https?:|src="|href="(?!data:,")|@import|url\(""", text)


# --- The picture -----------------------------------------------------------------------------------------------------


def smooth_picture(width: int, height: int, mode: str) -> Image.Image:
    """Return a picture that looks like a photo to a resize: large shapes and some detail."""
    coarse = np.random.default_rng(width).integers(0, 256, (height // 6 + 2, width // 6 + 2, len(mode)), np.uint8)
    return Image.fromarray(coarse.squeeze(), mode).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("width", "height", "mode"), [(16, 16, "RGB"), (301, 7, "RGB"), (5, 9, "L"), (300, 400, "RGBA")]
)
def test_the_page_resizes_as_pillow_does(width: int, height: int, mode: str, tmp_path: Path) -> None:
    picture = smooth_picture(width, height, mode)
    picture.save(tmp_path / "picture.png")
    square = to_square(np.asarray(picture.convert("RGBA")), SIZE, False, tmp_path)
    assert np.array_equal(square, read_image(tmp_path / "picture.png", SIZE))


@pytest.mark.parametrize("side", [40, 70, 131])
def test_the_page_reduces_a_jpeg_as_its_decoder_does(side: int, tmp_path: Path) -> None:
    smooth_picture(side + 5, side, "RGB").save(tmp_path / "picture.jpg", quality=95, subsampling=0)
    expected = read_image(tmp_path / "picture.jpg", SIZE).astype(int)
    with Image.open(tmp_path / "picture.jpg") as picture:
        square = to_square(np.asarray(picture.convert("RGBA")), SIZE, True, tmp_path)
    assert np.abs(square - expected).max() <= 3
    assert np.abs(square - expected).mean() < 0.5
