"""Augmentation and normalisation of images, on the device."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxslim.errors import InputError


def crop(images: jax.Array, key: jax.Array, pad: int) -> jax.Array:
    """Shift each image by up to `pad` pixels; what moves in is black."""
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shape = images.shape[1:]
    return jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), shape))(padded, offsets)


def flip(images: jax.Array, key: jax.Array, pad: int = 0) -> jax.Array:
    """Mirror half of the images left to right; `pad` has no effect."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array, int], jax.Array]] = {"crop": crop, "flip": flip}
"""Functions (images, key, pad) -> images by name. Images are uint8 (n, height, width, channels). Add your own."""


def augmenter(names: Sequence[str], *, pad: int = 4) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Build `augment(images, key)`, which applies augmentations one after the other; for use inside `jit`.

    A key gives the same draws on one device and for a batch that is sharded over many.

    Args:
      names: keys of `AUGMENTATIONS`.
      pad: how far an image may move, in pixels.

    Raises:
      InputError: there is no augmentation of a name.
    """
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise InputError(f"There is no augmentation {unknown[0]!r}; use {', '.join(AUGMENTATIONS)}, or no name at all.")
    steps = [AUGMENTATIONS[name] for name in names]

    def augment(images: jax.Array, key: jax.Array) -> jax.Array:
        for step, step_key in zip(steps, jax.random.split(key, len(steps)), strict=True):
            images = step(images, step_key, pad)
        return images

    return augment


def normalise(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    r"""Standardise pixels, $(x / 255 - \mu) / \sigma$ by channel, computed in float32.

    Args:
      images: uint8 (n, height, width, channels).
      mean: of pixels in [0, 1], one number a channel.
      std: likewise.

    Returns:
      (n, height, width, channels) of the given dtype.
    """
    mean_array, std_array = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (mean, std))
    return ((images.astype(jnp.float32) / 255 - mean_array) / std_array).astype(dtype)
