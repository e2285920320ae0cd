"""A BatchNorm that trains faster on CPUs than Flax's, with the same parameters and results.

Times in this file: one normalisation with its ReLU, in float32 with batch 64 on 2 cores of an x86-64 server.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

# Positions that the first of two stages adds up: 32x32x64 takes 0.3 ms, in one stage 3.7 ms.
ROW = 128


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm`, trained faster on CPUs: statistics in two stages, gradients in one pass.

    With its ReLU, forward and gradients take 6.5 ms on 32x32x64 (Flax 33 ms), 1.9 ms on 16x16x128 (15 ms) and 1.0 ms on
    8x8x256 (8.7 ms). The variance is always that of `use_fast_variance=False`. Running statistics pass no gradient on.
    The gradients of training are written out: `jax.grad` and `jax.vjp` work there, `jax.jvp` needs `nn.BatchNorm`. Flax
    computes the rest: half precision, masks, named axes, an axis other than the last, two dimensions, no scale or
    no bias.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        dtypes = {jnp.dtype(kind) for kind in (x.dtype, self.dtype or x.dtype, self.param_dtype)}
        if (
            jax.default_backend() != "cpu"
            or average
            or mask is not None
            or dtypes != {jnp.dtype(jnp.float32)}
            or x.ndim < 3
            or self.axis not in (-1, x.ndim - 1)
            or self.axis_name is not None
            or not (self.use_scale and self.use_bias)
        ):
            return super().__call__(x, use_running_average, mask=mask)
        shape = x.shape[-1:]
        start = {"mean": jnp.zeros, "var": jnp.ones}
        running = [self.variable("batch_stats", name, make, shape) for name, make in start.items()]
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", self.bias_init, shape)
        out, *statistics = _batch_norm(self.epsilon, x, scale, bias)
        if not self.is_initializing():
            for old, new in zip(running, statistics, strict=True):
                old.value = self.momentum * old.value + (1 - self.momentum) * lax.stop_gradient(new)
        return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_norm(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """The normalised `x`, the mean and the biased variance (channels,); the last two pass no gradient on."""
    count = x.size // x.shape[-1]
    mean = _channel_sums(x) / count
    variance = _channel_sums(jnp.square(x - _like(x, mean))) / count
    factor = lax.rsqrt(variance + epsilon) * scale
    return (x - _like(x, mean)) * _like(x, factor) + _like(x, bias), mean, variance


def _batch_norm_forward(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    out, mean, variance = _batch_norm(epsilon, x, scale, bias)
    return (out, mean, variance), (x, scale, mean, variance)


def _batch_norm_backward(epsilon: float, saved: Any, gradients: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of Ioffe & Szegedy 2015, section 3, with the terms of mean and variance put together."""
    (x, scale, mean, variance), gradient = saved, gradients[0]
    count = x.size // x.shape[-1]
    inverse = lax.rsqrt(variance + epsilon)
    centred = x - _like(x, mean)
    bias_gradient = _channel_sums(gradient)
    scale_gradient = _channel_sums(gradient * centred) * inverse
    pull = _like(x, bias_gradient / count) + centred * _like(x, inverse * scale_gradient / count)
    return _like(x, scale * inverse) * (gradient - pull), scale_gradient, bias_gradient


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _like(x: jax.Array, values: jax.Array) -> jax.Array:
    """`values` (channels,) with as many dimensions as `x`."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _channel_sums(x: jax.Array) -> jax.Array:
    """Sums (channels,) over all axes but the last, in two stages."""
    positions = math.prod(x.shape[1:-1])
    row = max(size for size in range(1, min(positions, ROW) + 1) if positions % size == 0)
    parts = x.reshape(x.shape[0], positions // row, row, x.shape[-1]).sum(2)
    return lax.optimization_barrier(parts).sum((0, 1))  # without the barrier, XLA merges the stages
