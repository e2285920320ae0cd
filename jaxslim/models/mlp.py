"""A fully connected network with gates (Liu et al., ICCV 2017, section 5.2: 784-500-300-10 on MNIST)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxslim.models.layers import check_count, check_images


class MLP(nn.Module):
    """Dense layers with ReLU, each followed by a gate for each neuron, and a classifier.

    A gate is a learned factor. It stands in for the scale of BatchNorm, which this network lacks: L1 pulls gates
    towards zero, and a neuron whose gate is zero can be cut. Gates start at 0.5, as scales do in network slimming.

    `apply` takes float images (n, height, width, channels), which it flattens, and `train`, which changes nothing. It
    returns logits (n, num_classes) in float32, or in `dtype` if that is more precise.
    """

    widths: Sequence[int] = (500, 300)
    """Neurons of each hidden layer."""
    num_classes: int = 10
    dtype: Any = jnp.float32
    """Precision of the computation; parameters are float32."""

    def __post_init__(self) -> None:
        for width in self.widths:
            check_count("A width in widths", width)
        check_count("num_classes", self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_images(images)
        x = images.reshape(images.shape[0], -1)
        for layer, width in enumerate(self.widths):
            x = nn.relu(
                nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=f"dense{layer}")(x)
            )
            x = x * self.param(f"gate{layer}", nn.initializers.constant(0.5), (width,)).astype(x.dtype)[None]
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


mlp = MLP
