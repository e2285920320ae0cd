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


def resized_crop(images: jax.Array, key: jax.Array, pad: int = 0) -> jax.Array:
    """Resize a random part of each image to the whole (Szegedy et al., CVPR 2015); `pad` has no effect.

    A part has 8 to 100 % of the area, 3/4 to 4/3 of the aspect ratio, and lies inside. Pixels between are bilinear.
    """
    size = jnp.array(images.shape[1:3], jnp.float32)
    areas, aspects, places = jax.random.split(key, 3)
    area = jax.random.uniform(areas, (len(images), 1), minval=0.08, maxval=1.0)
    ratio = jnp.exp(jax.random.uniform(aspects, (len(images), 1), minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)))
    share = jnp.minimum(jnp.sqrt(area * jnp.concatenate([1 / ratio, ratio], 1)), 1.0)
    start = jax.random.uniform(places, share.shape) * (1 - share) * size[None]

    def resized(image: jax.Array, share: jax.Array, start: jax.Array) -> jax.Array:
        moved = jax.image.scale_and_translate(
            image.astype(jnp.float32), image.shape, (0, 1), 1 / share, -start / share, "bilinear", antialias=False
        )
        return jnp.clip(jnp.round(moved), 0, 255).astype(image.dtype)

    return jax.vmap(resized)(images, share, start)


AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array, int], jax.Array]] = {
    "crop": crop,
    "flip": flip,
    "resized-crop": resized_crop,
}
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
