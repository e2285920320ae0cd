"""Checkpoints from networks that were trained with PyTorch."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim import models
from jaxslim.core.cost import count
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import check_place
from jaxslim.interop.pytorch.importing import from_pytorch
from jaxslim.models import VGG, DenseNet, PreResNet
from jaxslim.storage import checkpoint
from jaxslim.storage.checkpoint import Loaded
from jaxslim.training.config import TrainConfig

CIFAR = {"image_size": 32, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.201)}
"""What the authors' repository feeds its networks; pytorch-slimming takes 0.5 for both, as jaxslim does."""
IMAGENET = {"dataset": "imagenet2012", "image_size": 224, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""What torchvision feeds its networks."""


def import_network(
    file: str | Path, model: str, out: str | Path, *, model_args: Mapping[str, Any] | None = None, **changes: Any
) -> Loaded:
    """Read a network with `from_pytorch`, and save it as a checkpoint that all commands take.

    Args:
      file: with the state dict.
      model: name of the full network.
      out: folder of the checkpoint to make.
      model_args: arguments of the full network.
      **changes: fields of the configuration that the checkpoint names, such as `dataset`, `image_size` or `mean`; by
        default those of the repository whose network it is.

    Returns:
      What `jaxslim.load` gives for the new checkpoint.

    Raises:
      InputError: the folder exists, or as for `from_pytorch` and `TrainConfig`.
    """
    out = Path(out).absolute()
    if os.path.lexists(out):
        raise InputError(f"{out} exists already and checkpoints are never overwritten; choose another --out.")
    check_place(out)
    module, variables = from_pytorch(file, model, **dict(model_args or {}))
    whole = getattr(module, "whole", module)
    full = models.build(model, dict(model_args or {}), num_classes=whole.num_classes, dtype=whole.dtype)
    config = _config(whole, model, variables, {"name": out.name, "model_args": dict(model_args or {}), **changes})
    shape = (config.image_size, config.image_size, config.channels)
    cost = count(module.apply, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    meta = {
        "kind": "dense" if module == full else "pruned",
        "config": dataclasses.asdict(config),
        "image_shape": list(shape),
        "imported": {"file": os.path.abspath(file), "model": model},
        "cost": {"params": cost.params, "macs": cost.macs},
    }
    checkpoint.save(out, module, variables, meta)
    return Loaded(module, variables, meta)


def _config(whole: Any, model: str, variables: Any, changes: Mapping[str, Any]) -> TrainConfig:
    """The images that a network was trained on, with jaxslim's recipe."""
    first = next(name for name in ("conv0", "conv1") if name in variables["params"])
    channels = variables["params"][first]["kernel"].shape[-2]
    is_small = isinstance(whole, VGG | PreResNet | DenseNet) or getattr(whole, "small_images", False)
    known: dict[str, Any] = IMAGENET
    if is_small:
        known = {
            **({} if isinstance(whole, VGG) else CIFAR),
            "dataset": f"cifar{100 if whole.num_classes == 100 else 10}",
        }
    if channels == 1:
        known = {**known, "mean": (0.5,), "std": (0.5,)}
    return TrainConfig(**{"model": model, "channels": channels, **known, **changes})
