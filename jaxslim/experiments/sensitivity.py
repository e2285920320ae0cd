"""How much each layer of a trained network can lose alone (Li et al., ICLR 2017, section 3.2)."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxslim.core.cut import mask
from jaxslim.core.graph import ChannelGraph
from jaxslim.core.plan import Plan, plan
from jaxslim.core.targets import macs_left, params_left
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import measurer, sample
from jaxslim.experiments.hardware import machine
from jaxslim.reporting.results import LayerRow, Sensitivity, harmless
from jaxslim.slim.absorb import absorber
from jaxslim.slim.criteria.scales import pulled_scale
from jaxslim.slim.kinds import network
from jaxslim.slim.prune import apply_plan, scored, traced
from jaxslim.storage.checkpoint import find
from jaxslim.training.config import LAYER_RATIOS
from jaxslim.training.network import load_trained


def sensitivity(
    graph: ChannelGraph,
    scores: Any,
    accuracy: Callable[[Plan], float],
    ratios: Sequence[float] = LAYER_RATIOS,
    *,
    min_channels: int = 1,
) -> Iterator[LayerRow]:
    """Cut each layer alone at each ratio, and measure what is left (Li et al., ICLR 2017, section 3.2).

    Args:
      graph: of the network.
      scores: as for `jaxslim.plan`; the lowest of a layer go first.
      accuracy: of the network that a plan leaves, as a share. `evaluate(jaxslim.mask(graph, variables, plan))` needs
        no compilation for each plan. Plans that cut the same are measured once.
      ratios: shares of a layer's channels, each in [0, 1).
      min_channels: each layer keeps at least so many.

    Returns:
      Yields the rows of each layer in network order, ratios ascending. A layer with no channel that can go has none,
      and a ratio that `min_channels` does not allow has none.

    Raises:
      InputError: no ratios, a ratio twice or out of range; scores that do not fit, as for `plan`.

    Example:
      >>> import jaxslim
      >>> params = {"a": np.ones((4, 8)), "b": np.ones((8, 2))}
      >>> graph = jaxslim.trace(lambda params, x: x @ params["a"] @ params["b"], params, np.ones((1, 4)))
      >>> rows = sensitivity(graph, {"a": np.arange(8.0)}, lambda plan: plan.keep.mean(), [0.25, 0.5])
      >>> [(row.layer, row.ratio, row.after, row.params) for row in rows]
      [('a', 0.25, 6, 0.75), ('a', 0.5, 4, 0.5)]
    """
    check_ratios(ratios)
    whole = plan(graph, scores, 0.0, min_channels)
    everything = np.ones(graph.num_units + 1, bool)
    params, macs = params_left(graph, everything), macs_left(graph, everything)
    known: dict[bytes, float] = {}
    for layer in whole.layers:
        plans = _plans(graph, scores, layer.name, ratios, min_channels)
        if all(chosen.keep.all() for chosen in plans.values()) and any(ratios):
            continue
        for ratio, chosen in plans.items():
            alive = graph.survivors(chosen.keep)
            if (kept := alive.tobytes()) not in known:
                known[kept] = float(accuracy(chosen))
            after = next(each.after for each in chosen.layers if each.name == layer.name)
            yield LayerRow(
                layer=layer.name,
                ratio=ratio,
                before=layer.before,
                after=after,
                accuracy=known[kept],
                params=params_left(graph, alive) / max(params, 1),
                macs=macs_left(graph, alive) / macs if macs else None,
            )


def check_ratios(ratios: Sequence[float]) -> None:
    """Refuse ratios that are no shares, or that are given twice or not at all."""
    if not ratios or len(set(ratios)) != len(ratios):
        raise InputError(f"The ratios are {list(ratios)}; give at least one, each once, for example 0.3 0.5 0.7.")
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise InputError(f"The ratio is {ratio}; it must lie in [0, 1): 0.7 cuts 70 % of the layer's channels.")


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that is no share."""
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is {tolerance}; it must lie in [0, 1): 0.01 allows a point of accuracy.")


def study(
    path: str | Path,
    *,
    ratios: Sequence[float] = LAYER_RATIOS,
    tolerance: float = 0.01,
    min_channels: int = 1,
    absorb: bool = False,
    recalibrate: int = 0,
    data: Mapping[str, Any] | None = None,
) -> Sensitivity:
    """Measure the `sensitivity` of a checkpoint's layers on its test images, with a line of progress for each layer.

    The network with the cut channels at zero stands in for the cut one, so that one compiled evaluation serves all
    layers and ratios. Only a cut that is not exact is evaluated by itself.

    Args:
      path: of the checkpoint.
      ratios: shares of a layer's channels to cut.
      tolerance: how much accuracy the cut of a layer may cost, as a share.
      min_channels: each layer keeps at least so many.
      absorb: whether constants that cut channels passed on are moved, as in `prune`.
      recalibrate: training batches to estimate the BatchNorm statistics again on, for each cut; 0 keeps the old ones.
      data: replaces `dataset` or `data_dir` of the checkpoint's configuration.

    Returns:
      `Sensitivity`, whose `ratios` are what `jaxslim.plan(graph, scores, ratios=...)` takes.

    Raises:
      InputError: as for `sensitivity`, a tolerance out of range, a checkpoint without a configuration, or a network
        without a channel that can go.
    """
    check_ratios(ratios)
    check_tolerance(tolerance)
    path = find(path)
    loaded, config, images = load_trained(path, **data or {})
    module, variables, _ = loaded
    test = measurer(config, images, recalibrate)
    inputs = sample(images.test_images.shape[1:])
    full = network(module, variables, [inputs])
    graph = traced(full, [inputs])
    absorbed = absorber(module.apply, variables, graph, inputs) if absorb else lambda _: variables
    masked = test(module)

    def accuracy(chosen: Plan) -> float:
        before = absorbed(chosen)
        if graph.exact[~graph.survivors(chosen.keep)].all():
            return masked(mask(graph, before, chosen))
        pruned = apply_plan(full, graph, chosen, before, [inputs], compare=False)
        return test(pruned.module)(pruned.variables)

    rows = []
    for row in sensitivity(
        graph,
        scored(full, graph, pulled_scale if config.l1 else None),
        accuracy,
        sorted(ratios),
        min_channels=min_channels,
    ):
        rows.append(row)
        if row.ratio == max(ratios):
            print(f"{row.layer}: accuracy {row.accuracy:.2%} at ratio {row.ratio:g}", file=sys.stderr)
    if not rows:
        raise InputError(f"No layer of {path} loses a channel at these ratios; give larger ones or fewer min_channels.")
    uncut = masked(variables)
    return Sensitivity(
        title=f"Sensitivity of the layers of {config.name}",
        accuracy=uncut,
        tolerance=tolerance,
        rows=tuple(rows),
        ratios=harmless(rows, uncut, tolerance),
        notes={
            "checkpoint": str(path),
            "data": f"{len(images.test_labels)} test images of {images.name}",
            **machine(),
        },
    )


def read_ratios(file: str | Path) -> dict[str, float]:
    """The ratios of layers that a JSON file holds: those of a sensitivity.json, or an object from layers to shares.

    Raises:
      InputError: the file cannot be read, or holds something else.
    """
    advice = "give the sensitivity.json of jaxslim sensitivity, or an object from layers to shares."
    if not Path(file).is_file():
        raise InputError(f"There is no file {file}; {advice}")
    try:
        found = json.loads(Path(file).read_text())
    except (ValueError, RecursionError):
        raise InputError(f"{file} is no JSON; {advice}") from None
    if isinstance(found, dict) and isinstance(found.get("ratios"), dict):
        found = found["ratios"]
    if not isinstance(found, dict) or not found:
        raise InputError(f"{file} holds no ratios of layers; {advice}")
    for layer, ratio in found.items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            raise InputError(f"{file} gives {layer} the ratio {ratio!r}; {advice}")
    return found


def _plans(
    graph: ChannelGraph, scores: Any, layer: str, ratios: Sequence[float], min_channels: int
) -> dict[float, Plan]:
    """A plan for each ratio that the layer allows."""
    found = {}
    for ratio in ratios:
        try:
            found[ratio] = plan(graph, scores, min_channels=min_channels, ratios={layer: ratio})
        except InputError:  # the plan of ratio 0 was accepted, so the layer has to keep more channels
            continue
    return found
