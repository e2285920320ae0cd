"""Networks of jaxslim from the state dicts of PyTorch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxslim import models
from jaxslim.core.paths import Path as Name
from jaxslim.core.plan import plan
from jaxslim.errors import InputError
from jaxslim.interop.pytorch import families, reading, selection
from jaxslim.slim.kinds import network
from jaxslim.slim.prune import apply_plan, traced

PIXELS = 32
"""Height and width of the images that networks are traced with; no array depends on them."""


def from_pytorch(
    source: str | Path | Mapping[str, Any], model: Any, *, num_classes: int | None = None
) -> tuple[Any, Any]:
    """Read a trained network of PyTorch, dense or already pruned, with the same outputs in evaluation.

    Known are the state dicts of pytorch-slimming (VGG), of the authors of network slimming (VGG, pre-activation ResNet,
    DenseNet, with their masks of channel selection) and of torchvision (VGG with BatchNorm, ResNet).

    Args:
      source: path of a `.safetensors` file or of one that `torch.save` wrote, which is loaded with `weights_only`; or
        the state dict itself, of tensors or arrays.
      model: name of the full network, such as `vgg19`, or a Linen module of jaxslim with its widths. The widths of a
        pruned VGG come from the arrays.
      num_classes: how many the network tells apart; by default as many as the state dict has.

    Returns:
      The Linen module and its variables. Of a network that was cut by channel selection, the module is the cut one, as
      `jaxslim.prune` returns it. Convolutions in front of BatchNorm lose their biases to the running means.

    Raises:
      InputError: there is no state dict, it would run code, or it does not fit the model; the message names the array.
    """
    label, where = (model if isinstance(model, str) else type(model).__name__), _name_of(source)
    module = (
        models.build(model, {}, num_classes=num_classes or 10, dtype=jnp.float32) if isinstance(model, str) else model
    )
    own = families.family(module, label)
    state = reading.arrays(source, where) if isinstance(source, Mapping) else reading.read(source)
    stem = state.get(f"{own.layer(module, (own.stem,))}.weight", np.zeros(0))
    images = jax.ShapeDtypeStruct((1, PIXELS, PIXELS, stem.shape[1] if stem.ndim == 4 else 3), jnp.float32)

    shapes = _shapes(module, images)
    names = families.names(own, module, [*shapes])
    layers = {path[1:-1]: own.layer(module, path[1:-1]) for path in names}
    selects = selection.masks(layers) if own.is_selected else {}
    biases = _biases(layers) if own.is_biased else {}
    _check_names(state, {*names.values()}, {*selects.values(), *biases.values()}, f"{where} does not fit {label}")

    def misfit(name: str, takes: tuple[int, ...]) -> InputError:
        held = f"{where} holds {name} of shape {state[name].shape}, and {label} takes {takes}"
        return InputError(f"{held}; give the model that the file is of.")

    found = {}
    for path, name in names.items():
        takes = families.shape_in_torch(shapes[path], path)
        if state[name].ndim != len(takes) or (
            len(shapes[path]) == 4 and state[name][0].size % math.prod(shapes[path][:2])
        ):
            raise misfit(name, takes)
        found[path] = families.to_flax(state[name], path, len(shapes[path]))
    module = _fitted(module, found, num_classes)
    shapes = _shapes(module, images)
    indices, selected = selection.held(shapes, names, selects, state, where)
    for path, name in names.items():
        held = tuple(map(len, indices[path]))
        if found[path].shape != held:
            raise misfit(name, families.shape_in_torch(held, path))
    for path, name in biases.items():
        if name in state:
            if state[name].shape != found[path].shape:
                raise misfit(name, found[path].shape)
            found[path] = found[path] - state[name]
    full = {path: selection.spread(array, shapes[path], indices[path]) for path, array in found.items()}
    variables = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(full))
    if all(full[path].shape == array.shape for path, array in found.items()):
        return module, variables

    described = network(module, variables, [images])
    graph = traced(described, [images])
    chosen = plan(graph, selection.wanted(graph, indices, selected), threshold=0.5)
    pruned = apply_plan(described, graph, chosen, variables, [images])
    return pruned.module, pruned.variables


def _name_of(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "The state dict"


def _shapes(module: Any, images: Any) -> dict[Name, tuple[int, ...]]:
    """The shape of each array of a module's variables, by its path."""
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}


def _biases(layers: Mapping[tuple[str, ...], str]) -> dict[Name, str]:
    """The name of the bias of each convolution of a VGG, by the path of the running mean behind it."""
    convolutions = {path[0]: name for path, name in layers.items() if path[0].startswith("conv")}
    return {("batch_stats", f"bn{layer[4:]}", "mean"): f"{name}.bias" for layer, name in convolutions.items()}


def _check_names(state: Mapping[str, Any], needed: set[str], known: set[str], problem: str) -> None:
    """Refuse a state dict that lacks what is needed, or holds what is neither needed nor known."""
    parts = []
    for what, found in (("holds", state.keys() - needed - known), ("lacks", needed - state.keys())):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            parts.append(f"it {what} {min(found)}{more}")
    if parts:
        raise InputError(f"{problem}: {', and '.join(parts)}; give the model that the file is of.")


def _fitted(module: Any, found: Mapping[Name, np.ndarray], num_classes: int | None) -> Any:
    """The module with the widths and the number of classes of the arrays, where these are free."""
    if num_classes is None:
        module = module.clone(num_classes=len(found["params", "classifier", "bias"]))
    return module.resized(traverse_util.unflatten_dict(dict(found))) if hasattr(module, "resized") else module
