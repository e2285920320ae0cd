"""Small networks in PyTorch with the names that the known repositories give to layers, for the tests of imports.

`python tests/torch_networks.py` writes their state dicts, images and logits to the file beside this one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

FILE = Path(__file__).with_name("from_pytorch.safetensors")


class Select(nn.Module):
    """Passes on the channels at which `indexes` is not zero."""

    def __init__(self, mask: Sequence[int]) -> None:
        super().__init__()
        self.indexes = nn.Parameter(torch.tensor(mask, dtype=torch.float32))

    def forward(self, x: Any) -> Any:
        return x[:, self.indexes != 0]


def normed(x: Any, norm: nn.Module, select: nn.Module) -> Any:
    return torch.relu(select(norm(x)))


class PreBlock(nn.Module):
    """A bottleneck of a pre-activation ResNet: `mask` selects of the inputs, `inner` are the widths left inside."""

    def __init__(self, inputs: int, width: int, mask: Sequence[int], inner: Sequence[int], stride: int):
        super().__init__()
        one, two = inner
        self.bn1, self.select = nn.BatchNorm2d(inputs), Select(mask)
        self.conv1 = nn.Conv2d(sum(mask), one, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(one)
        self.conv2 = nn.Conv2d(one, two, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(two)
        self.conv3 = nn.Conv2d(two, 4 * width, 1, bias=False)
        self.is_changed = stride > 1 or inputs != 4 * width
        if self.is_changed:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False))

    def forward(self, x: Any) -> Any:
        y = self.conv1(normed(x, self.bn1, self.select))
        y = self.conv2(torch.relu(self.bn2(y)))
        y = self.conv3(torch.relu(self.bn3(y)))
        return y + (self.downsample(x) if self.is_changed else x)


class Head(nn.Module):
    """What the authors' networks end with: norm, selection, mean and classifier; `body` are layers by name."""

    def __init__(self, body: dict[str, nn.Module], channels: int, mask: Sequence[int], classes: int) -> None:
        super().__init__()
        for name, layer in body.items():
            self.add_module(name, layer)
        self.bn, self.select, self.fc = nn.BatchNorm2d(channels), Select(mask), nn.Linear(sum(mask), classes)
        self.order = [*body]

    def forward(self, x: Any) -> Any:
        for name in self.order:
            x = getattr(self, name)(x)
        return self.fc(normed(x, self.bn, self.select).mean((2, 3)))


class Masks:
    """Draws the channels that are left: all of them, or about two thirds."""

    def __init__(self, is_cut: bool) -> None:
        self.rng, self.is_cut = np.random.default_rng(3), is_cut

    def mask(self, channels: int) -> list[int]:
        mask = self.rng.random(channels) < 0.65
        mask[self.rng.integers(channels)] = True
        return mask.astype(int).tolist() if self.is_cut else [1] * channels

    def width(self, channels: int) -> int:
        return int(self.rng.integers(1, channels)) if self.is_cut else channels


def preresnet(blocks: int, widths: Sequence[int], is_cut: bool, classes: int = 5) -> nn.Module:
    draw, channels, body = Masks(is_cut), 16, {}
    body["conv1"] = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    for stage, width in enumerate(widths, 1):
        layers = []
        for block in range(blocks):
            inner, stride = (draw.width(width), draw.width(width)), 2 if stage > 1 and block == 0 else 1
            layers.append(PreBlock(channels, width, draw.mask(channels), inner, stride))
            channels = 4 * width
        body[f"layer{stage}"] = nn.Sequential(*layers)
    return Head(body, channels, draw.mask(channels), classes)


class DenseLayer(nn.Module):
    """A layer of a DenseNet, or with `is_transition` what lies between its blocks."""

    def __init__(self, inputs: int, outputs: int, mask: Sequence[int], is_transition: bool) -> None:
        super().__init__()
        self.bn1, self.select, self.is_transition = nn.BatchNorm2d(inputs), Select(mask), is_transition
        window = 1 if is_transition else 3
        self.conv1 = nn.Conv2d(sum(mask), outputs, window, padding=window // 2, bias=False)

    def forward(self, x: Any) -> Any:
        y = self.conv1(normed(x, self.bn1, self.select))
        return nn.functional.avg_pool2d(y, 2) if self.is_transition else torch.cat([x, y], 1)


def densenet(layers: int, growth: int, is_cut: bool, classes: int = 5) -> nn.Module:
    draw, channels = Masks(is_cut), 2 * growth
    body: dict[str, nn.Module] = {"conv1": nn.Conv2d(3, channels, 3, padding=1, bias=False)}
    for block in (1, 2, 3):
        parts = []
        for _ in range(layers):
            parts.append(DenseLayer(channels, growth, draw.mask(channels), False))
            channels += growth
        body[f"dense{block}"] = nn.Sequential(*parts)
        if block < 3:
            body[f"trans{block}"] = DenseLayer(channels, channels, draw.mask(channels), True)
    return Head(body, channels, draw.mask(channels), classes)


def convolutions(widths: Sequence[int | str], has_bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=has_bias), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """For CIFAR: `feature` and one dense layer."""

    def __init__(self, widths: Sequence[int | str], has_bias: bool, classes: int = 5) -> None:
        super().__init__()
        self.feature = convolutions(widths, has_bias)
        self.classifier = nn.Linear([width for width in widths if width != "M"][-1], classes)

    def forward(self, x: Any) -> Any:
        return self.classifier(self.feature(x).mean((2, 3)))


class ImageNetVGG(nn.Module):
    """For ImageNet: `features`, a map of 7x7, three dense layers."""

    def __init__(self, widths: Sequence[int | str], hidden: tuple[int, int], classes: int = 5) -> None:
        super().__init__()
        self.features, last = convolutions(widths, True), [width for width in widths if width != "M"][-1]
        one, two = hidden
        dense = nn.Linear(49 * last, one), nn.ReLU(), nn.Dropout(), nn.Linear(one, two), nn.ReLU(), nn.Dropout()
        self.classifier = nn.Sequential(*dense, nn.Linear(two, classes))

    def forward(self, x: Any) -> Any:
        return self.classifier(nn.functional.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


class Block(nn.Module):
    """A block of torchvision's ResNet."""

    def __init__(self, inputs: int, width: int, stride: int, is_bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if is_bottleneck else width
        plans = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        plans = plans if is_bottleneck else [(inputs, width, 3, stride), (width, width, 3, 1)]
        for number, (before, after, window, step) in enumerate(plans, 1):
            conv = nn.Conv2d(before, after, window, step, padding=window // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.number, self.is_same = len(plans), stride == 1 and inputs == outputs
        if not self.is_same:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Any) -> Any:
        y = x
        for number in range(1, self.number + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = torch.relu(y) if number < self.number else y
        return torch.relu(y + (x if self.is_same else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's ResNet, or with `is_small` the usual form for CIFAR."""

    def __init__(
        self, blocks: Sequence[int], is_bottleneck: bool, width: int, is_small: bool, classes: int = 5
    ) -> None:
        super().__init__()
        window, stride = (3, 1) if is_small else (7, 2)
        self.conv1 = nn.Conv2d(3, width, window, stride, padding=window // 2, bias=False)
        self.bn1, self.is_small, self.stages, channels = nn.BatchNorm2d(width), is_small, len(blocks), width
        for stage, number in enumerate(blocks, 1):
            layers, own = [], width * 2 ** (stage - 1)
            for block in range(number):
                layers.append(Block(channels, own, 2 if stage > 1 and block == 0 else 1, is_bottleneck))
                channels = 4 * own if is_bottleneck else own
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x if self.is_small else nn.functional.max_pool2d(x, 3, 2, padding=1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


FULL_VGG, CUT_VGG = (8, "M", 6, 7, "M", 9), (3, "M", 6, 1, "M", 4)
NETWORKS: dict[str, Any] = {
    "vgg": lambda: VGG(FULL_VGG, True),
    "vgg_cut": lambda: VGG(CUT_VGG, False),
    "preresnet": lambda: preresnet(1, (2, 3, 4), False),
    "preresnet_cut": lambda: preresnet(1, (3, 4, 5), True),
    "densenet": lambda: densenet(1, 4, False),
    "densenet_cut": lambda: densenet(1, 4, True),
    "resnet": lambda: ResNet((2, 1), False, 4, False),
    "resnet_bottleneck": lambda: ResNet((1, 1), True, 4, False),
    "resnet_cifar": lambda: ResNet((1, 1), False, 4, True),
    "vgg_imagenet": lambda: ImageNetVGG((4, "M", 3, "M"), (6, 5)),
}
"""What builds each network, by name."""
COMMITTED = ("vgg", "vgg_cut", "preresnet_cut", "densenet_cut", "resnet_bottleneck", "vgg_imagenet")
"""Those in the file."""


def trained(build: Any, seed: int = 0) -> nn.Module:
    """A network in evaluation with random weights, scales and statistics."""
    torch.manual_seed(seed)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
            nn.init.normal_(module.running_mean, 0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


def images(count: int = 3, pixels: int = 28, seed: int = 0) -> np.ndarray:
    """(n, height, width, channels)"""
    return np.random.default_rng(seed).normal(size=(count, pixels, pixels, 3)).astype(np.float32)


def logits(net: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()


def write() -> None:
    """Write the committed file."""
    arrays = {"images": torch.tensor(images(2, 12))}
    for name in COMMITTED:
        net = trained(NETWORKS[name])
        state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
        arrays |= {f"{name}/{key}": value.detach().clone() for key, value in state.items()}
        arrays[f"logits/{name}"] = torch.tensor(logits(net, images(2, 12)))
    save_file(arrays, FILE)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    write()
