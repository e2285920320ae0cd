"""Which channels go: scores of all layers, one threshold, and what every layer has to keep."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from jaxslim.core.graph import ChannelGraph, leaf_paths
from jaxslim.errors import InputError, quoted


class Layer(NamedTuple):
    """What a plan does to one scored layer."""

    name: str
    before: int
    """Channels."""
    after: int
    """Channels that survive."""
    protected: bool
    """Whether channels stay only because the layer had to keep some."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which units survive."""

    keep: np.ndarray
    """bool (num_units + 1,), indexed by unit; unit 0, everything fixed, is true."""
    requested: float | None
    """Share of the prunable units that was to go; None where a threshold decided."""
    achieved: float
    """Share of the prunable units that goes."""
    layers: tuple[Layer, ...]
    """The scored layers in network order."""

    @property
    def protected(self) -> tuple[str, ...]:
        """Names of the layers that the least number of channels protected."""
        return tuple(layer.name for layer in self.layers if layer.protected)


def plan(
    graph: ChannelGraph,
    scores: Any,
    ratio: float | None,
    min_channels: int = 1,
    *,
    threshold: float | None = None,
    max_layer_ratio: float = 1.0,
    multiple_of: int = 1,
    reference_ties: bool = False,
    leave: Collection[str] = (),
) -> Plan:
    """Choose the units to cut by one threshold over the scores of all layers (Liu et al., ICCV 2017, section 3).

    Only scored units are prunable. A unit that several scores speak of, for example through a residual connection, has
    the largest of them. The lowest int(units * ratio) go; among equal scores, earlier channels go first.

    Args:
      graph: of the network.
      scores: pytree of arrays, each at the path of a parameter: one number for each index of that parameter's last
        axis (or for each element, of which the largest counts). `bn_scales` makes it.
      ratio: share of the prunable units to cut, in [0, 1); None with `threshold`.
      min_channels: each layer keeps at least its best `min_channels`; others go in their place.
      threshold: cut what scores at most this much instead, whatever share that is.
      max_layer_ratio: largest share of a layer that may go; the paper's multi-pass scheme takes 0.5 (section 4.6).
      multiple_of: restore the best cut channels of each layer until it keeps a multiple of this (or everything).
      reference_ties: the rule of the PyTorch reference: the sorted score at index int(units * ratio) goes, and all
        below or equal to it; so one channel more, and all ties.
      leave: names of layers that lose nothing.

    Returns:
      The `Plan`.

    Raises:
      InputError: arguments out of range, scores that fit no parameter or are not numbers, an unknown layer in `leave`,
        or a ratio that cannot be met; the message names the largest that can.
    """
    _check_arguments(ratio, min_channels, threshold, max_layer_ratio, multiple_of, reference_ties)
    if not isinstance(graph, ChannelGraph):
        raise InputError(f"The graph is of type {type(graph).__name__}; pass what jaxslim.trace gave.")
    names = isinstance(leave, Collection) and not isinstance(leave, str)
    if not names or not all(isinstance(name, str) for name in leave):
        raise InputError(f"leave is {quoted(leave)}; it must hold names of layers, for example ('bn0',).")
    layers = _layers(graph, scores)
    score = np.full(graph.num_units + 1, -math.inf)
    for _, units, values in layers:
        np.maximum.at(score, units, values)
    prunable = np.unique(np.concatenate([units for _, units, _ in layers]))
    prunable = prunable[prunable != 0]
    ranked = prunable[np.argsort(score[prunable], kind="stable")]
    rank = np.zeros(graph.num_units + 1)
    rank[ranked] = np.arange(len(ranked))
    rank[0] = math.inf

    safe = _safe(layers, rank, min_channels, max_layer_ratio, leave)
    if ratio is None:
        wanted = ranked[score[ranked] <= threshold]
    elif reference_ties:
        wanted = ranked[score[ranked] <= score[ranked[int(len(ranked) * ratio)]]] if len(ranked) else ranked
    else:
        wanted = ranked[: math.floor(len(ranked) * ratio + 1e-9)]
    going = ranked[~safe[ranked]]
    if ratio is None or reference_ties:
        going = wanted[~safe[wanted]]
    elif len(wanted) > len(going):
        share = f", max_layer_ratio={max_layer_ratio}" if max_layer_ratio < 1 else ""
        most = math.floor(len(going) / len(ranked) * 1e4) / 1e4
        raise InputError(
            f"A ratio of {ratio} cannot be met: with min_channels={min_channels}{share} and the layers left alone, "
            f"{len(going)} of {len(ranked)} channels can go; the largest ratio is {most}."
        )
    else:
        going = going[: len(wanted)]

    keep = np.ones(graph.num_units + 1, bool)
    keep[going] = False
    _round_up(keep, layers, rank, multiple_of)
    lost = np.isin(np.arange(graph.num_units + 1), wanted) & safe
    return Plan(
        keep=keep,
        requested=ratio,
        achieved=float(np.sum(~keep)) / max(len(ranked), 1),
        layers=tuple(
            Layer(name, len(units), int(keep[units].sum()), bool(lost[units].any()) and name not in leave)
            for name, units, _ in layers
        ),
    )


def _check_arguments(
    ratio: float | None,
    min_channels: int,
    threshold: float | None,
    max_layer_ratio: float,
    multiple_of: int,
    reference_ties: bool,
) -> None:
    if (ratio is None) == (threshold is None):
        raise InputError("Give either a ratio or a threshold, for example a ratio of 0.7.")
    if ratio is not None and not (_is_number(ratio) and 0 <= ratio < 1):
        raise InputError(f"The ratio is {quoted(ratio)}; it must lie in [0, 1): 0.7 cuts 70 % of the channels.")
    if threshold is not None and not (_is_number(threshold) and threshold >= 0):
        raise InputError(f"The threshold is {quoted(threshold)}; it must be a number of at least 0, for example 0.01.")
    if not (_is_number(max_layer_ratio) and 0 < max_layer_ratio <= 1):
        given = quoted(max_layer_ratio)
        raise InputError(f"max_layer_ratio is {given}; it must be a share in (0, 1], for example 0.5.")
    check_switch("reference_ties", reference_ties)
    if reference_ties and ratio is None:
        raise InputError("reference_ties is a rule for a ratio; leave it out with a threshold.")
    for name, value in (("min_channels", min_channels), ("multiple_of", multiple_of)):
        if not _is_number(value, "iu"):
            raise InputError(f"{name} is {quoted(value)}; it must be an integer.")
        if value < 1:
            raise InputError(f"{name} is {quoted(value)}; it must be at least 1.")
        if value >= 2**31:
            raise InputError(f"{name} is {quoted(value)}; it must be below 2147483648.")


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither true nor false, such as an array with one for each layer."""
    if not _is_number(value, "b"):
        raise InputError(f"{name} is {quoted(value)}; it must be True or False.")


def _is_number(value: Any, kinds: str = "iuf") -> bool:
    """Whether `value` is one, of Python, NumPy or JAX, and of a dtype of these kinds."""
    return isinstance(value, int) or (np.ndim(value) == 0 and np.asarray(value).dtype.kind in kinds)


_Layers = list[tuple[str, np.ndarray, np.ndarray]]


def _layers(graph: ChannelGraph, scores: Any) -> _Layers:
    """Name, units (channels,) and scores (channels,) of every scored parameter, in network order."""
    found = []
    for path, value in leaf_paths(scores):
        number, name = graph.find(path), "/".join(path)
        if number is None:
            raise InputError(f"The scores hold {name}, which is no parameter of the traced network.")
        shape = graph.shapes[number]
        try:
            values = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"The scores {name} are {quoted(value)}; give numbers.") from None
        if not shape or values.shape not in (shape, shape[-1:]):
            raise InputError(f"The scores {name} have shape {values.shape}; the parameter has shape {shape}.")
        if np.isnan(values).any():
            raise InputError(f"The scores {name} hold NaN; the network has diverged, take an earlier checkpoint.")
        own = graph.paths[number]
        layer = "/".join(own[1:-1] if len(own) > 2 else own)
        found.append((number, layer, graph.units[number][-1], values.reshape(-1, shape[-1]).max(0)))
    if not found:
        raise InputError("There are no scores; nothing says which channels matter.")
    return [layer for _, *layer in sorted(found, key=lambda item: item[0])]  # type: ignore[misc]


def _safe(
    layers: _Layers, rank: np.ndarray, min_channels: int, max_layer_ratio: float, leave: Collection[str]
) -> np.ndarray:
    """bool (units,): the best channels of each layer that it must keep, and whole layers to leave alone."""
    unknown = sorted(set(leave) - {name for name, *_ in layers})
    if unknown:
        names = ", ".join(name for name, *_ in layers)
        raise InputError(f"There is no layer {unknown[0]:.60} to leave alone; the layers are {names}.")
    safe = np.zeros(len(rank), bool)
    for name, units, _ in layers:
        best_first = units[np.argsort(-rank[units], kind="stable")]
        least = max(min_channels, len(units) - math.floor(len(units) * max_layer_ratio + 1e-9))
        safe[units if name in leave else best_first[:least]] = True
    return safe


def _round_up(keep: np.ndarray, layers: _Layers, rank: np.ndarray, multiple_of: int) -> None:
    """Restore the best cut units until every layer keeps a multiple; tied layers may take several rounds."""
    changed = multiple_of > 1
    while changed:
        changed = False
        for _, units, _ in layers:
            for unit in units[np.argsort(-rank[units], kind="stable")]:
                if keep[units].sum() % multiple_of == 0:
                    break
                changed |= not keep[unit]
                keep[unit] = True
