"""Batches in portions that fit into a processor's cache."""

import jax
import jax.numpy as jnp


def portions(image_bytes: int, limit: int, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays (n, ...) as (portions, images of a portion, ...); images of zeros may follow the last.

    Args:
      image_bytes: what one image takes.
      limit: bytes that a portion takes at most, unless one image takes more.
      *arrays: of the same n.
    """
    number = len(arrays[0])
    count = min(number, -(-number * image_bytes // limit))
    count = next((more for more in range(count, min(2 * count, number + 1)) if number % more == 0), count)
    each = -(-number // count)
    missing = [(0, count * each - number), *[(0, 0)] * (arrays[0].ndim - 1)]
    return [jnp.pad(array, missing).reshape(count, each, *array.shape[1:]) for array in arrays]
