"""What an experiment found, as values: the rows of its tables and the points of its plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SMALL_SCALE = 1e-2  # a |scale| under this counts as switched off


class Table(NamedTuple):
    """A table whose cells are text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    picture: str = ""  # file name of the picture to show under the table, for example "compared.png"
    right: bool = True  # whether all columns but the first align to the right, as numbers do


@dataclass(frozen=True, kw_only=True)
class PipelineRow:
    """A network along the pipeline: baseline, trained with sparsity, cut at a ratio, fine-tuned."""

    name: str
    accuracy: float  # top-1, as a share in [0, 1]; NaN when unknown
    params: int
    macs: int  # multiply-accumulates for one image
    note: str = ""

    def __post_init__(self) -> None:
        _check_shares(accuracy=self.accuracy)


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """The network cut at one ratio. Accuracies are top-1, as shares in [0, 1]; NaN when unknown."""

    ratio: float  # requested share of channels cut
    accuracy: float  # before fine-tuning
    params: int
    macs: int  # multiply-accumulates for one image
    kept: dict[str, int]  # channels kept in each layer, in network order
    protected: tuple[str, ...] = ()  # layers that `min_channels` kept from losing more
    plain_accuracy: float | None = None  # before fine-tuning without absorption, where `accuracy` is with it
    finetuned_accuracy: float | None = None
    verified_accuracy: float | None = None  # of the cut network, where `accuracy` is with the cut channels at zero
    logits_difference: float | None = None  # largest one of these two networks, as a share of the largest |logit|
    architecture: str | None = None  # in the words of the model, for example "[49, 64, 'M', 128]"

    def __post_init__(self) -> None:
        _check_shares(ratio=self.ratio, accuracy=self.accuracy, plain_accuracy=self.plain_accuracy)
        _check_shares(finetuned_accuracy=self.finetuned_accuracy, verified_accuracy=self.verified_accuracy)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the tables, files and plots of one experiment show. They leave out what is empty."""

    title: str
    pipeline: tuple[PipelineRow, ...] = ()  # in the order in which networks were made; the first is the full one
    sweep: tuple[SweepRow, ...] = ()
    channels: dict[str, int] = field(default_factory=dict)  # of each layer of the full network, in network order
    more_tables: tuple[Table, ...] = ()  # to show after those of `pipeline` and `sweep`
    # (ratio, accuracy) pairs before fine-tuning, by the name of the way to train or cut
    compared: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    baseline_accuracy: float | None = None  # to compare with; by default that of `pipeline[0]`, or else of ratio 0
    scales: dict[str, np.ndarray] = field(default_factory=dict)  # a network's |scale| values, by a label: "sparse"
    # largest |scale| that a cut removes, by label of `scales`, then by ratio
    thresholds: dict[str, dict[float, float]] = field(default_factory=dict)
    curves: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # rows of metrics.jsonl, by run
    notes: dict[str, str] = field(default_factory=dict)  # hardware, versions, data set, command

    def __post_init__(self) -> None:
        _check_shares(baseline_accuracy=self.baseline_accuracy)
        for row in self.sweep:
            if differing := sorted(row.kept.keys() ^ self.channels.keys()):
                raise ValueError(f"The row of ratio {row.ratio} and `channels` disagree about layers {differing}.")

    @property
    def full(self) -> PipelineRow | SweepRow | None:
        """The full network's row, for its size: ratio 0 of the sweep, or else the pipeline's first; None if unknown."""
        return next((row for row in self.sweep if row.ratio == 0), self.pipeline[0] if self.pipeline else None)

    @property
    def baseline(self) -> tuple[str, float] | None:
        """Name and accuracy of the network to compare with; None if unknown."""
        known = [("baseline", self.baseline_accuracy), *(("baseline", row.accuracy) for row in self.pipeline[:1])]
        known += [("uncut", row.accuracy) for row in self.sweep if row.ratio == 0]
        return next(((name, share) for name, share in known if share is not None and math.isfinite(share)), None)


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """The network with channels of one layer cut and all other layers whole."""

    layer: str
    ratio: float
    """Share of the layer's channels that was to go."""
    before: int
    """Channels of the layer."""
    after: int
    """Channels that survive."""
    accuracy: float
    """Top-1, as a share in [0, 1]."""
    params: float
    """Share of the network's parameters that stay."""
    macs: float | None
    """Share of its multiply-accumulates that stay; None where they cannot be counted."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All layers of a network."""

    title: str
    accuracy: float
    """Top-1 of the uncut network, as a share."""
    tolerance: float
    """How much accuracy a layer may cost, as a share."""
    rows: tuple[LayerRow, ...]
    """Layers in network order, each with its ratios in ascending order."""
    ratios: dict[str, float]
    """For each layer, the largest ratio within the tolerance."""
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, list[LayerRow]]:
        """The rows of each layer."""
        found: dict[str, list[LayerRow]] = {}
        for row in self.rows:
            found.setdefault(row.layer, []).append(row)
        return found


def harmless(rows: Sequence[LayerRow], accuracy: float, tolerance: float) -> dict[str, float]:
    """The largest ratio of each layer whose accuracy is at least `accuracy - tolerance`; 0 where there is none.

    Args:
      rows: of any layers, in network order.
      accuracy: of the uncut network, as a share.
      tolerance: how much accuracy each layer may cost, as a share.

    Returns:
      A dict that `jaxslim.plan(graph, scores, ratios=...)` takes. Each ratio was measured alone, so all of them
      together cost more.

    Example:
      >>> from dataclasses import replace
      >>> row = LayerRow(layer="bn0", ratio=0.5, before=8, after=4, accuracy=0.9, params=0.8, macs=0.7)
      >>> harmless([row, replace(row, ratio=0.75, accuracy=0.6)], 0.9, 0.01)
      {'bn0': 0.5}
    """
    least = accuracy - tolerance - 1e-9
    found = {row.layer: 0.0 for row in rows}
    for row in rows:
        if row.accuracy >= least:
            found[row.layer] = max(found[row.layer], row.ratio)
    return found


def finite(values: np.ndarray | Sequence[float]) -> np.ndarray:
    """The values that are neither NaN nor infinite, as a flat float64 array."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def ratio_text(ratio: float) -> str:
    """`ratio` without the noise of binary fractions: 0.0, 0.7, 0.75."""
    return str(round(float(ratio), 4))


def _check_shares(**shares: float | None) -> None:
    for name, share in shares.items():
        if share is not None and not (math.isnan(share) or 0 <= share <= 1):
            raise ValueError(f"{name} is {share}; it must be a share in [0, 1], not a percentage.")
