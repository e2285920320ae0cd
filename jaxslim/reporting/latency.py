"""A cut network beside the dense one: time, arithmetic and size, and what keeps it slow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxslim.reporting.results import Table
from jaxslim.slim.latency import Spread

SMALLER = 1.2
"""How many times fewer MACs a cut network needs before anybody expects it to be faster."""
MOST_LAYERS = 5
"""Layers that a table names."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or product, timed alone in both networks."""

    name: str
    dense_seconds: float
    cut_seconds: float
    dense_macs: int
    cut_macs: int

    @property
    def excess(self) -> float:
        """Seconds beyond the share of the dense layer's time that its share of the MACs stands for."""
        return self.cut_seconds - self.dense_seconds * self.cut_macs / self.dense_macs


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Both networks in one runtime, on batches of one size."""

    runtime: str
    batch: int
    dense: Spread
    cut: Spread
    layers: tuple[Layer, ...] = ()
    """In network order; empty where they were not timed."""

    @property
    def speedup(self) -> float:
        """How many times as fast the cut network is."""
        return self.dense.median / self.cut.median


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a network takes."""

    params: int
    macs: int
    """Multiply-accumulates for one image; 0 if unknown."""
    weights: int
    """Bytes of its variables in memory."""
    disk: int
    """Bytes of its checkpoint, without the state of the optimizer."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What was measured of a dense network and a cut one."""

    dense: Size
    cut: Size
    timings: tuple[Timing, ...]
    notes: dict[str, str] = field(default_factory=dict)


def is_slow(speedup: float, macs_ratio: float) -> bool:
    """Whether a network got smaller and not faster: it has gone less than half of the way from 1 to the MACs' ratio.

    Args:
      speedup: how many times as fast it is.
      macs_ratio: how many times fewer MACs it needs; a network under `SMALLER` is not judged.
    """
    return macs_ratio >= SMALLER and speedup < 1 + (macs_ratio - 1) / 2


def macs_ratio(dense: Size, cut: Size) -> float:
    """How many times fewer MACs the cut network needs; NaN if unknown."""
    return dense.macs / cut.macs if dense.macs and cut.macs else math.nan


def verdict(timing: Timing, ratio: float) -> str | None:
    """A sentence about a network that got smaller and not faster; None about another.

    Args:
      timing: of both networks.
      ratio: how many times fewer MACs the cut one needs.
    """
    if not is_slow(timing.speedup, ratio):
        return None
    fast = f"only {timing.speedup:.2f} times as fast"
    if timing.cut.high >= timing.dense.low:
        fast = "no faster" if timing.speedup <= 1 else "not measurably faster"
    said = f"{_place(timing)}: the cut network needs {ratio:.2f} times fewer MACs and is {fast}."
    if not timing.layers:
        return said
    every = _sum(timing.layers)
    took = f"Its convolutions and products, each timed alone, took {_ms(every.dense_seconds)} ms and take "
    took += f"{_ms(every.cut_seconds)} ms"
    return f"{said} {took}, of {_ms(timing.dense.median)} and {_ms(timing.cut.median)} ms in all."


def tables(latency: Latency) -> tuple[Table, ...]:
    """Times beside MACs, and sizes."""
    return _times(latency), _sizes(latency)


def slow(latency: Latency) -> list[tuple[str, Table | None]]:
    """A sentence for each runtime and batch size in which the network got smaller and not faster, with its layers."""
    ratio = macs_ratio(latency.dense, latency.cut)
    said = [(verdict(timing, ratio), timing) for timing in latency.timings]
    return [(sentence, _layers(one) if one.layers else None) for sentence, one in said if sentence]


def slowest(layers: Sequence[Layer], most: int = MOST_LAYERS) -> list[Layer]:
    """The layers that keep a network slow: those with the most time beyond what their MACs stand for, worst first."""
    return sorted((layer for layer in layers if layer.excess > 0), key=lambda layer: -layer.excess)[:most]


def _times(latency: Latency) -> Table:
    ratio = macs_ratio(latency.dense, latency.cut)
    rows = [
        [_place(one), _spread(one.dense), _spread(one.cut), f"{one.speedup:.2f}", _times_text(ratio)]
        for one in latency.timings
    ]
    title = "Time of a call in ms, median (quartiles), the networks taking turns"
    return Table(title, ["", "Dense", "Cut", "Times as fast", "Times fewer MACs"], rows)


def _sizes(latency: Latency) -> Table:
    dense, cut = latency.dense, latency.cut
    known = macs_ratio(dense, cut) > 0
    kinds = {
        "Parameters": (f"{dense.params:,}", f"{cut.params:,}", dense.params / cut.params),
        **({"MACs an image": (f"{dense.macs:,}", f"{cut.macs:,}", dense.macs / cut.macs)} if known else {}),
        "Weights in memory": (_bytes(dense.weights), _bytes(cut.weights), dense.weights / cut.weights),
        "Checkpoint on disk": (_bytes(dense.disk), _bytes(cut.disk), dense.disk / cut.disk),
    }
    rows = [[name, before, after, f"{ratio:.2f}"] for name, (before, after, ratio) in kinds.items()]
    return Table("Size", ["", "Dense", "Cut", "Times smaller"], rows)


def _layers(timing: Timing) -> Table:
    rows = [_row(layer) for layer in slowest(timing.layers)]
    rows.append(_row(_sum(timing.layers)))
    title = f"What keeps it slow, {_place(timing)}: layers alone, ms, most time beyond their share of the MACs first"
    return Table(title, ["Layer", "Dense", "Cut", "Times as fast", "Times fewer MACs"], rows)


def _row(layer: Layer) -> list[str]:
    ratios = (layer.dense_seconds / layer.cut_seconds, layer.dense_macs / layer.cut_macs)
    return [layer.name, _ms(layer.dense_seconds), _ms(layer.cut_seconds), *(f"{ratio:.2f}" for ratio in ratios)]


def _sum(layers: Sequence[Layer]) -> Layer:
    return Layer(
        name=f"all {len(layers)} layers",
        dense_seconds=sum(layer.dense_seconds for layer in layers),
        cut_seconds=sum(layer.cut_seconds for layer in layers),
        dense_macs=sum(layer.dense_macs for layer in layers),
        cut_macs=sum(layer.cut_macs for layer in layers),
    )


def _place(timing: Timing) -> str:
    return f"{timing.runtime}, {timing.batch} image{'s' * (timing.batch > 1)}"


def _times_text(ratio: float) -> str:
    return "unknown" if math.isnan(ratio) else f"{ratio:.2f}"


def _spread(times: Spread) -> str:
    return f"{_ms(times.median)} ({_ms(times.low)}-{_ms(times.high)})"


def _ms(seconds: float) -> str:
    """Milliseconds with three digits that count, and four behind the point at most."""
    value = float(f"{1e3 * seconds:.2e}")
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(digits, 0), 4)}f}"


def _bytes(number: int) -> str:
    power = min(max(math.floor(math.log10(max(number, 1))) // 3, 0), 3)
    return f"{number / 1000**power:.4g} {('B', 'kB', 'MB', 'GB')[power]}"
