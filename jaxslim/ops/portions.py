"""Batches in portions that fit into a processor's cache."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax


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


def summed(function: Callable[..., jax.Array], divided: Sequence[jax.Array]) -> jax.Array:
    """The sum of `function` over portions. It starts with the first, since zeros lack the axes of `shard_map`."""
    first = function(*(array[0] for array in divided))
    return lax.fori_loop(
        1, len(divided[0]), lambda number, total: total + function(*(array[number] for array in divided)), first
    )
