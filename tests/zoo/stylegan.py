"""A generator in plain JAX after Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN"."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import Network

LATENT, STYLE, DEPTH = 8, 16, 2
WIDTHS = (16, 12, 8)
NHWC = ("NHWC", "HWIO", "NHWC")
Modulated = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A dense layer whose learning rate is equalised: weights of variance one are scaled when they are used."""
    weight = layer["weight"] / math.sqrt(layer["weight"].shape[0])
    return x @ weight + layer["bias"][None, :]


def mapping(layers: list[dict[str, jax.Array]], z: jax.Array) -> jax.Array:
    """From latents to styles, (batch, LATENT) -> (batch, STYLE)."""
    x = z * lax.rsqrt(jnp.mean(jnp.square(z), axis=1, keepdims=True) + 1e-8)
    for layer in layers:
        x = jax.nn.leaky_relu(dense(layer, x), 0.2)
    return x


def kernels(weight: jax.Array, styles: jax.Array, demodulate: bool) -> jax.Array:
    """One kernel for each image: inputs scaled by its style, each output scaled back to norm one (section 2.2)."""
    weight = weight[None] * styles[:, None, None, :, None] / math.sqrt(weight.shape[2])
    if demodulate:
        weight = weight * lax.rsqrt(jnp.square(weight).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
    return weight


def mapped(x: jax.Array, weight: jax.Array, styles: jax.Array, demodulate: bool = True) -> jax.Array:
    """The modulated convolution, mapped over images."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=NHWC)[0]

    return jax.vmap(convolve)(x, kernels(weight, styles, demodulate))


def grouped(x: jax.Array, weight: jax.Array, styles: jax.Array, demodulate: bool = True) -> jax.Array:
    """The same as one convolution whose groups are the images, as in the published code."""
    batch, height, width, inputs = x.shape
    outputs = weight.shape[-1]
    kernel = jnp.moveaxis(kernels(weight, styles, demodulate), 0, 3)
    kernel = kernel.reshape(*weight.shape[:3], batch * outputs)
    x = jnp.moveaxis(x, 0, 2).reshape(1, height, width, batch * inputs)
    x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=batch)
    return jnp.moveaxis(x.reshape(height, width, batch, outputs), 2, 0)


def scaled_inputs(x: jax.Array, weight: jax.Array, styles: jax.Array, demodulate: bool = True) -> jax.Array:
    """The same with the styles on the inputs and the norms on the outputs: one kernel for all images."""
    weight = weight / math.sqrt(weight.shape[2])
    x = x * styles[:, None, None, :]
    x = lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=NHWC)
    if demodulate:
        norms = jnp.square(styles) @ jnp.square(weight).sum(axis=(0, 1))
        x = x * lax.rsqrt(norms + 1e-8)[:, None, None, :]
    return x


def doubled(x: jax.Array) -> jax.Array:
    """Twice the resolution."""
    batch, height, width, features = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, features), "bilinear")


def styled(conv: Modulated, layer: Any, x: jax.Array, style: jax.Array, noise: jax.Array) -> jax.Array:
    """A modulated convolution, noise for all channels, bias, leaky ReLU (figure 2c)."""
    x = conv(x, layer["weight"], dense(layer["style"], style))
    x = x + layer["strength"] * noise + layer["bias"][None, None, None, :]
    return jax.nn.leaky_relu(x, 0.2) * math.sqrt(2)


def synthesis(conv: Any, params: Any, noises: list[jax.Array], style: jax.Array) -> jax.Array:
    """From styles to images: each resolution adds its colours to the image of the one below, doubled (figure 7b)."""
    first = params["constant"]
    x = jnp.broadcast_to(first[None], (style.shape[0], *first.shape))
    image: Any = None
    for number, (block, noise) in enumerate(zip(params["blocks"], noises, strict=True)):
        if number > 0:
            x, image = doubled(x), doubled(image)
        x = styled(conv, block["conv"], x, style, noise)
        colours = block["colours"]
        added = conv(x, colours["weight"], dense(colours["style"], style), demodulate=False)
        added = added + colours["bias"][None, None, None, :]
        image = added if image is None else image + added
    return image


def generator(conv: Any) -> tuple[Callable[..., jax.Array], Callable[..., Any]]:
    """Evaluation with kept noise and truncated styles; training with new noise and a moving mean of the styles."""

    def apply(variables: Any, z: jax.Array) -> jax.Array:
        params, buffers = variables["params"], variables["buffers"]
        mean = buffers["mean"][None, :]
        style = mean + 0.7 * (mapping(params["mapping"], z) - mean)
        return synthesis(conv, params["synthesis"], buffers["noises"], style)

    def train(variables: Any, key: jax.Array, z: jax.Array) -> Any:
        params, buffers = variables["params"], variables["buffers"]
        style = mapping(params["mapping"], z)
        mean = 0.995 * buffers["mean"] + 0.005 * style.mean(axis=0)
        keys = jax.random.split(key, len(buffers["noises"]))
        shapes = [(z.shape[0], *noise.shape[1:]) for noise in buffers["noises"]]
        noises = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
        return synthesis(conv, params["synthesis"], noises, style), {"buffers": {"mean": mean}}

    return apply, train


def random_variables() -> Any:
    """Weights of variance one, as equalised learning rates want them, and biases of styles about one."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> jax.Array:
        return jnp.asarray(mean + deviation * rng.normal(size=shape), jnp.float32)

    def affine(inputs: int, outputs: int, bias: float) -> dict[str, jax.Array]:
        return {"weight": normal(inputs, outputs), "bias": normal(outputs, mean=bias, deviation=0.2)}

    def modulated(size: int, inputs: int, outputs: int) -> dict[str, Any]:
        weight, bias = normal(size, size, inputs, outputs), normal(outputs, deviation=0.2)
        return {"weight": weight, "bias": bias, "style": affine(STYLE, inputs, 1.0)}

    blocks = [
        {
            "conv": modulated(3, inputs, outputs) | {"strength": normal(1, 1, 1, 1, deviation=0.2)},
            "colours": modulated(1, outputs, 3),
        }
        for inputs, outputs in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
    ]
    sides = [4 * 2**number for number in range(len(WIDTHS))]
    return {
        "params": {
            "mapping": [affine(LATENT if number == 0 else STYLE, STYLE, 0.0) for number in range(DEPTH)],
            "synthesis": {"constant": normal(4, 4, WIDTHS[0]), "blocks": blocks},
        },
        "buffers": {"mean": normal(STYLE, deviation=0.2), "noises": [normal(1, side, side, 1) for side in sides]},
    }


def network(name: str, conv: Any) -> Network:
    """The generator with one form of the modulated convolution."""
    apply, train = generator(conv)
    latents = jnp.asarray(np.random.default_rng(1).normal(size=(2, LATENT)), jnp.float32)
    return Network(name=name, model=apply, variables=random_variables(), inputs=(latents,), apply=apply, train=train)


NETWORKS: tuple[Network, ...] = (
    network("stylegan_mapped", mapped),
    network("stylegan_grouped", grouped),
    network("stylegan_scaled", scaled_inputs),
)
