"""The networks of the paper: sizes, and channel selection, beside what the authors' definitions and rule give."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from test_models import densenet_size, preresnet_size, size

import jaxslim
from jaxslim import models
from jaxslim.errors import InputError

PIXELS = 8
"""Of a side of the images that networks are traced with; parameters do not depend on them."""


# Sizes


def test_sizes_by_the_authors_layers():
    """Depths 56 and 22 too; the smaller forms follow the same rule."""
    assert size(models.preresnet56(), 32) == preresnet_size(6)
    assert size(models.densenet22(), 32) == densenet_size(6, 12)


def test_bottlenecks_of_densenet():
    """A layer takes c channels to 48 and these to 12; a transition halves. Each norm has two numbers a channel."""
    channels, params = 24, 27 * 24
    for block in range(3):
        for _ in range(6):
            params += 2 * channels + channels * 48 + 2 * 48 + 9 * 48 * 12
            channels += 12
        if block < 2:
            params += 2 * channels + channels * (channels // 2)
            channels //= 2
    params += 2 * channels + 10 * channels + 10
    assert size(models.densenet40_bc(), 32)[0] == params


def test_vgg_a_is_vgg_11_with_norms_in_place_of_biases():
    """The paper's table 1 has 132.9 M parameters."""
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
    dense = 512 * 49 * 4096 + 2 * 4096 + 4096 * 4096 + 2 * 4096 + 4096 * 1000 + 1000
    params, macs = size(models.vgg_a(), 224)
    assert params == convolutions + dense
    assert round(params / 1e6, 1) == 132.9
    sides = [224, 112, 56, 56, 28, 28, 14, 14]
    convolved = sum(9 * a * b * s * s for a, b, s in zip(widths, widths[1:], sides, strict=False))
    assert macs == convolved + 512 * 49 * 4096 + 4096 * 4096 + 4096 * 1000


def test_mlp_has_a_gate_for_each_neuron():
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    cost = jaxslim.count(models.mlp().apply, jax.eval_shape(models.mlp().init, jax.random.key(0), images), images)
    assert cost.macs == 784 * 500 + 500 * 300 + 300 * 10
    assert cost.params == cost.macs + 2 * (500 + 300) + 10


def test_the_later_repository_counts_its_masks_too():
    """It holds one number for each channel in front of a norm that reads a stream: 1.71 M and 1.07 M."""
    streams = [16, *[64] * 17, 64, *[128] * 17, 128, *[256] * 17, 256]
    assert round((preresnet_size(18)[0] + sum(streams)) / 1e6, 2) == 1.71
    growing = [24 + 12 * layer + 144 * block for block in range(3) for layer in range(12)]
    assert round((densenet_size(12, 12)[0] + sum(growing) + 168 + 312 + 456) / 1e6, 2) == 1.07


# Channel selection, counted by hand


class Kept(NamedTuple):
    """For each norm, which channels of what it reads it keeps: bools."""

    norms: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.norms[name]

    def number(self, name: str) -> int:
        return int(self.norms[name].sum())


def preresnet_params(depth: int, kept: Kept, whole: bool = False) -> int:
    """A stream keeps its width where a projection reads it; in the last stage, what no norm reads any more goes.

    With `whole` the outputs of all convolutions on a stream stay, as in the authors' repository.
    """
    blocks, params, inputs = (depth - 2) // 9, 27 * 16, 16
    last = [*(f"layer3_{block}/bn1" for block in range(1, blocks)), "bn"]
    final = int(np.logical_or.reduce([kept[name] for name in last]).sum())
    for stage, width in ((1, 64), (2, 128), (3, 256 if whole else final)):
        for block in range(blocks):
            a, b, c = (kept.number(f"layer{stage}_{block}/bn{layer}") for layer in (1, 2, 3))
            params += 2 * (a + b + c) + a * b + 9 * b * c + c * width
            params += inputs * width if block == 0 else 0
            inputs = width
    return params + 2 * kept.number("bn") + 11 * kept.number("bn") - kept.number("bn") + 10


def densenet_params(depth: int, bottleneck: bool, kept: Kept, whole: bool = False) -> int:
    """A layer's own channels go where no later norm of its block reads them, unless they stay `whole`."""
    layers = (depth - 4) // (6 if bottleneck else 3)
    params, before, made = 0, 3 * 9, 24
    for block in range(1, 4):
        readers = [f"dense{block}_{layer}/bn1" for layer in range(layers)]
        readers.append(f"trans{block}/bn1" if block < 3 else "bn")

        def alive(start: int, end: int, first: int, readers: list[str] = readers) -> int:
            """How many of the channels `start` to `end` any reader from number `first` on keeps."""
            if whole:
                return end - start
            found = int(np.logical_or.reduce([kept[name][start:end] for name in readers[first:]]).sum())
            return found or reject()  # of a layer without a reader one channel stays

        params += before * alive(0, made, 0)
        for layer in range(layers):
            inputs, outputs = kept.number(readers[layer]), alive(made, made + 12, layer + 1)
            made += 12
            if bottleneck:
                inner = kept.number(f"dense{block}_{layer}/bn2")
                params += 2 * inputs + inputs * inner + 2 * inner + 9 * inner * outputs
            else:
                params += 2 * inputs + 9 * inputs * outputs
        before = kept.number(readers[-1])
        params += 2 * before
        made = int(made * (0.5 if bottleneck else 1))
    return params + 10 * before + 10


class Case(NamedTuple):
    build: Callable[..., Any]
    params: Callable[..., int]


CASES = {
    "preresnet11": Case(lambda: models.PreResNet(11), functools.partial(preresnet_params, 11)),
    "preresnet20": Case(models.preresnet20, functools.partial(preresnet_params, 20)),
    "preresnet56": Case(models.preresnet56, functools.partial(preresnet_params, 56)),
    "densenet22": Case(models.densenet22, functools.partial(densenet_params, 22, False)),
    "densenet22_bc": Case(
        lambda: models.DenseNet(22, bottleneck=True, compression=0.5), functools.partial(densenet_params, 22, True)
    ),
    "resnet164": Case(models.resnet164, functools.partial(preresnet_params, 164)),
    "densenet40": Case(models.densenet40, functools.partial(densenet_params, 40, False)),
}
LARGE = ("resnet164", "densenet40")


@functools.cache
def traced(name: str) -> tuple[Any, Any, Any]:
    module, images = CASES[name].build(), jax.ShapeDtypeStruct((1, PIXELS, PIXELS, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    return module, variables, jaxslim.trace(module.apply, variables, images)


def norms(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """The scales by the name of their norm."""
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from norms(node, (*path, name))
        elif name == "scale":
            yield "/".join(path), np.asarray(node)


def alike(layer: str, scale: np.ndarray) -> np.ndarray:
    return scale


def cheapest_first(layer: str, scale: np.ndarray) -> np.ndarray:
    """Lower scales where a channel has few parameters: in ResNet those behind streams, in DenseNet the last norm, then
    the dense layers, and those of transitions last."""
    if layer.startswith("layer"):
        return scale + (0 if layer.endswith("bn1") else 1)
    return scale + (2 if layer.startswith("trans") else 0.3 if layer.startswith("dense") else 0)


def with_scales(variables: Any, seed: int, spread: float, order: Any = alike) -> Any:
    """The variables with random scales, of layers that differ by a factor of up to exp(spread)."""
    rng = np.random.default_rng(seed)

    def drawn(path: Any, leaf: Any) -> Any:
        if path[-1].key != "scale":
            return leaf
        scale = rng.uniform(0.01, 1, leaf.shape) * np.exp(spread * rng.uniform())
        return jnp.asarray(order("/".join(key.key for key in path[1:-1]), scale), jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, variables)


def check_against_the_authors_rule(
    name: str, ratio: float, seed: int, spread: float, order: Callable[[str, np.ndarray], np.ndarray] = alike
) -> int:
    """Compare with `scale > sorted(scales)[int(total * ratio)]` at each norm; the parameters left of theirs."""
    _, variables, graph = traced(name)
    variables = with_scales(variables, seed, spread, order)
    scales = dict(norms(variables["params"]))
    every = np.sort(np.concatenate(list(scales.values())))
    threshold = every[int(len(every) * ratio)]
    plan = jaxslim.plan(graph, jaxslim.bn_scales(variables), threshold=float(threshold))
    kept = Kept({layer: own > threshold for layer, own in scales.items()})
    for layer, own in scales.items():
        alone = slice(-12, None) if name.startswith("densenet") and not layer.startswith("dense") else slice(None)
        if not kept[layer][alone].any():  # of layers that one norm alone reads, a channel stays
            kept[layer][alone] |= own[alone] == own[alone].max()
    expected, small = CASES[name].params(kept), jaxslim.cut(graph, variables, plan)
    for layer, own in norms(small["params"]):
        np.testing.assert_array_equal(own, scales[layer][kept[layer]], err_msg=layer)
    left = sum(leaf.size for leaf in jax.tree.leaves(small["params"]))
    assert left == expected
    return CASES[name].params(kept, whole=True)


@pytest.mark.parametrize("name", [name for name in CASES if name not in LARGE])
@settings(max_examples=max(2, settings.default.max_examples // 10))
@given(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.7]), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.5]))
def test_what_is_kept_is_what_the_authors_rule_keeps(name, ratio, seed, spread):
    check_against_the_authors_rule(name, ratio, seed, spread)


@pytest.mark.parametrize(
    ("name", "ratio", "published"),
    [("resnet164", 0.4, 1.45), ("resnet164", 0.6, 1.12), ("densenet40", 0.4, 0.69), ("densenet40", 0.6, 0.49)],
)
def test_the_papers_sizes_lie_between_the_extremes(name, ratio, published):
    """In millions of parameters: scales alike in all layers leave few, and cheap channels first the most."""
    left = [check_against_the_authors_rule(name, ratio, 0, 0.0, order) / 1e6 for order in (alike, cheapest_first)]
    print(f"{name} without {ratio:.0%}: {left[0]:.3f} to {left[1]:.3f} M, published {published} M")
    assert left[0] < published < 1.03 * left[1]


@pytest.mark.parametrize(("name", "ratio"), [("preresnet20", 0.6), ("densenet22_bc", 0.4)])
def test_cutting_is_zeroing(name, ratio):
    """Also with statistics and biases as training leaves them, and in training mode."""
    module = CASES[name].build()
    start = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, PIXELS, PIXELS, 3)))
    variables = with_scales(start, 1, 0.5)
    rng = np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.asarray(leaf + rng.uniform(0, 0.5, leaf.shape), jnp.float32)
            if path[-1].key in ("bias", "mean", "var")
            else leaf
        ),
        variables,
    )
    images = jax.random.normal(jax.random.key(0), (4, PIXELS, PIXELS, 3))
    pruned = jaxslim.prune(module, variables, ratio, images)
    assert pruned.report.exact == 1
    masked = jaxslim.mask(pruned.graph, variables, pruned.plan)
    expected = module.apply(masked, images)
    np.testing.assert_allclose(pruned.module.apply(pruned.variables, images), expected, rtol=1e-4, atol=1e-5)
    trained = [
        run.apply(own, images, train=True, mutable=["batch_stats"])[0]
        for run, own in ((module, masked), (pruned.module, pruned.variables))
    ]
    np.testing.assert_allclose(*trained, rtol=1e-3, atol=1e-3)


# Gates


def test_gates_decide_which_neurons_go():
    """By hand: the neurons with the smallest gates of all, of both layers together."""
    module, images = models.MLP((4, 3), num_classes=2), jnp.ones((1, 2, 2, 1))
    variables = module.init(jax.random.key(0), images)
    gates = {"gate0": jnp.array([0.5, -0.01, 0.3, 0.02]), "gate1": jnp.array([-0.4, 0.001, 0.6])}
    variables = {"params": variables["params"] | gates}
    pruned = jaxslim.prune(module, variables, 3 / 7, images, scores=jaxslim.criteria.scale)
    np.testing.assert_allclose(pruned.variables["params"]["gate0"], [0.5, 0.3])
    np.testing.assert_allclose(pruned.variables["params"]["gate1"], [-0.4, 0.6])
    assert pruned.variables["params"]["dense0"]["kernel"].shape == (4, 2)
    assert pruned.variables["params"]["classifier"]["kernel"].shape == (2, 2)


def test_a_network_without_gates_has_no_such_scores():
    params = {"a": np.ones((4, 8)), "b": np.ones((8, 2))}
    graph = jaxslim.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, np.ones((1, 4)))
    with pytest.raises(InputError, match="has no vector that multiplies channels; take another criterion"):
        jaxslim.criteria.scale(graph, params)
