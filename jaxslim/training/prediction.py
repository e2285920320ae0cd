"""The classes of single images, by the network of a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.data import Form, normalise
from jaxslim.errors import InputError
from jaxslim.storage import checkpoint
from jaxslim.storage.metadata import check_image_shape
from jaxslim.storage.programs import Program, platform_here
from jaxslim.training.config import from_json
from jaxslim.training.network import number_of_classes

BATCH = 64
"""Images in a call."""


class Predictor(NamedTuple):
    """A network for images."""

    form: Form
    """What the images are like that it sees."""
    class_names: tuple[str, ...]
    """Numbers where the checkpoint names no classes."""
    probabilities: Callable[[np.ndarray], np.ndarray]
    """uint8 (n, image_size, image_size, channels) -> float32 (n, classes), the softmax of the logits."""


def predictor(path: str | Path) -> Predictor:
    """What a checkpoint, or a file of `jaxslim export`, tells of images: its network, the images that it sees, and the
    names of their classes.

    Raises:
      InputError: it does not say how images are normalised or how large they are, or its network is no classifier of
        such images, or runs on other platforms.
    """
    module, variables, meta = checkpoint.load(path)
    if "image_shape" not in meta:
        raise InputError(f"{path} does not name its images' shape; save it with meta={{'image_shape': [32, 32, 3]}}.")
    check_image_shape(Path(path), meta)
    pixels = _of_file(path, module, meta) if "exported" in meta else _of_checkpoint(path, meta)
    height, channels = meta["image_shape"][1:]
    dtype = jnp.uint8 if pixels.inside else jnp.float32
    classes = number_of_classes(module, variables, meta["image_shape"], path, dtype)

    def run(variables: Any, images: jax.Array) -> jax.Array:
        given = images if pixels.inside else normalise(images, pixels.mean, pixels.std)
        return jax.nn.softmax(module.apply(variables, given).astype(jnp.float32))

    step = jax.jit(run)

    def probabilities(images: np.ndarray) -> np.ndarray:
        parts = [step(variables, images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate(jax.device_get(parts))

    known = meta.get("class_names")
    names = known if isinstance(known, list) and len(known) == classes else range(classes)
    return Predictor(Form(height, channels, pixels.crop), tuple(map(str, names)), probabilities)


class _Pixels(NamedTuple):
    """How pixels in [0, 1] are normalised."""

    mean: Sequence[float]
    std: Sequence[float]
    inside: bool
    """Whether the network does this itself, and takes uint8 images."""
    crop: bool = False
    """Whether the middle of pictures is taken."""


def _of_checkpoint(path: str | Path, meta: Mapping[str, Any]) -> _Pixels:
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
    return _Pixels(config.mean, config.std, inside=False, crop=config.fit == "crop")


def _of_file(path: str | Path, program: Program, meta: Mapping[str, Any]) -> _Pixels:
    if meta.get("argmax"):
        raise InputError(
            f"{path} gives classes and no logits, which probabilities are made of; export it without --argmax."
        )
    platform = platform_here()
    if platform not in program.platforms:
        raise InputError(
            f"{path} is for {', '.join(program.platforms)}, and JAX runs on {platform} here; export it with "
            f"--platforms {platform}."
        )
    height, width, channels = meta["image_shape"]
    match meta.get("pixels"):
        case {"mean": list(mean), "std": list(std), "inside": bool(inside)} if height == width and {
            len(mean),
            len(std),
        } <= {1, channels}:
            return _Pixels(mean, std, inside, crop=meta.get("fit") == "crop")
    raise InputError(
        f"{path} does not tell how square images of {height}x{width}x{channels} are normalised; export it with "
        "normalisation, or export a checkpoint that jaxslim train wrote."
    )
