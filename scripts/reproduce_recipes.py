"""The recipe of each network on each data set (Liu et al., ICCV 2017, section 4), and what others published.

A table says what a data set asks for and another what a kind of network asks for. A recipe is made of both.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from reproduce_stages import Plan

from jaxslim import models
from jaxslim.errors import InputError
from jaxslim.models import WIDTHS
from jaxslim.training.config import DIGITS, TrainConfig
from jaxslim.training.own import register

PUBLISHED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published.json").read_bytes())
"""Figures by data set, network and who published them. `ratios` has those of cut networks, with `short`, `long` and
`whole` for fine-tuning in a 16th, a quarter and all of the epochs."""

LARGE_BATCHES: dict[str, Any] = {"batch_size": 256, "lr_drops": (1 / 3, 2 / 3)}
DATA: dict[str, dict[str, Any]] = {
    "cifar10": {"epochs": 160},
    "cifar100": {"epochs": 160},
    "svhn_cropped": {
        **{"epochs": 20, "augment": ("crop",), "batch_size": 64},
        **{"mean": (0.4377, 0.4438, 0.4728), "std": (0.198, 0.201, 0.197)},
    },
    "mnist": {
        **LARGE_BATCHES,
        **{"epochs": 30, "augment": (), "image_size": 28, "channels": 1, "mean": (0.1307,), "std": (0.3081,)},
    },
    "imagenet": {
        **LARGE_BATCHES,
        **{"epochs": 60, "image_size": 224, "augment": ("resized-crop", "flip"), "fit": "crop"},
        **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    },
    "digits": {
        name: getattr(DIGITS, name)
        for name in ("epochs", "batch_size", "l1", "image_size", "channels", "mean", "std", "augment", "pad")
    },
}
"""What a data set asks for. The rest is what `TrainConfig` starts from: the PyTorch reference's VGG-19 on CIFAR-10."""

AUTHORS: dict[str, Any] = {"batch_size": 64, "l1": 1e-5}
"""The authors' recipe for networks with more than one path."""
AUTHORS_CIFAR: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


class Kind(NamedTuple):
    """What a kind of network asks for."""

    recipe: Mapping[str, Any]
    ratios: tuple[float, ...]  # at which it is cut
    small: Mapping[str, Any]  # what makes it small enough for a rehearsal, besides its width
    home: str = "cifar10"  # the data set whose recipe serves images without one


KINDS = {
    "VGG": Kind({"l1": 1e-4}, (0.7,), {"widths": WIDTHS["vgg11"]}),
    "PreResNet": Kind(AUTHORS, (0.4, 0.6), {"depth": 11}),
    "ResNet": Kind(AUTHORS, (0.4, 0.6), {"blocks": (1, 1, 1, 1)}),
    "DenseNet": Kind(AUTHORS, (0.4, 0.6), {"depth": 10}),
    "ImageNetVGG": Kind({"l1": 1e-5}, (0.5,), {"widths": (*WIDTHS["vgg11"], "M")}, "imagenet"),
    "MLP": Kind({"l1": 1e-3}, (0.8,), {}, "mnist"),
}
"""By the class of the network."""
OTHER_RATIOS: dict[tuple[str, str], tuple[float, ...]] = {
    ("vgg19", "cifar100"): (0.5,),
    ("densenet40", "cifar10"): (0.4, 0.6, 0.7),
}
WIDTH_FIELDS = ("widths", "width", "growth", "hidden")
"""Fields of networks that hold numbers of channels."""
SMALL_IMAGE = 32
"""Most pixels of a side of the images in a rehearsal."""


class Recipe(NamedTuple):
    """How a network is trained with sparsity on a data set, where it is cut, and what others found."""

    network: str
    config: TrainConfig
    plan: Plan
    published: Mapping[str, Any]  # by who published it


def recipe(network: str, dataset: str) -> Recipe:
    """The recipe of a network, by its name as a model, on a data set, by its name or path.

    Raises:
      InputError: there is no such network, or it cannot see the images.
    """
    name, known = {"preresnet164": "resnet164"}.get(network, network), data_name(dataset)
    register(network)
    module = models.build(network, {}, num_classes=10, dtype=jnp.float32)
    kind = KINDS.get(type(module).__name__, KINDS["VGG"])
    like = known if known in DATA else home(module, kind)
    fields = {**kind.recipe, **(AUTHORS_CIFAR if kind.recipe is AUTHORS and "cifar" in like else {}), **DATA[like]}
    config = TrainConfig(dataset=dataset, **model_of(network), **fields)
    variables = shapes(network, config)
    published = PUBLISHED.get(known, {}).get(name, {})
    cuts = [cut for other in published.values() for cut in other.get("ratios", {}).values()]
    as_long = any("whole" in cut for cut in cuts) and not any("long" in cut for cut in cuts)
    plan = Plan(
        ratios=OTHER_RATIOS.get((name, known), kind.ratios),
        long=1 if as_long else 4,
        norm="batch_stats" in variables,
        passes=isinstance(module, models.VGG),
    )
    return Recipe(network, config, plan, published)


def data_name(dataset: str) -> str:
    """The name of a known data set, also where its archive or folder is given by the name that it is published with."""
    file = Path(dataset).name.lower()
    for start, name in (("cifar-100", "cifar100"), ("cifar-10", "cifar10"), ("imagenet", "imagenet")):
        if file.startswith(start):
            return name
    return dataset.partition("+")[0]


def home(module: Any, kind: Kind) -> str:
    """The data set whose recipe serves images without one: ImageNet for a ResNet whose first layer is for such."""
    return "imagenet" if getattr(module, "small_images", True) is False else kind.home


def model_of(network: str, width: float = 1.0, small: bool = False) -> dict[str, Any]:
    """The fields of a configuration that give a network with a share of its widths, or a small one of its kind.

    Raises:
      InputError: there is no such network, or it has no widths.
    """
    if not 0 < width <= 1:
        raise InputError(f"width is {width}; it must lie in (0, 1], for example 0.25.")
    module = models.build(network, {}, num_classes=10, dtype=jnp.float32)
    base = next((name for name, build in models.MODELS.items() if build is type(module)), None)
    if base is None:  # of the user's own code
        if width < 1 and not small:
            raise InputError(f"{network} has no widths that a share could be taken of; leave --width out.")
        return {"model": network}
    fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    own = {name: value for name, value in fields.items() if name not in ("num_classes", "dtype", "parent", "name")}
    own |= KINDS[type(module).__name__].small if small else {}
    own |= {name: narrowed(own[name], width) for name in WIDTH_FIELDS if name in own}
    return {"model": base, "model_args": own}


def narrowed(widths: Any, width: float) -> Any:
    """A share of one width or of each, at least 1; poolings stay."""
    if isinstance(widths, int):
        return max(1, round(widths * width))
    return [one if isinstance(one, str) else max(1, round(one * width)) for one in widths]


def shapes(network: str, config: TrainConfig) -> Any:
    """The shapes of a network's variables; InputError if it cannot see images of the size that the recipe gives."""
    module = models.build(config.model, dict(config.model_args), num_classes=10, dtype=jnp.float32)
    image = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    try:
        return jax.eval_shape(module.init, jax.random.key(0), image)
    except InputError as error:
        reason = str(error).partition(";")[0]
        problem = f"{network} does not fit the images of {config.dataset}: {reason}"
        raise InputError(f"{problem}; choose another --network or --dataset.") from None
