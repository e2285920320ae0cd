"""VGG against PyTorch, its paper and its reference; counts of the other networks; models by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_step
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

import jaxslim
from jaxslim import models
from jaxslim.errors import InputError
from jaxslim.models.vgg import VGG, WIDTHS, max_pool
from jaxslim.models.vgg_imagenet import adaptive_pool

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
every_case = pytest.mark.parametrize("name", reference_step.CASES)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)

# Logits at inference


def logits(name: str, dtype: str) -> np.ndarray:
    """From random running statistics."""
    case = reference_step.CASES[name]
    with jax.enable_x64(dtype == "float64"):
        images = reference_step.normalised(reference_step.inputs(case).images).astype(dtype)
        module = VGG(case.widths, reference_step.CLASSES, dtype=dtype)
        return np.asarray(jax.jit(module.apply)(reference_step.variables(case, dtype), images))


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE[dtype] * np.abs(expected).max()


@every_case
@every_dtype
def test_logits_equal_reference_values(name, dtype):
    assert_close(logits(name, dtype), np.load(reference_step.FILE)[f"{name}/logits"], dtype)


@every_case
@every_dtype
def test_logits_equal_pytorch(name, dtype):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert_close(logits(name, dtype), reference_step.forward(reference_step.CASES[name], dtype), dtype)


# Pooling


def distinct(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Values without ties."""
    values = np.random.default_rng(seed).permutation(2 * height * width * 3)
    return values.reshape(2, height, width, 3).astype(np.float32) - values.size / 3


def window_maximum(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (2, 2), (2, 2))


@jax.jit
def pooled(x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """Values, and gradients of the sum of (value + 1)**2, by jaxslim and by Flax."""

    def squares(pool, x):
        y = pool(x)
        return jnp.sum((y + 1) ** 2), y

    found = [jax.grad(squares, argnums=1, has_aux=True)(pool, x) for pool in (max_pool, window_maximum)]
    gradients, values = zip(*found, strict=True)
    return list(values), list(gradients)


@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 1000))
def test_max_pool_equals_flax(height, width, seed):
    """Even and odd sizes, values and gradients, where no window holds ties."""
    for own, flax in pooled(distinct(height, width, seed)):
        np.testing.assert_array_equal(own, flax)


@given(st.integers(0, 1000))
def test_max_pool_shares_the_gradient_among_ties(seed):
    """Each window passes on the whole gradient that it receives, to its maxima only."""
    x = np.random.default_rng(seed).integers(0, 2, (2, 4, 4, 3)).astype(np.float32)
    (values, _), (own, flax) = pooled(x)
    summed = [np.reshape(gradient, (2, 2, 2, 2, 2, 3)).sum((2, 4)) for gradient in (own, flax)]
    np.testing.assert_allclose(*summed, rtol=1e-6)
    assert np.all((own == 0) | (x == np.asarray(values).repeat(2, axis=1).repeat(2, axis=2)))


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (2, 3)])
def test_max_pool_equals_pytorch(height, width):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = distinct(height, width)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    value = torch.nn.functional.max_pool2d(theirs, 2)
    value.square().sum().backward()
    np.testing.assert_array_equal(max_pool(x), value.detach().numpy().transpose(0, 2, 3, 1))
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x) ** 2))(x)
    np.testing.assert_array_equal(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1))


# Initialisation


@pytest.fixture(scope="module")
def initial():
    module = VGG((64, "M", 128, 96), num_classes=100)
    return jax.device_get(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3))))


def assert_normal(values: jax.Array, deviation: float) -> None:
    """Mean 0 and `deviation`, both to five standard errors, and tails as long as a normal distribution's."""
    scaled = np.asarray(values).ravel() / deviation
    assert abs(scaled.mean()) < 5 / scaled.size**0.5
    assert abs(scaled.std() - 1) < 5 / (2 * scaled.size) ** 0.5
    assert np.mean(np.abs(scaled) > 2.5) == pytest.approx(0.0124, rel=0.5)


def test_initial_parameters(initial):
    for layer, width in enumerate((64, 128, 96)):
        assert_normal(initial["params"][f"conv{layer}"]["kernel"], (2 / (9 * width)) ** 0.5)
        norm = initial["params"][f"bn{layer}"], initial["batch_stats"][f"bn{layer}"]
        values = {"scale": 0.5, "bias": 0, "mean": 0, "var": 1}
        assert {name: np.unique(array).tolist() for part in norm for name, array in part.items()} == {
            name: [value] for name, value in values.items()
        }
    assert_normal(initial["params"]["classifier"]["kernel"], 0.01)
    assert not initial["params"]["classifier"]["bias"].any()
    assert all("bias" not in initial["params"][f"conv{layer}"] for layer in range(3))


# Widths


@pytest.mark.parametrize(
    ("name", "convolutions", "expected"),
    [("vgg11", 8, 9_228_362), ("vgg13", 10, 9_413_066), ("vgg16", 13, 14_724_042), ("vgg19", 16, 20_035_018)],
)
def test_variants(name, convolutions, expected):
    """The convolutions are the paper's; its three dense layers are one, as in the reference for CIFAR."""
    module = getattr(models, name)()
    assert module.widths == WIDTHS[name]
    assert module.widths.count("M") == 4
    assert len(module.widths) - 4 == convolutions
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    found, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert found.shape == (2, 10)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


@pytest.mark.parametrize("widths", [(8, 0), (8, -1), (8, 2.5), (8, "m"), (True,), (2**40,), "64 M"])
def test_widths_that_are_none(widths):
    with pytest.raises(
        InputError, match=r'^widths hold .*; each must be a positive number of channels or "M" for pool'
    ):
        VGG(widths)


@pytest.mark.parametrize("classes", [0, True, 2.0, ["a"]])
def test_numbers_of_classes_that_are_none(classes):
    with pytest.raises(InputError, match=r"^num_classes is .*; it must be an integer of at least 1"):
        VGG((8,), num_classes=classes)


def test_poolings_that_leave_no_pixel():
    def logits(*shape):
        return jax.eval_shape(VGG((4, "M", "M", "M")).init_with_output, jax.random.key(0), jnp.ones(shape))[0]

    assert logits(1, 8, 8, 3).shape == (1, 10)
    with pytest.raises(
        InputError, match="3 poolings shrink images of 32x7 pixels to nothing; use larger images, or wi"
    ):
        logits(1, 32, 7, 3)
    with pytest.raises(
        InputError, match=r"images have shape \(8, 8, 3\); pass an array \(n, height, width, channels\)"
    ):
        logits(8, 8, 3)


def test_architecture_is_the_list_of_widths():
    assert VGG((64, np.int64(3), "M")).architecture() == "[64, 3, 'M']"
    assert models.architecture(VGG((64, "M"))) == "[64, 'M']"
    assert models.architecture(nn.Dense(2)) is None


def test_resized(initial):
    """The narrower module takes the narrower parameters and keeps all but the widths of convolutions."""
    kept = {"conv0": 5, "bn0": 5, "conv1": 1, "bn1": 1, "conv2": 96, "bn2": 96}

    def cut(path, leaf):
        layer = path[1].key
        if layer == "classifier":
            return leaf
        before = kept.get(f"conv{int(layer[-1]) - 1}", 3)
        return leaf[:, :, :before, : kept[layer]] if leaf.ndim == 4 else leaf[: kept[layer]]

    module = VGG((64, "M", 128, 96), num_classes=100, dtype=jnp.bfloat16)
    narrow = jax.tree_util.tree_map_with_path(cut, initial)
    resized = module.resized(narrow)
    assert resized == VGG((5, "M", 1, 96), num_classes=100, dtype=jnp.bfloat16)
    assert jax.eval_shape(resized.apply, narrow, jnp.zeros((2, 4, 4, 3))).shape == (2, 100)
    assert module.resized(initial) == module


# The other networks


def size(module: Any, pixels: int) -> tuple[int, int]:
    """Parameters and MACs."""
    images = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
    cost = jaxslim.count(module.apply, jax.eval_shape(module.init, jax.random.key(0), images), images)
    return cost.params, cost.macs


@pytest.mark.parametrize(
    ("name", "params", "billions"),
    [
        ("resnet18", 11_689_512, 1.814),
        ("resnet34", 21_797_672, 3.664),
        ("resnet50", 25_557_032, 4.089),
        ("resnet101", 44_549_160, 7.801),
        ("resnet152", 60_192_808, 11.514),
        ("vgg11_bn", 132_868_840 - 2752, 7.609),
        ("vgg13_bn", 133_053_736 - 2944, 11.308),
        ("vgg16_bn", 138_365_992 - 4224, 15.47),
        ("vgg19_bn", 143_678_248 - 5504, 19.632),
    ],
)
def test_sizes_are_those_that_torchvision_publishes(name, params, billions):
    """Its VGG has biases before BatchNorm too, one a channel."""
    found, macs = size(getattr(models, name)(), 224)
    assert found == params
    assert round(macs / 1e9, 3) == billions


def preresnet_size(blocks: int) -> tuple[int, int]:
    """Parameters and MACs of the authors' definition, layer by layer, on images of 32x32."""
    params, macs, inputs, pixels = 27 * 16, 27 * 16 * 1024, 16, 1024
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            after = 1024 // 4**stage
            projection = inputs * 4 * width if block == 0 else 0
            params += 2 * (inputs + 2 * width) + inputs * width + 13 * width**2 + projection
            macs += inputs * width * pixels + 13 * width**2 * after + projection * after
            inputs, pixels = 4 * width, after
    return params + 2 * inputs + 10 * inputs + 10, macs + 10 * inputs


def densenet_size(layers: int, growth: int) -> tuple[int, int]:
    """The same of a DenseNet without bottlenecks."""
    channels = 2 * growth
    params, macs = 27 * channels, 27 * channels * 1024
    for block, pixels in enumerate((1024, 256, 64)):
        for _ in range(layers):
            params += 2 * channels + 9 * channels * growth
            macs += 9 * channels * growth * pixels
            channels += growth
        if block < 2:
            params, macs = params + 2 * channels + channels**2, macs + channels**2 * pixels
    return params + 2 * channels + 10 * channels + 10, macs + 10 * channels


def test_sizes_are_those_of_the_authors_definitions():
    """The paper, table 1, gives 1.70 M parameters for ResNet-164 and 1.02 M for DenseNet-40."""
    assert size(models.resnet164(), 32) == preresnet_size(18) == (1_703_258, 247_646_720)
    assert size(models.preresnet20(), 32) == preresnet_size(2)
    assert size(models.densenet40(), 32) == densenet_size(12, 12) == (1_059_298, 282_917_328)


def test_size_of_densenet_bc():
    """Huang et al. 2017, table 2: 0.8 M parameters for depth 100 and growth 12."""
    params, _ = size(models.DenseNet(depth=100, bottleneck=True, compression=0.5), 32)
    assert params == 769_162


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (3, 5), (7, 9), (14, 14), (15, 20)],
)
def test_adaptive_pool_equals_means_of_windows(height, width):
    x = distinct(height, width)
    rows, columns = ([(i * n // 7, -(-(i + 1) * n // 7)) for i in range(7)] for n in (height, width))
    expected = [[x[:, top:end, left:right].mean((1, 2)) for left, right in columns] for top, end in rows]
    np.testing.assert_allclose(adaptive_pool(jnp.asarray(x)), np.moveaxis(expected, 2, 0), rtol=1e-5, atol=1e-4)


SMALL = {
    "preresnet": models.PreResNet(11, (2, 3, 4), num_classes=3),
    "densenet_bc": models.DenseNet(10, 4, bottleneck=True, compression=0.5, num_classes=3),
    "resnet": models.ResNet((1, 1), bottleneck=True, width=4, num_classes=3),
    "vgg_imagenet": models.ImageNetVGG((4, "M", 6), (8, 5), num_classes=3),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_forms_train_and_can_be_cut(name):
    """The check of `prune` compares the outputs."""
    module, images = SMALL[name], jax.random.normal(jax.random.key(0), (3, 14, 14, 3))
    variables = jax.jit(module.init)(jax.random.key(0), images)
    training = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
    logits, new = jax.eval_shape(lambda variables: module.apply(variables, images, **training), variables)
    assert logits.shape == (3, 3)
    assert jax.tree.map(np.shape, new["batch_stats"]) == jax.tree.map(np.shape, variables["batch_stats"])
    small = jaxslim.prune(module, variables, 0.3, images, scores=jaxslim.criteria.random)
    assert small.report.exact == 1
    assert small.report.params[1] < 0.9 * small.report.params[0]
    assert (type(small.module) is type(module)) == hasattr(module, "resized")


def test_channel_selection_cuts_behind_norms_alone():
    """A norm of a pre-activation network can lose channels that its stream keeps for others."""
    module, images = SMALL["preresnet"], jnp.ones((1, 8, 8, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    graph = jaxslim.trace(module.apply, variables, images)
    scale = graph.find(("params", "layer2_0", "bn1", "scale"))
    stream = graph.find(("params", "layer1_0", "conv3", "kernel"))
    assert scale is not None
    assert stream is not None
    assert not np.intersect1d(graph.units[scale][0], graph.units[stream][3]).size


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.PreResNet(depth=21), r"^depth is 21; it must be 9n \+ 2, for example 20, 56 or 164\.$"),
        (lambda: models.PreResNet(depth=2), "^depth is 2; it must be"),
        (lambda: models.PreResNet(widths=(16, 0, 3)), "^A width in widths is 0; it must be an integer of at least 1"),
        (lambda: models.DenseNet(depth=41), r"^depth is 41; it must be 3n \+ 4, for example 40\.$"),
        (lambda: models.DenseNet(depth=13, bottleneck=True), r"^depth is 13; it must be 6n \+ 4 with bottlenecks"),
        (lambda: models.DenseNet(compression=1.5), "^compression is 1.5; it must be a share in"),
        (lambda: models.DenseNet(growth=0), "^growth is 0; it must be an integer of at least 1"),
        (lambda: models.ResNet(blocks=()), r"^blocks is \(\); give the number of blocks of each stage"),
        (lambda: models.ResNet(blocks=(2, 0)), "^A stage's number in blocks is 0; it must be an integer of at least 1"),
        (lambda: models.ImageNetVGG((4, -1)), "^widths hold -1; each must be a positive number of channels"),
        (lambda: models.ImageNetVGG((4,), hidden=(0,)), "^A width in hidden is 0; it must be an integer of at least 1"),
        (lambda: models.resnet18(num_classes=0), "^num_classes is 0; it must be an integer of at least 1"),
    ],
)
def test_fields_that_cannot_be(build, message):
    with pytest.raises(InputError, match=message):
        build()


# Models by name


class Linear(nn.Module):
    num_classes: int
    dtype: Any = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, images, train=False):
        flat = images.reshape(len(images), -1)
        return nn.Dense(self.num_classes, self.bias, self.dtype)(flat)


@pytest.mark.parametrize("name", WIDTHS)
def test_named_models_are_the_functions_of_their_names(name):
    built = models.build(name, {}, num_classes=100, dtype=jnp.bfloat16)
    assert built == VGG(WIDTHS[name], 100, jnp.bfloat16) == getattr(models, name)(num_classes=100, dtype=jnp.bfloat16)


def test_arguments_reach_the_model():
    for name in ("vgg", "vgg19"):
        built = models.build(name, {"widths": (4, "M")}, num_classes=3, dtype=jnp.float32)
        assert built == VGG((4, "M"), 3, jnp.float32)
    built = models.build("vgg_a", {"widths": (4, "M"), "hidden": (5,)}, num_classes=3, dtype=jnp.float32)
    assert (built.widths, built.hidden, built.dense_norm) == ((4, "M"), (5,), True)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg7", {}, "There is no model 'vgg7'; the models are densenet, densenet22, .*, vgg_a, vgg_imagenet."),
        ("vgg", {}, "model vgg does not take the model_args {}: .*missing 1 required positional argument: 'widths'"),
        ("vgg", {"widths": 64}, "model vgg does not take the model_args {'widths': 64}: 'int' object is not iterable"),
        (
            "vgg11",
            {"depth": 3},
            "model vgg11 does not take the model_args {'depth': 3}: .*unexpected keyword arg.* 'depth'",
        ),
        ("vgg", {"widths": (4, 0)}, 'widths hold 0; each must be a positive number of channels or "M" for pooling'),
    ],
)
def test_models_that_cannot_be_built(name, arguments, message):
    with pytest.raises(InputError, match=message):
        models.build(name, arguments, num_classes=2, dtype=jnp.float32)


def test_a_model_of_ones_own(monkeypatch):
    """A class also gives checkpoints their module; any other function only builds one."""
    monkeypatch.setitem(models.MODELS, "linear", Linear)
    monkeypatch.setitem(models.MODELS, "unbiased", lambda **arguments: Linear(bias=False, **arguments))
    assert models.build("linear", {"bias": False}, num_classes=3, dtype=jnp.float32) == Linear(3, jnp.float32, False)
    assert models.build("unbiased", {}, num_classes=3, dtype=jnp.float32) == Linear(3, jnp.float32, False)
    assert models.module_class(f"{__name__}.Linear") is Linear
    assert models.module_class("jaxslim.models.vgg.VGG") is VGG
    assert models.module_class("jaxslim.models.preresnet.PreResNet") is models.PreResNet
    assert models.module_class("jaxslim.models.vgg.vgg19") is None
