"""The data and the network that a configuration means."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxslim import data, models
from jaxslim.core.graph import ChannelGraph
from jaxslim.errors import InputError, first_line
from jaxslim.slim.criteria.scales import bn_scale_mask, scale_mask
from jaxslim.slim.kinds import network
from jaxslim.slim.kinds.adapted import Adapted
from jaxslim.slim.prune import traced
from jaxslim.storage import checkpoint
from jaxslim.storage.checkpoint import Loaded
from jaxslim.training import own
from jaxslim.training.config import TrainConfig, from_json

FITTING = "change image_size, channels or model_args"


def load(config: TrainConfig) -> data.Dataset:
    """The images of a configuration."""
    fields = ("data_dir", "image_size", "channels", "fit", "stream", "workers", "skip_broken")
    return data.load(config.dataset, **{name: getattr(config, name) for name in fields})


def trained(path: str | Path) -> Loaded:
    """A checkpoint with the code of its network, to train on or to cut."""
    loaded = checkpoint.load(path)
    own.check_code(loaded, path)
    return loaded


def load_trained(path: str | Path, code: bool = True, **changes: Any) -> tuple[Loaded, TrainConfig, data.Dataset]:
    """A checkpoint, its configuration with the `changes` that are not None, and the images of the configuration.

    Without `code`, a program may stand for a network of the user's own code.
    """
    loaded = trained(path) if code else checkpoint.load(path)
    if not isinstance(fields := loaded.meta.get("config"), dict):
        raise InputError(f"{path} names no training configuration; give a checkpoint that jaxslim train wrote.")
    given = {name: value for name, value in changes.items() if value is not None}
    config = dataclasses.replace(from_json(fields, path), **given)
    images = load(config)
    check_fit(loaded.module, loaded.variables, images, path)
    return loaded, config, images


def build(config: TrainConfig, source: Loaded | None, images: data.Dataset) -> tuple[Any, Any]:
    """The Linen module and variables to start from: those of `source`, or new ones by the seed."""
    image = jnp.zeros((1, *images.train_images.shape[1:]))
    if source is not None:
        module, variables = in_precision(source.module, config.dtype), source.variables
    else:
        module = new(config, len(images.class_names))
        with _applied(config.model, image.shape[1:], FITTING):
            variables = jax.jit(module.init)(jax.random.key(config.seed), image)
        if own.is_own(config.model):
            variables = jax.tree.map(_precise, variables)
    check_fit(module, variables, images, config.init_from or config.model)
    if isinstance(module, Adapted) and source is None:
        _check_outputs(module, variables, image, config)
    return module, variables


def _precise(leaf: Any) -> Any:
    """At least float32, since training adds small steps to large values."""
    return leaf.astype(jnp.float32) if leaf.dtype in (jnp.bfloat16, jnp.float16) else leaf


def _check_outputs(module: Adapted, variables: Any, image: jax.Array, config: TrainConfig) -> None:
    """Refuse code of the user's own that does something else in training, or gives probabilities."""
    images = jax.random.normal(jax.random.key(config.seed), (4, *image.shape[1:]))
    expected, out = jax.jit(module.apply)(variables, images), None
    with _applied(f"{config.model} in training", image.shape[1:], "let it do in training what it does in evaluation"):
        stats = [name for name in variables if name != "params"]
        train = functools.partial(module.apply, train=True, mutable=stats, rngs={"dropout": jax.random.key(0)})
        out, _ = jax.eval_shape(train, variables, images)
    if getattr(out, "shape", None) != expected.shape:
        found = getattr(out, "shape", type(out).__name__)
        problem = f"{config.model} gives {found} in training and logits {expected.shape} in evaluation"
        raise InputError(f"{problem}; training takes the same logits, without outputs of other heads.")
    if bool((expected >= 0).all()) and np.allclose(expected.sum(-1), 1, atol=1e-3):
        raise InputError(f"{config.model} gives probabilities, which sum to 1; return logits, without a softmax.")


def new(config: TrainConfig, classes: int) -> Any:
    """The module that a configuration names, without variables."""
    return models.build(config.model, dict(config.model_args), num_classes=classes, dtype=jnp.dtype(config.dtype))


class Teacher(NamedTuple):
    """A trained network whose outputs another one learns."""

    logits: Callable[[Any, Any], jax.Array]
    """`logits(variables, images)` -> (n, classes), in evaluation, of uint8 images (n, height, width, channels)."""
    variables: Any


def teacher(config: TrainConfig, images: data.Dataset) -> Teacher | None:
    """The network of `distill_from`; None if the configuration names none, or gives its loss no weight.

    Raises:
      InputError: the checkpoint cannot be loaded, or its network does not fit the images.
    """
    if not config.distill_from:
        return None
    module, variables, meta = checkpoint.load(config.distill_from)
    check_fit(module, variables, images, config.distill_from)
    trained = from_json(fields, config.distill_from) if isinstance(fields := meta.get("config"), dict) else config
    module = in_precision(module, config.dtype)

    def logits(variables: Any, pixels: jax.Array) -> jax.Array:
        out: jax.Array = module.apply(variables, data.normalise(pixels, trained.mean, trained.std))
        return out

    return Teacher(logits, variables) if config.distill_weight else None


def in_precision(module: Any, dtype: Any) -> Any:
    """A module, cut or not, that computes in a dtype, if it can."""
    has_dtype = hasattr(getattr(module, "whole", module), "dtype")
    return module.clone(dtype=jnp.dtype(dtype)) if has_dtype else module


def pulled(
    config: TrainConfig, module: Any, variables: Any, image_shape: tuple[int, ...]
) -> tuple[Any, ChannelGraph | None]:
    """What the pulls of a configuration need to know of a Linen module.

    Returns:
      Bools with the structure of `params`, true for the scales of BatchNorm; for L1 on a network without BatchNorm,
      true for all scale vectors that the trace finds. And the graph, or None if no pull needs it.

    Raises:
      InputError: L1 is asked for, and the network has no scale vectors.
    """
    mask = bn_scale_mask(variables)
    normalised = any(jax.tree.leaves(mask))
    if not config.group_lasso and (normalised or not config.l1):
        return mask, None
    images = (jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),)
    graph = traced(network(module, variables, images), images)
    if config.l1 and not normalised:
        if not graph.scales:
            raise InputError(f"{models.kind(module)} has no scales that L1 could pull on; train it with group_lasso.")
        mask = scale_mask(graph, variables["params"])
    return mask, graph


def check_fit(module: Any, variables: Any, images: data.Dataset, name: Any) -> None:
    """Refuse a data set of images that the network `name` cannot see, or with other classes than it tells apart."""
    if (classes := number_of_classes(module, variables, images.test_images.shape[1:], name)) != len(images.class_names):
        there, is_code = len(images.class_names), own.is_own(str(name))
        fix = "let its builder take num_classes" if is_code else "give the data set that it was trained on"
        raise InputError(f"{name} tells {classes} classes apart and {images.name} has {there}; {fix}.")


def number_of_classes(
    module: Any, variables: Any, image_shape: Sequence[int], name: Any, dtype: DTypeLike = jnp.float32
) -> int:
    """How many classes the network `name` tells apart; refuse one that cannot see such images, or is no classifier."""
    shape = tuple(image_shape)
    trained = "give the image_size and channels that it was trained with"
    with _applied(name, shape, FITTING if own.is_own(str(name)) else trained):
        logits = jax.eval_shape(module.apply, variables, jax.ShapeDtypeStruct((1, *shape), dtype))
    if len(getattr(logits, "shape", ())) != 2:
        found = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"{name} gives {found} for an image, no logits (images, classes); give a classifier.")
    return int(logits.shape[-1])


@contextlib.contextmanager
def _applied(name: Any, shape: tuple[int, ...], fix: str) -> Iterator[None]:
    """Say in one sentence what the module, Flax or JAX finds wrong with images of `shape`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"{name} cannot be applied to images of shape {shape} ({reason}); {fix}.") from error
