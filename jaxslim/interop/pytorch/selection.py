"""Networks that were cut by channel selection: which channels of the full network a state dict holds.

In the authors' ResNets and DenseNets (Liu et al., ICCV 2017, section 4.5) the first norm of a block has all channels,
and a mask says which of them the convolution behind it reads. Inside a block, channels are gone without a trace: only
how many are left is known, so the first ones stand for them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.paths import Path
from jaxslim.errors import InputError

Held = dict[Path, list[np.ndarray]]
"""For each array, by its path, the indices of the full network that it holds along each axis."""
MASK = "select.indexes"
ADVICE = "give the model that the file is of"


def masks(layers: Mapping[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
    """The name of the mask of each block, by the block's path; the last norm of the network belongs to the path ()."""
    firsts = {path[:-1]: name for path, name in layers.items() if path[-1] == "bn1" or path == ("bn",)}
    return {block: ".".join([*name.split(".")[:-1], MASK]) for block, name in firsts.items()}


def held(
    shapes: Mapping[Path, tuple[int, ...]],
    names: Mapping[Path, str],
    selects: Mapping[tuple[str, ...], str],
    state: Mapping[str, np.ndarray],
    where: Any,
) -> tuple[Held, dict[Path, np.ndarray]]:
    """What the arrays of a state dict hold of the full network, and what the masks select.

    Args:
      shapes: of the full variables, by their paths.
      names: of the arrays in the state dict.
      selects: names of the masks, by block; one that the state dict lacks selects everything.
      state: the state dict.
      where: what messages call it.

    Returns:
      The indices, and for the scale of each norm with a mask, bool (channels,), whether the channel is selected.

    Raises:
      InputError: a mask is of another length or selects nothing, or a layer is empty.
    """
    found: Held = {path: [np.arange(n) for n in shape] for path, shape in shapes.items()}
    selected = {}
    for block, select in selects.items():
        norm, reader = (("bn1",), ("conv1",)) if block else (("bn",), ("classifier",))
        scale = ("params", *block, *norm, "scale")
        mask = state.get(select, np.ones(shapes[scale])) != 0
        if mask.shape != shapes[scale]:
            here = f"of shape {mask.shape} at a norm of {shapes[scale][0]} channels"
            raise InputError(f"{where} holds {select} {here}; {ADVICE}.")
        if not mask.any():
            raise InputError(f"{where} holds {select}, which selects no channel; take a network that was cut less.")
        selected[scale] = mask
        found["params", *block, *reader, "kernel"][-2] = np.flatnonzero(mask)
        for number in (2, 3):
            scale = ("params", *block, f"bn{number}", "scale")
            if scale not in shapes:
                continue
            count = len(state[names[scale]])
            if not count:
                raise InputError(f"{where} holds an empty {names[scale]}; take a network that was cut less.")
            left = np.arange(min(count, *shapes[scale]))
            for path in [*found]:
                if path[1:-1] == (*block, f"bn{number}"):
                    found[path] = [left]
            found["params", *block, f"conv{number - 1}", "kernel"][-1] = left
            found["params", *block, f"conv{number}", "kernel"][-2] = left
    return found, selected


def spread(array: np.ndarray, shape: tuple[int, ...], indices: list[np.ndarray]) -> np.ndarray:
    """An array in the full shape, with zeros where it holds nothing."""
    if array.shape == shape:
        return array
    full = np.zeros(shape, array.dtype)
    full[np.ix_(*indices)] = array
    return full


def wanted(graph: ChannelGraph, found: Held, selected: Mapping[Path, np.ndarray]) -> np.ndarray:
    """Which units a state dict holds: float (num_units + 1,), 1 or 0, as scores for a plan."""
    keep = np.ones(graph.num_units + 1)
    for path, axes in zip(graph.paths, graph.units, strict=True):
        for units, indices in zip(axes, found[path], strict=True):
            keep[np.delete(units, indices)] = 0
        if path in selected:
            keep[axes[0][~selected[path]]] = 0
    return keep
