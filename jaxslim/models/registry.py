"""Networks by name, for configurations and checkpoints."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxslim.errors import InputError, first_line
from jaxslim.models import densenet, preresnet, resnet, vgg_imagenet
from jaxslim.models.densenet import DenseNet
from jaxslim.models.mlp import MLP
from jaxslim.models.preresnet import PreResNet
from jaxslim.models.resnet import ResNet
from jaxslim.models.vgg import VGG, WIDTHS
from jaxslim.models.vgg_imagenet import ImageNetVGG

MODELS: dict[str, Callable[..., Any]] = {
    "vgg": VGG,
    **{name: functools.partial(VGG, widths=widths) for name, widths in WIDTHS.items()},
    "vgg_imagenet": ImageNetVGG,
    **vgg_imagenet.VARIANTS,
    "preresnet": PreResNet,
    **preresnet.VARIANTS,
    "densenet": DenseNet,
    **densenet.VARIANTS,
    "mlp": MLP,
    "resnet": ResNet,
    **resnet.VARIANTS,
}
"""For each name, what builds a Linen module from `num_classes`, `dtype` and arguments of its own.

`module.apply(variables, images, train=...)` takes images (n, height, width, channels) and returns logits
(n, num_classes). Add your own network under a name of its own. Checkpoints of it load by name if you add its class.
"""


def build(model: str, arguments: dict[str, Any], *, num_classes: int, dtype: Any) -> Any:
    """Build the module that `model` names.

    Raises:
      InputError: no model has this name, or it does not take the arguments.
    """
    if model not in MODELS:
        raise InputError(f"There is no model {model!r}; the models are {', '.join(sorted(MODELS))}.")
    if taken := arguments.keys() & {"num_classes", "dtype"}:
        where = "num_classes comes from the data set, and dtype from --dtype"
        raise InputError(f"model_args give {sorted(taken)[0]}; leave it out: {where}.")
    try:
        return MODELS[model](num_classes=num_classes, dtype=dtype, **arguments)
    except TypeError as error:
        reason = f"{first_line(error)}; a list takes commas, for example widths=16,"
        raise InputError(f"model {model} does not take the model_args {arguments}: {reason}") from error


def module_class(name: str) -> type | None:
    """The class among the models that a checkpoint names, for example `jaxslim.models.vgg.VGG`; None if none is."""
    classes = (kind for kind in MODELS.values() if isinstance(kind, type))
    return next((kind for kind in classes if f"{kind.__module__}.{kind.__qualname__}" == name), None)


def registered(meta: Mapping[str, Any]) -> Any:
    """The module that a checkpoint's `meta` names among the models, of code that this process has added; or None."""
    described = meta["module"]
    if not isinstance(described, Mapping) or described.get("model") not in MODELS:
        return None
    try:
        name, arguments, classes = described["model"], dict(described["arguments"]), described["num_classes"]
    except (KeyError, TypeError, ValueError):
        return None
    return build(name, arguments, num_classes=classes, dtype=jnp.float32)


def kind(module: Any) -> str:
    """What a module is called in a line about it: the name of its class, also after a cut that left no plain module."""
    whole = getattr(module, "whole", module)
    name = repr(whole) if hasattr(whole, "described") else type(whole).__name__
    return name if whole is module else f"{name}, cut"


def architecture(module: Any) -> str | None:
    """How a module writes its own architecture in a table; None if it offers no `architecture()`."""
    return module.architecture() if hasattr(module, "architecture") else None
