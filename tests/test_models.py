"""VGG against PyTorch, its paper and its reference; models by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_step
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from jaxslim import models
from jaxslim.errors import InputError
from jaxslim.models.vgg import VGG, WIDTHS, max_pool

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


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg7", {}, "There is no model 'vgg7'; the models are vgg, vgg11, vgg13, vgg16, vgg19."),
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
    assert models.module_class("jaxslim.models.vgg.vgg19") is None
