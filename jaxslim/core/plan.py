"""Which channels go: scores of all layers, one threshold, and what every layer has to keep."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxslim.core.choice import Choice, Limits
from jaxslim.core.graph import ChannelGraph, check_size
from jaxslim.core.layers import scored_layers
from jaxslim.core.printing import MOST_ROWS, columns
from jaxslim.core.targets import by_cost, by_latency, by_ratio, by_threshold, seconds
from jaxslim.errors import InputError


class Layer(NamedTuple):
    """What a plan does to one scored layer."""

    name: str
    before: int
    """Channels."""
    after: int
    """Channels that survive."""
    protected: bool
    """Whether channels stay only because the layer had to keep some."""


class Target(NamedTuple):
    """A cost that decided how many channels go."""

    name: str
    """macs, params or latency."""
    wanted: float | str
    """Share that was to be left, or a time."""
    reached: float
    """Share that is left, or seconds."""

    def __str__(self) -> str:
        if isinstance(self.wanted, str):
            return f"{self.name}: {self.reached * 1e3:.3g} ms, {self.wanted} wanted"
        return f"{self.name}: {self.reached:.2%} left, {self.wanted:.2%} wanted"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """Which units survive."""

    keep: np.ndarray
    """bool (num_units + 1,), indexed by unit; unit 0, everything fixed, is true."""
    requested: float | None = None
    """Share of the prunable units that was to go; None where something else decided."""
    achieved: float = 0.0
    """Share of the prunable units that goes."""
    layers: tuple[Layer, ...] = ()
    """The scored layers in network order."""
    target: Target | None = None
    """The cost that decided, if one did."""

    @property
    def protected(self) -> tuple[str, ...]:
        """Names of the layers that kept channels only because they had to keep some."""
        return tuple(layer.name for layer in self.layers if layer.protected)

    def __repr__(self) -> str:
        stay, units = np.count_nonzero(self.keep[1:]), len(self.keep) - 1
        requested = "" if self.requested is None else f", {self.requested:.2%} requested"
        target = f"; {self.target}" if self.target else ""
        return f"Plan({stay} of {units} units stay; {self.achieved:.2%} of the scored units are cut{requested}{target})"

    def __str__(self) -> str:
        return f"{self!r}\n{self.table(MOST_ROWS)}"

    def table(self, most: int | None = None) -> str:
        """What each layer keeps, as text; of more than `most` layers the middle is left out."""
        rows = [
            (name, str(old), str(new), f"{1 - new / old:.0%}", "protected" if saved else "")
            for name, old, new, saved in self.layers
        ]
        return columns(("layer", "channels", "after", "cut", ""), rows, most)


def plan(
    graph: ChannelGraph,
    scores: Any,
    ratio: float | None = None,
    min_channels: int = 1,
    *,
    threshold: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | str | None = None,
    measure: Callable[["Plan"], float] | None = None,
    scope: Literal["global", "layer", "alike"] = "global",
    ratios: Mapping[str, float] | None = None,
    max_layer_ratio: float = 1.0,
    multiple_of: int = 1,
    leave: Collection[str] = (),
    within: Plan | None = None,
) -> Plan:
    """Choose the units to cut: the lowest of the scores of all layers go (Liu et al., ICCV 2017, section 3).

    Only scored units are prunable. How many go, one of `ratio`, `threshold`, `macs`, `params` and `latency` says; with
    `ratios` none is needed. Among equal scores, earlier channels go first. Units below these go too, and count.

    Args:
      graph: of the network.
      scores: an array (num_units + 1,), one number for each unit, as the functions of `jaxslim.criteria` make; entry 0
        is ignored, and -inf is no score. Or a pytree of arrays, each at the path of a parameter: one number for each
        index of that parameter's last axis, or of the axis a vector lies along (or for each element, of which the
        largest counts). There, a unit with several scores has the largest of them.
      ratio: share of the prunable units to cut, in [0, 1).
      min_channels: each layer keeps at least its best `min_channels`; others go in their place.
      threshold: cut every unit with a score up to this, however many they are. The PyTorch reference takes
        `sorted(scores)[int(units * ratio)]`, which cuts one unit more than `ratio` does, and all ties.
      macs: cut until at most this share of the multiply-accumulates of the first traced mode stays, in (0, 1). They are
        those of the cut program; where channels go in large groups, the result lies below.
      params: the same for the parameters: the collection `params`, or all floats but statistics.
      latency: the same for the time that `measure` gives: a share of the full network's, or a time such as `"2 ms"`.
      measure: seconds of one call of the network that a plan leaves; called for some plans. Needed with `latency`.
      scope: among which units scores compete: `global`, all; `layer`, those of one layer, so that each layer loses the
        same share; `alike`, those of alike layers (isomorphic pruning, Fang et al., ECCV 2024), whose classes lose the
        same share each.
      ratios: for layers that a pattern fits the share that goes, in place of all above; the first pattern decides.
      max_layer_ratio: largest share of a layer that may go; the paper's multi-pass scheme takes 0.5 (section 4.6).
      multiple_of: restore the best cut channels of each layer until it keeps a multiple of this (or everything).
      leave: names of layers that lose nothing, or patterns such as `encoder/*`; full paths of parameters fit too. Heads
        and their widths have names of their own, such as `attention/query:4x-` and `attention/query:-x16`.
      within: an earlier plan of this graph. What that plan cuts goes first, and counts, whatever its scores are now;
        `multiple_of` brings none of it back.

    Returns:
      The `Plan`.

    Raises:
      InputError: arguments out of range, scores that fit no parameter or hold NaN, a pattern that fits no layer (the
        message names the nearest), a ratio or target that cannot be met (the message names the nearest that can), or
        nothing that can be cut.
    """
    asked = {"ratio": ratio, "threshold": threshold, "macs": macs, "params": params, "latency": latency}
    goals: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    limits = Limits(min_channels, max_layer_ratio, multiple_of)
    _check_ranges(goals, limits, measure, ratios or {})
    layers, score = scored_layers(graph, scores)
    if scope != "global" and threshold is not None:
        raise InputError(f"A threshold compares all channels, so scope={scope!r} means nothing; leave one of them out.")
    if within is not None:
        check_size(graph, within.keep)
    before = np.ones(graph.num_units + 1, bool) if within is None else graph.survivors(within.keep)
    leave = [leave] if isinstance(leave, str) else leave
    choice = Choice(graph, layers, score, limits, scope=scope, leave=leave, ratios=ratios or {}, within=before)
    (name, value), *_ = [*goals.items(), ("ratio", 0.0)]
    if not len(choice.prunable) and value:
        raise InputError(f"Nothing can be cut: {why_nothing(graph)}.")
    if name == "ratio":
        answer = by_ratio(choice, value)
    elif name == "threshold":
        answer = by_threshold(choice, value)
    elif name == "latency":
        answer = by_latency(choice, value, lambda keep: measure(Plan(keep=keep)))  # type: ignore[misc]
    else:
        answer = by_cost(choice, name, value)

    keep = choice.keep(answer.number)
    saved = np.ones(len(keep), bool)
    saved[answer.wanted[choice.safe[answer.wanted]]] = False
    saved = ~graph.survivors(saved) & choice.safe & ~choice.spared
    outcome = (
        Layer(layer.name, len(layer.units), int(keep[layer.units].sum()), bool(saved[layer.units].any()))
        for layer in layers
    )
    return Plan(
        keep=keep,
        requested=ratio,
        achieved=np.count_nonzero(~keep[choice.prunable]) / max(len(choice.prunable), 1),
        layers=tuple(outcome),
        target=None if answer.reached is None else Target(name, value, answer.reached),
    )


def why_nothing(graph: ChannelGraph) -> str:
    """What stops the channels of a network in which none can go."""
    stops = [*(s for s in graph.stops if not s.expected), *(s for s in graph.stops if s.expected)]
    shown = "; ".join(map(str, stops[:3])) or "the network has no parameters with axes"
    return f"{graph.num_units} units, and what is scored stays ({shown})"


def _check_ranges(goals: Mapping[str, Any], limits: Limits, measure: Any, ratios: Mapping[str, float]) -> None:
    if len(goals) > 1 or not (goals or ratios):
        names = f", not {' and '.join(goals)} together" if goals else ""
        raise InputError(f"Give one of ratio, threshold, macs, params and latency{names}, for example a ratio of 0.7.")
    share = "be a share in (0, 1): 0.5 leaves half"
    checks = {
        "ratio": (lambda value: 0 <= value < 1, "lie in [0, 1): 0.7 cuts 70 % of the channels"),
        "threshold": (lambda value: value >= 0, "be a number of at least 0, for example 0.01"),
        "macs": (lambda value: 0 < value < 1, share),
        "params": (lambda value: 0 < value < 1, share),
        "latency": (lambda value: isinstance(value, str) or 0 < value < 1, f'{share}, or a time such as "2 ms"'),
        "max_layer_ratio": (lambda value: 0 < value <= 1, "be a share in (0, 1], for example 0.5"),
        "min_channels": (lambda value: value >= 1, "be at least 1"),
        "multiple_of": (lambda value: value >= 1, "be at least 1"),
    }
    for name, value in {**goals, **limits._asdict()}.items():
        fits, advice = checks[name]
        if not fits(value):
            raise InputError(f"{'The ' * (name in ('ratio', 'threshold'))}{name} is {value}; it must {advice}.")
    if isinstance(goals.get("latency"), str):
        seconds(goals["latency"])
    if "latency" in goals and measure is None:
        raise InputError("latency needs measure, a function of a plan that gives seconds; jaxslim.prune has its own.")
