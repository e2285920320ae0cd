"""What an experiment found, as values: the rows of its tables."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """A table as text; `right` aligns all columns but the first to the right."""

    title: str
    header: list[str]
    rows: list[list[str]]
    picture: str = ""
    """File name of the picture that belongs under it."""
    right: bool = True


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the pipeline: baseline, trained with sparsity, cut at a ratio, fine-tuned."""

    name: str
    accuracy: float
    """Top-1 accuracy as a share in [0, 1]; NaN when unknown."""
    params: int
    macs: int
    """Multiply-accumulates for one image."""
    note: str = ""

    def __post_init__(self) -> None:
        _check_shares(accuracy=self.accuracy)


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """What one ratio of cut channels gave."""

    ratio: float
    """Requested share of channels cut."""
    accuracy: float
    """Share in [0, 1], before fine-tuning; NaN when unknown."""
    params: int
    macs: int
    """Multiply-accumulates for one image."""
    kept: dict[str, int]
    """Channels kept in each layer, in network order."""
    protected: tuple[str, ...] = ()
    """Layers that `min_channels` kept from losing more."""
    finetuned_accuracy: float | None = None
    verified_accuracy: float | None = None
    """Accuracy of the network that was really cut, where `accuracy` only zeroed its channels."""
    logits_difference: float | None = None
    """Largest difference of the logits of the zeroed and the really cut network, relative to the largest logit."""
    widths: tuple[int | str, ...] | None = None
    """The cut network's widths where it is a VGG, for example (49, 64, "M", 128)."""

    def __post_init__(self) -> None:
        _check_shares(
            ratio=self.ratio,
            accuracy=self.accuracy,
            finetuned_accuracy=self.finetuned_accuracy,
            verified_accuracy=self.verified_accuracy,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the tables, files and pictures of one experiment show. What is empty is left out of them."""

    title: str
    stages: tuple[Stage, ...] = ()
    """Steps of the pipeline in order; the first is the full network."""
    sweep: tuple[SweepRow, ...] = ()
    channels: dict[str, int] = field(default_factory=dict)
    """Channels of each layer of the full network, in network order."""
    tables: tuple[Table, ...] = ()
    """Further tables, which stand after those made of `stages` and `sweep`."""
    compared: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """(ratio, accuracy) before fine-tuning for each of several ways to train or cut, by their names."""
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    """All |scale| values of the BatchNorm layers, one flat array a label such as "baseline" or "sparse"."""
    notes: dict[str, str] = field(default_factory=dict)
    """Circumstances: hardware, versions, data set, command, which images chose the best model."""

    def __post_init__(self) -> None:
        for row in self.sweep:
            if differing := row.kept.keys() ^ self.channels.keys():
                raise ValueError(
                    f"The row of ratio {row.ratio} and `channels` disagree about layers {sorted(differing)}."
                )

    @property
    def full(self) -> tuple[int, int] | None:
        """Parameters and MACs of the full network: those of ratio 0, else of the first stage, else unknown."""
        whole: Iterable[SweepRow | Stage] = (*(row for row in self.sweep if row.ratio == 0), *self.stages[:1])
        return next(((one.params, one.macs) for one in whole), None)


def _check_shares(**shares: float | None) -> None:
    for name, share in shares.items():
        if share is not None and not (math.isnan(share) or 0 <= share <= 1):
            raise ValueError(f"{name} is {share}; it must be a share in [0, 1], not a percentage.")
