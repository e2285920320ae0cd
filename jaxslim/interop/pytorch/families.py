"""What the layers of each family are called in PyTorch, and how their arrays lie there."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxslim.core.paths import Path
from jaxslim.errors import InputError
from jaxslim.models import VGG, DenseNet, ImageNetVGG, PreResNet, ResNet
from jaxslim.models.vgg_imagenet import GRID

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Names of arrays in Flax, and in PyTorch."""


class Family(NamedTuple):
    """Networks whose state dicts have the same names."""

    layer: Callable[[Any, tuple[str, ...]], str]
    """`layer(module, path)` -> the name of a layer in PyTorch, by its path in the module."""
    stem: str
    """The first layer."""
    is_biased: bool = False
    """Whether the convolutions may have biases in front of BatchNorm."""
    is_selected: bool = False
    """Whether masks say which channels the first norm of each block passes on."""

    def name(self, module: Any, path: Path) -> str:
        """The name in PyTorch of an array of the variables, by its path, such as (params, conv0, kernel)."""
        return f"{self.layer(module, path[1:-1])}.{LEAVES[path[-1]]}"


def family(module: Any, model: Any) -> Family:
    """The family of a module, which `model` names; an InputError if it has none."""
    if type(module) not in FAMILIES or getattr(module, "dense_norm", False):
        kinds = ", ".join(kind.__name__ for kind in FAMILIES)
        raise InputError(f"{model} is no network whose names in PyTorch are known; take one of {kinds}.")
    return FAMILIES[type(module)]


def to_flax(array: np.ndarray, path: Path, dimensions: int) -> np.ndarray | None:
    """An array of PyTorch in Flax's layout: convolutions OIHW -> HWIO, dense layers transposed.

    A dense layer with four `dimensions` reads a map of 7x7 pixels, whose channels come first in PyTorch. None if the
    array has other dimensions.
    """
    if _is_dense(path) and dimensions == 4 and array.ndim == 2 and array.shape[1] % GRID**2 == 0:
        array = array.reshape(len(array), -1, GRID, GRID)
    if array.ndim != dimensions:
        return None
    return array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array


def shape_in_torch(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """The shape in PyTorch of an array of this shape in Flax."""
    if _is_dense(path) and len(shape) > 1:
        return (shape[-1], math.prod(shape[:-1]))
    return (*shape[:-3:-1], *shape[:-2]) if len(shape) > 1 else shape


def _is_dense(path: Path) -> bool:
    """Whether an array is of a dense layer, by its path."""
    return path[-2].startswith(("dense", "classifier"))


def _numbered(first: str, dense: Mapping[str, str]) -> Callable[[Any, tuple[str, ...]], str]:
    """Names of a VGG, whose convolutions, norms, activations and poolings are numbered together."""

    def layer(module: Any, path: tuple[str, ...]) -> str:
        (name,) = path
        if name in dense:
            return dense[name]
        steps = np.cumsum([0, *(1 if width == "M" else 3 for width in module.widths)])
        places = [step for step, width in zip(steps, module.widths, strict=False) if width != "M"]
        is_norm = name.startswith("bn")
        return f"{first}.{places[int(name.removeprefix('bn').removeprefix('conv'))] + is_norm}"

    return layer


def _nested(module: Any, path: tuple[str, ...]) -> str:
    """Names of a residual or dense network: `layer1_0` is `layer1.0`."""
    known = {"classifier": "fc", "projection": "downsample.0", "projection_bn": "downsample.1"}
    return ".".join(known.get(name, name.replace("_", ".")) for name in path)


IMAGENET_DENSE = {"dense0": "classifier.0", "dense1": "classifier.3", "classifier": "classifier.6"}

FAMILIES: dict[type, Family] = {
    VGG: Family(_numbered("feature", {"classifier": "classifier"}), "conv0", is_biased=True),
    ImageNetVGG: Family(_numbered("features", IMAGENET_DENSE), "conv0", is_biased=True),
    PreResNet: Family(_nested, "conv1", is_selected=True),
    DenseNet: Family(_nested, "conv1", is_selected=True),
    ResNet: Family(_nested, "conv1"),
}
"""VGG, PreResNet and DenseNet as in pytorch-slimming and in the authors' repository, the others as in torchvision."""
