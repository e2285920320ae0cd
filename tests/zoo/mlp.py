"""Dense networks: in Linen, in NNX, and in plain JAX with stacked layers in a loop."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import lax

from . import Network, linen, nnx_network, normal, plain


class Mlp(nn.Module):
    """Rumelhart et al. (1986), with BatchNorm (Ioffe and Szegedy 2015) and dropout (Srivastava et al. 2014)."""

    widths: tuple[int, ...] = (32, 48)
    classes: int = 10
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width in self.widths:
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(width, use_bias=False)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.classes)(x)


class ResidualMlp(nnx.Module):
    """Gorishniy et al. (2021), Revisiting Deep Learning Models for Tabular Data: their ResNet (section 3.2)."""

    def __init__(self, inputs: int, width: int, inner: int, layers: int, rngs: nnx.Rngs) -> None:
        self.enter = nnx.Linear(inputs, width, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for _ in range(layers)])
        self.up = nnx.List([nnx.Linear(width, inner, rngs=rngs) for _ in range(layers)])
        self.down = nnx.List([nnx.Linear(inner, width, rngs=rngs) for _ in range(layers)])
        self.last_norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.enter(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + self.dropout(down(self.dropout(nnx.relu(up(norm(x))))))
        return self.head(nnx.relu(self.last_norm(x)))


def looped_mlp(variables: Any, x: Any, key: Any = None) -> Any:
    """Layers of equal width lie in a list and are stacked for a loop; each adds to its input (He et al. 2015).

    With a key, the branches are dropped as in training.
    """
    layers = variables["layers"]
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(layers))

    def step(x: Any, now: Any) -> Any:
        layer, key_of_layer = now
        y = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
        y = y if key is None else dropped(key_of_layer, y)
        return x + y * layer["scale"][None], None

    x = jax.nn.relu(x @ variables["enter"]["kernel"] + variables["enter"]["bias"][None])
    x, _ = lax.scan(step, x, (jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers), keys))
    return x @ variables["head"]["kernel"] + variables["head"]["bias"][None]


def looped_training(variables: Any, key: Any, x: Any) -> Any:
    return looped_mlp(variables, x, key), {}


def dropped(key: Any, x: Any, rate: float = 0.2) -> Any:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def dense_shapes(inputs: int, outputs: int) -> Any:
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


_FEATURES = normal(4, 12)
_LOOPED = {
    "enter": dense_shapes(12, 32),
    "layers": [{**dense_shapes(32, 32), "scale": (32,)}] * 3,
    "head": dense_shapes(32, 10),
}
NETWORKS: tuple[Network, ...] = (
    linen("mlp", Mlp(), _FEATURES, train={"train": True}),
    nnx_network("mlp_residual", ResidualMlp(12, 24, 48, 2, nnx.Rngs(0)), _FEATURES),
    plain("mlp_looped", looped_mlp, _LOOPED, _FEATURES, train=looped_training),
)
