"""Networks that know nothing of jaxslim, before and after `jaxslim.ops.accelerate()`."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_parts import take_turns
from flax import linen as nn

from jaxslim import ops


class ResNet18(nn.Module):
    """Residual blocks for CIFAR (He et al., CVPR 2016)."""

    width: int = 64
    blocks: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(_norm(train)(_conv(self.width)(x)))
        for stage in range(4):
            for block in range(self.blocks):
                width, strides = self.width * 2**stage, 2 if stage and not block else 1
                y = nn.relu(_norm(train)(_conv(width, strides=strides)(x)))
                y = _norm(train)(_conv(width)(y))
                x = _norm(train)(_conv(width, 1, strides)(x)) if strides > 1 else x
                x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


class MobileNetV2(nn.Module):
    """Inverted residual blocks (Sandler et al., CVPR 2018), with strides for small images."""

    stages: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    """How many times as wide a block is inside, its channels, how many blocks, strides of the first."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu6(_norm(train)(_conv(32)(x)))
        for expansion, width, blocks, strides in self.stages:
            for block in range(blocks):
                inside, own = expansion * x.shape[-1], 1 if block else strides
                y = nn.relu6(_norm(train)(_conv(inside, 1)(x))) if expansion > 1 else x
                y = nn.relu6(_norm(train)(_conv(inside, strides=own, groups=inside)(y)))
                y = _norm(train)(_conv(width, 1)(y))
                x = x + y if x.shape == y.shape else y
        x = nn.relu6(_norm(train)(_conv(4 * self.stages[-1][1], 1)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


NETWORKS = {"ResNet-18": ResNet18(), "MobileNetV2": MobileNetV2()}
QUICK = {"ResNet-18": ResNet18(4, 1), "MobileNetV2": MobileNetV2(((2, 4, 1, 2),))}


def measure(module: nn.Module, batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Measure inference and gradients on `batch` images of 32x32: compiled after `accelerate()`, and as XLA does.

    Yields the kind, infer or train, with each contestant's seconds.
    """
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, batch))
    variables = jax.jit(module.init, static_argnums=2)(jax.random.key(0), images[:1], False)

    def infer(variables: Any) -> Any:
        return module.apply(variables, images, False)

    def train(variables: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, changed = module.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -chosen.mean(), changed

        return jax.grad(loss, has_aux=True)(variables["params"])

    for kind, function in {"infer": infer, "train": train}.items():
        fast = jax.jit(function).lower(variables).compile()
        with ops.as_written():
            # JAX keeps what it lowered of a function, so this is another one.
            plain = jax.jit(lambda variables, function=function: function(variables)).lower(variables).compile()
        ours, theirs = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(one(variables))]) for one in (fast, plain))
        # A rounding of 1e-5 turns some activations on or off, which moves single gradients by some percent. Others are
        # zero but for rounding, such as those of a shift in front of a norm. So all are compared as one vector.
        if not jnp.linalg.norm(ours - theirs) <= 0.05 * jnp.linalg.norm(theirs):
            raise RuntimeError(f"{type(module).__name__} does not compute what XLA does.")
        contestants = {"jaxslim": _call(fast, variables), "XLA": _call(plain, variables)}
        yield {"kind": kind, "seconds": take_turns(contestants, rounds)}


def _call(compiled: Any, variables: Any) -> Callable[[], object]:
    return lambda: jax.block_until_ready(compiled(variables))


def _conv(features: int, window: int = 3, strides: int = 1, groups: int = 1) -> nn.Conv:
    return nn.Conv(features, (window, window), strides, padding=window // 2, feature_group_count=groups, use_bias=False)


def _norm(train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)
