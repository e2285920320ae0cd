"""Networks of jaxslim from the state dicts of PyTorch."""

from collections.abc import Iterator, Mapping
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
from jaxslim.interop.pytorch import reading
from jaxslim.interop.pytorch.families import Family, family, shape_in_torch, to_flax
from jaxslim.interop.pytorch.selection import ADVICE, Held, held, masks, spread, wanted
from jaxslim.slim.kinds import network
from jaxslim.slim.prune import apply_plan, traced

PIXELS = 32
"""Height and width of the images that networks are traced with; no array depends on them."""


def from_pytorch(
    source: str | Path | Mapping[str, Any], model: str, *, num_classes: int | None = None, **arguments: Any
) -> tuple[Any, Any]:
    """Read a trained network of PyTorch, dense or already pruned, that has the same outputs in evaluation.

    Known are the state dicts of pytorch-slimming (VGG), of the authors of network slimming (VGG, pre-activation ResNet,
    DenseNet, with their masks of channel selection) and of torchvision (VGG with BatchNorm, ResNet). Convolutions in
    front of BatchNorm lose their biases to the running means.

    Args:
      source: path of a `.safetensors` file, or of one that `torch.save` wrote, which is loaded with `weights_only`; or
        the state dict itself, of tensors or arrays.
      model: name of the full network, for example `vgg19`. The widths of a pruned VGG come from the arrays.
      num_classes: how many the network tells apart; by default as many as the state dict has.
      **arguments: of the network, for example `depth=56` for `preresnet`.

    Returns:
      The Linen module, whose `apply` takes normalised images (n, height, width, channels), and its variables. Of a
      network that was cut by channel selection (Liu et al., ICCV 2017, section 4.5), the module is the cut one, as
      `prune` returns it.

    Raises:
      InputError: there is no state dict, it would run code, or it does not fit the model; the message names the array.
    """
    module = models.build(model, arguments, num_classes=num_classes or 10, dtype=jnp.float32)
    own = family(module, model)
    where = str(source) if isinstance(source, str | Path) else "The state dict"
    state = reading.arrays(source, where) if isinstance(source, Mapping) else reading.read(source)
    file = _File(own, module, model, where, state)
    found = file.in_flax()
    if num_classes is None:
        module = module.clone(num_classes=len(found["params", "classifier", "bias"]))
    if hasattr(module, "resized"):
        module = module.resized(traverse_util.unflatten_dict(found))
    indices, selected = file.fitted(module, found)
    shapes = file.shapes(module)
    full = {path: jnp.asarray(spread(array, shapes[path], indices[path])) for path, array in found.items()}
    variables = traverse_util.unflatten_dict(full)
    if all(full[path].shape == array.shape for path, array in found.items()):
        return module, variables
    described = network(module, variables, [file.images])
    graph = traced(described, [file.images])
    chosen = plan(graph, wanted(graph, indices, selected), threshold=0.5)
    pruned = apply_plan(described, graph, chosen, variables, [file.images])
    return pruned.module, pruned.variables


class _File:
    """A state dict, and what its arrays are in a network of jaxslim."""

    def __init__(self, own: Family, module: Any, model: str, where: str, state: dict[str, np.ndarray]) -> None:
        self.state, self._title, self._model = state, where, model
        stem = state.get(f"{own.layer(module, (own.stem,))}.weight", np.zeros(0))
        channels = stem.shape[1] if stem.ndim == 4 else 3
        self.images = jax.ShapeDtypeStruct((1, PIXELS, PIXELS, channels), jnp.float32)
        self._first = self.shapes(module)
        self.names = {path: own.name(module, path) for path in self._first}
        layers = {path[1:-1]: own.layer(module, path[1:-1]) for path in self._first}
        self._masks = masks(layers) if own.is_selected else {}
        self._biases = dict(_biases(layers)) if own.is_biased else {}
        known = {*self._masks.values(), *self._biases.values()}
        _check_names(state, {*self.names.values()}, known, f"{where} does not fit {model}")

    def shapes(self, module: Any) -> dict[Name, tuple[int, ...]]:
        """The shape of each array of a module's variables, by its path."""
        variables = jax.eval_shape(module.init, jax.random.key(0), self.images)
        return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}

    def in_flax(self) -> dict[Name, np.ndarray]:
        """The arrays in Flax's layout, with whatever widths they have."""
        found = {}
        for path, name in self.names.items():
            array = to_flax(self.state[name], path, len(self._first[path]))
            if array is None:
                raise self._misfit(name, shape_in_torch(self._first[path], path))
            found[path] = array
        for path, name in self._biases.items():
            if name in self.state:
                if self.state[name].shape != found[path].shape:
                    raise self._misfit(name, found[path].shape)
                found[path] = found[path] - self.state[name]
        return found

    def fitted(self, module: Any, found: Mapping[Name, np.ndarray]) -> tuple[Held, dict[Name, np.ndarray]]:
        """What the arrays hold of the full `module`, and what the masks select; InputError if they do not fit."""
        indices, selected = held(self.shapes(module), self.names, self._masks, self.state, self._title)
        for path, array in found.items():
            if array.shape != (takes := tuple(map(len, indices[path]))):
                raise self._misfit(self.names[path], shape_in_torch(takes, path))
        return indices, selected

    def _misfit(self, name: str, takes: tuple[int, ...]) -> InputError:
        has = f"{self._title} holds {name} of shape {self.state[name].shape}"
        return InputError(f"{has}, and {self._model} takes {takes} there; {ADVICE}.")


def _biases(layers: Mapping[tuple[str, ...], str]) -> Iterator[tuple[Name, str]]:
    """The path of the running mean behind each convolution of a VGG, and the name of the convolution's bias."""
    for (layer, *_), name in layers.items():
        if layer.startswith("conv"):
            yield ("batch_stats", layer.replace("conv", "bn"), "mean"), f"{name}.bias"


def _check_names(state: Mapping[str, Any], needed: set[str], known: set[str], problem: str) -> None:
    """Refuse a state dict that lacks what is needed, or holds what is neither needed nor known."""
    parts = []
    for what, names in (("holds", state.keys() - needed - known), ("lacks", needed - state.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"it {what} {min(names)}{more}")
    if parts:
        raise InputError(f"{problem}: {', and '.join(parts)}; {ADVICE}.")
