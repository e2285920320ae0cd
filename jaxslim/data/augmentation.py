"""Augmentation and normalisation of images, on the device."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxslim.errors import InputError


def crop(images: jax.Array, key: jax.Array, *, pad: int) -> jax.Array:
    """Shift each image by up to `pad` pixels; what moves in is black."""
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shape = images.shape[1:]
    return jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), shape))(padded, offsets)


def flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirror half of the images left to right."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


AUGMENTATIONS: dict[str, Callable[..., jax.Array]] = {"flip": flip}
"""Functions of images uint8 (n, height, width, channels) and a key that return as many; add your own by name. `crop` is
there too, with the padding that `augmenter` is given."""


def augmenter(names: Sequence[str], *, pad: int = 4) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Build `augment(images, key)`, which applies the augmentations `names` in turn; for use inside `jit`.

    The key fixes the draws, for one device and for a batch sharded over many alike.

    Raises:
      InputError: there is no augmentation of a name.
    """
    known: dict[str, Callable[..., jax.Array]] = {"crop": functools.partial(crop, pad=pad), **AUGMENTATIONS}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"There is no augmentation {unknown[0]!r}; give any of {', '.join(known)}, or none.")

    def augment(images: jax.Array, key: jax.Array) -> jax.Array:
        for name, own in zip(names, jax.random.split(key, max(len(names), 1)), strict=False):
            images = known[name](images, own)
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
    shape = (1, 1, 1, images.shape[3])
    mean_array, std_array = (jnp.asarray(value, jnp.float32).reshape(shape) for value in (mean, std))
    return ((images.astype(jnp.float32) / 255 - mean_array) / std_array).astype(dtype)
