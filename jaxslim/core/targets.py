"""How many channels go: as many as a ratio, a threshold or a cost asks for."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxslim.core.choice import Choice
from jaxslim.core.graph import ChannelGraph
from jaxslim.errors import InputError

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


class Answer(NamedTuple):
    """How far a choice goes."""

    number: int
    """Of the units that can go, how many do, worst first."""
    wanted: np.ndarray
    """Units that were to go, some of which may have to stay."""
    reached: float | None = None
    """Share of a cost that is left, or seconds."""


def by_ratio(choice: Choice, ratio: float) -> Answer:
    """The lowest int(units * ratio); an InputError if so many cannot go."""
    total, most = len(choice.rest), choice.count(len(choice.can_go))
    wanted = choice.rest[: math.floor(total * ratio + 1e-9)]
    if most < len(wanted):
        largest = math.floor(most / total * 1e4) / 1e4
        raise InputError(
            f"A ratio of {ratio} cannot be met: with {choice.limits} and the layers left alone, {most} of {total} "
            f"channels can go; the largest ratio is {largest}."
        )
    number = _fewest(lambda n: choice.count(n) >= len(wanted), min(len(wanted), len(choice.can_go)))
    return Answer(number, wanted)


def by_threshold(choice: Choice, threshold: float) -> Answer:
    """All with a score up to this, and what an earlier plan cut."""
    wanted, can_go = (
        units[(choice.score[units] <= threshold) | ~choice.within[units]] for units in (choice.rest, choice.can_go)
    )
    return Answer(len(can_go), wanted)


def by_cost(choice: Choice, name: str, share: float) -> Answer:
    """As few as leave at most a share of the multiply-accumulates or parameters."""
    graph = choice.graph
    if name == "macs" and graph.work is None:
        why = "it loops as often as its values say, or the graph was loaded"
        raise InputError(f"The multiply-accumulates of this network are not known ({why}); give params or a ratio.")
    cost = macs_left if name == "macs" else params_left
    full = cost(graph, np.ones(graph.num_units + 1, bool))

    def left(n: int) -> float:
        return cost(graph, choice.keep(n)) / max(full, 1)

    number = _fewest(lambda n: left(n) <= share, len(choice.can_go))
    if (reached := left(number)) > share:
        raise InputError(
            f"{name}={share:g} cannot be met: with {choice.limits} and the layers left alone, the least that can stay "
            f"is {name}={math.ceil(reached * 1e4) / 1e4:g}."
        )
    return Answer(number, _passed(choice, number), reached)


def by_latency(choice: Choice, latency: float | str, measure: Callable[[np.ndarray], float]) -> Answer:
    """As few as leave a call of the network at most so long; `measure(keep)` gives seconds, and is called 8 times."""
    steps = min(64, len(choice.can_go))
    numbers = [round(len(choice.can_go) * step / max(steps, 1)) for step in range(steps + 1)]
    full = measure(np.ones(choice.graph.num_units + 1, bool))
    allowed = seconds(latency) if isinstance(latency, str) else latency * full
    known = {0: full} if choice.keep(0).all() else {}

    def left(step: int) -> float:
        if step not in known:
            known[step] = measure(choice.keep(numbers[step]))
        return known[step]

    step = _fewest(lambda step: left(step) <= allowed, steps)
    if left(step) > allowed:
        raise InputError(
            f"latency={latency} cannot be met: the full network takes {full * 1e3:.3g} ms, and with {choice.limits} "
            f'the smallest {left(step) * 1e3:.3g} ms; give a latency of at least "{left(step) * 1e3:.3g} ms".'
        )
    reached = left(step) if isinstance(latency, str) else left(step) / full
    return Answer(numbers[step], _passed(choice, numbers[step]), reached)


def _passed(choice: Choice, number: int) -> np.ndarray:
    """The units that are no better than the last of some that go."""
    if not number:
        return choice.rest[:0]
    return choice.rest[: int(np.flatnonzero(choice.rest == choice.can_go[number - 1])[0]) + 1]


def seconds(text: str) -> float:
    """A time such as `2 ms` in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|ms|us|µs)\s*", text)
    if not match or not float(match[1]):
        raise InputError(f'The latency is {text!r}; give a share such as 0.5, or a time such as "2 ms".')
    return float(match[1]) * UNITS[match[2]]


def macs_left(graph: ChannelGraph, alive: np.ndarray) -> int:
    """Multiply-accumulates of the cut program on the traced inputs."""
    return sum(work.left(alive) for work in graph.work or ())


def params_left(graph: ChannelGraph, alive: np.ndarray) -> int:
    """Numbers in the arrays that training adjusts, once cut."""
    return sum(
        math.prod(int(np.count_nonzero(alive[units])) for units in axes)
        for axes, trained in zip(graph.units, graph.trained or [True] * len(graph.units), strict=True)
        if trained
    )


def _fewest(enough: Callable[[int], bool], most: int) -> int:
    """The smallest number up to `most` that is enough, if more is never worse; `most` if none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
