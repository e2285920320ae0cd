"""What `bench.py --layers` measures: convolutions one by one, as jaxslim, XLA and a peer compute them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from bench_parts import Contestants, take_turns
from jax import lax

from jaxslim import ops

KINDS = ("infer", "train")
LAYOUT = ("NHWC", "HWIO", "NHWC")
TOLERANCE = 1e-3  # how far outputs may differ, as a share of the largest one
Pair = tuple[Callable[[], Any], Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution of square images with a square window, in float32."""

    size: int
    """Height and width of its images."""
    channels: int
    features: int
    window: int = 3
    stride: int = 1
    groups: int = 1
    transposed: bool = False
    batch: int = 64

    @property
    def name(self) -> str:
        depthwise = self.groups == self.channels
        kind = "depthwise " if depthwise else "transposed " if self.transposed else ""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        groups = f", {self.groups} groups" if self.groups > 1 and not depthwise else ""
        shapes = f"{self.size}x{self.size}, {self.channels} -> {self.features}{groups}, batch {self.batch}"
        return f"{kind}{self.window}x{self.window}{stride}, {shapes}"

    @property
    def padding(self) -> int:
        """What PyTorch is given. Images keep their size, a stride divides it, a transposed layer multiplies it."""
        return (self.window - self.stride) // 2 if self.transposed else self.window // 2


LAYERS = (
    Layer(size=32, channels=64, features=64),
    Layer(size=16, channels=64, features=128),
    Layer(size=16, channels=128, features=128),
    Layer(size=8, channels=256, features=256),
    Layer(size=4, channels=512, features=512),
    Layer(size=2, channels=512, features=512),
    Layer(size=56, channels=64, features=64, batch=8),
    Layer(size=32, channels=49, features=64),
    Layer(size=32, channels=64, features=128, stride=2),
    Layer(size=56, channels=128, features=128, stride=2, batch=8),
    Layer(size=32, channels=64, features=256, window=1),
    Layer(size=16, channels=256, features=64, window=1),
    Layer(size=8, channels=512, features=512, window=1),
    Layer(size=32, channels=64, features=128, window=1, stride=2),
    Layer(size=32, channels=3, features=64),
    Layer(size=224, channels=3, features=64, window=7, stride=2, batch=8),
    Layer(size=32, channels=96, features=96, groups=96),
    Layer(size=16, channels=192, features=192, groups=192),
    Layer(size=16, channels=192, features=192, groups=192, stride=2),
    Layer(size=16, channels=120, features=120, groups=120, window=5),
    Layer(size=16, channels=256, features=256, groups=32),
    Layer(size=16, channels=128, features=64, window=4, stride=2, transposed=True),
    Layer(size=16, channels=128, features=64, window=2, stride=2, transposed=True),
)
QUICK = (
    Layer(size=6, channels=3, features=4, batch=2),
    Layer(size=6, channels=4, features=4, groups=4, stride=2, batch=2),
    Layer(size=3, channels=4, features=3, window=4, stride=2, transposed=True, batch=2),
)


def measure(layer: Layer, rounds: int, peer: Any) -> Iterator[dict[str, Any]]:
    """Measure the forward pass of a layer, and the forward pass with the gradients of images and kernel.

    `peer` is the module `bench_torch` or None. Yields the kind, infer or train, with each contestant's seconds.

    Raises:
      RuntimeError: the peer computes another layer.
    """
    rng = np.random.default_rng(0)
    images = rng.normal(size=(layer.batch, layer.size, layer.size, layer.channels)).astype(np.float32)
    shape = (layer.window, layer.window, layer.channels // layer.groups, layer.features)
    kernel = rng.normal(size=shape).astype(np.float32)
    output = jax.eval_shape(functools.partial(convolve, layer, ops.conv), images, kernel)
    cotangent = rng.normal(size=output.shape).astype(np.float32)
    arrays = jax.device_put((images, kernel, cotangent))
    calls = {"jaxslim": _calls(layer, ops.conv, *arrays)}
    with ops.as_written():
        calls["XLA"] = _calls(layer, lax.conv_general_dilated, *arrays)
    if peer:
        ours = np.asarray(calls["jaxslim"][0]())
        for name, pair in peer.layer_calls(layer, images, kernel, cotangent).items():
            _check(f"{layer.name}, {name}", ours, peer.channels_last(pair[0]()))
            calls[name] = pair
    for number, kind in enumerate(KINDS):
        contestants: Contestants = {name: pair[number] for name, pair in calls.items()}
        yield {"kind": kind, "seconds": take_turns(contestants, rounds)}


def convolve(layer: Layer, function: Callable[..., jax.Array], images: Any, kernel: Any) -> jax.Array:
    """The layer by way of `lax.conv_general_dilated` or what takes the same arguments.

    A transposed layer is PyTorch's with the kernel rotated by 180 degrees.
    """
    padding = layer.window - 1 - layer.padding if layer.transposed else layer.padding
    return function(
        images,
        kernel,
        (1, 1) if layer.transposed else (layer.stride, layer.stride),
        ((padding, padding), (padding, padding)),
        lhs_dilation=(layer.stride, layer.stride) if layer.transposed else None,
        rhs_dilation=None,
        dimension_numbers=lax.conv_dimension_numbers(images.shape, kernel.shape, LAYOUT),  # in the form Flax gives
        feature_group_count=layer.groups,
    )


def _calls(layer: Layer, function: Callable[..., jax.Array], *arrays: jax.Array) -> Pair:
    images, kernel, cotangent = arrays
    forward = functools.partial(convolve, layer, function)

    def gradients(images: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        output, backward = jax.vjp(forward, images, kernel)
        return output, backward(cotangent)

    infer = jax.jit(forward).lower(images, kernel).compile()
    train = jax.jit(gradients).lower(*arrays).compile()
    return (
        lambda: jax.block_until_ready(infer(images, kernel)),
        lambda: jax.block_until_ready(train(images, kernel, cotangent)),
    )


def _check(name: str, ours: np.ndarray, others: np.ndarray) -> None:
    if ours.shape != others.shape:
        raise RuntimeError(f"{name}: outputs have the shape {others.shape}, jaxslim's {ours.shape}.")
    difference, largest = np.abs(ours - others).max(), np.abs(ours).max()
    if not difference <= TOLERANCE * largest:
        raise RuntimeError(f"{name}: outputs differ from jaxslim's by {difference:.2g}; the largest is {largest:.2g}.")
