"""The classes of single images, by the network of a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.data import normalise
from jaxslim.errors import InputError
from jaxslim.ops import compiler_options
from jaxslim.storage import checkpoint
from jaxslim.training.config import from_json
from jaxslim.training.network import number_of_classes

BATCH = 64
"""Images in a call."""


class Predictor(NamedTuple):
    """A network for images."""

    image_size: int
    channels: int
    class_names: tuple[str, ...]
    """Numbers where the checkpoint names no classes."""
    probabilities: Callable[[np.ndarray], np.ndarray]
    """uint8 (n, image_size, image_size, channels) -> float32 (n, classes), the softmax of the logits."""


def predictor(path: str | Path) -> Predictor:
    """What a checkpoint tells of images: its network, the images that it sees, and the names of their classes.

    Raises:
      InputError: the checkpoint does not say how images are normalised or how large they are, or its network is no
        classifier of such images.
    """
    module, variables, meta = checkpoint.load(path)
    if "image_shape" not in meta:
        raise InputError(f"{path} does not name its images' shape; save it with meta={{'image_shape': [32, 32, 3]}}.")
    if not isinstance(fields := meta.get("config"), dict):
        raise InputError(
            f"{path} names no training configuration, whose mean and std images are normalised by; give a checkpoint "
            "that jaxslim train wrote, or save it with its config in meta."
        )
    config, (height, width, channels) = from_json(fields, path), meta["image_shape"]
    if height != width or channels != config.channels:
        raise InputError(
            f"{path} sees images of {height}x{width}x{channels}, and its config has {config.channels} channels; save "
            "it with a config and an image_shape that agree, such as [32, 32, 3]."
        )
    classes = number_of_classes(module, variables, meta["image_shape"], path)

    def run(variables: Any, images: jax.Array) -> jax.Array:
        logits = module.apply(variables, normalise(images, config.mean, config.std))
        return jax.nn.softmax(logits.astype(jnp.float32))

    step = jax.jit(run, compiler_options=compiler_options())

    def probabilities(images: np.ndarray) -> np.ndarray:
        parts = [step(variables, images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate(jax.device_get(parts))

    known = meta.get("class_names")
    names = known if isinstance(known, list) and len(known) == classes else range(classes)
    return Predictor(height, channels, tuple(map(str, names)), probabilities)
