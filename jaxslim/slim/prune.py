"""Pruning in one call: trace, score, plan and cut a model of any framework, and check the result by numbers."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxslim.core.cost import count
from jaxslim.core.cut import cut, mask
from jaxslim.core.graph import ChannelGraph
from jaxslim.core.narrow import narrow
from jaxslim.core.plan import Plan, plan
from jaxslim.core.tracing import trace
from jaxslim.errors import InputError
from jaxslim.slim import check
from jaxslim.slim.absorb import absorb as absorb_constants
from jaxslim.slim.criteria.scales import batch_scales
from jaxslim.slim.criteria.weights import magnitude
from jaxslim.slim.kinds import Mode, Network, Plain, network
from jaxslim.slim.latency import latency

PLAN_OPTIONS = frozenset(inspect.signature(plan).parameters) - {"graph", "scores", "ratio", "measure"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a cut did, in numbers."""

    params: tuple[int, int]
    """Numbers that training adjusts, before and after."""
    macs: tuple[int, int] | None
    """Multiply-accumulates for one example, before and after; None where they cannot be counted."""
    exact: float
    """Share of the units cut whose cutting gives what zeroing all their slices gives; 1 if nothing was cut."""
    difference: float | None
    """How far its outputs are from those of the full model with all slices of what was cut at zero, as a share of the
    largest; None if they were not compared."""

    def __str__(self) -> str:
        kinds = [("parameters", self.params), *([("MACs", self.macs)] if self.macs else [])]
        rows = [f"{before:,} -> {after:,} {name} ({after / max(before, 1):.1%})" for name, (before, after) in kinds]
        gap = "not compared with" if self.difference is None else f"within {self.difference:.1e} of"
        return "\n".join([*rows, f"{self.exact:.1%} of the units cut are exact; outputs {gap} the masked network's"])


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A cut model and where it came from. It unpacks as `module, variables, plan`."""

    module: Any
    """The cut model, used as the full one is."""
    variables: Any
    """Its variables: those of the full model without what was cut, in the same structure."""
    plan: Plan
    """Which units survive."""
    graph: ChannelGraph
    """Graph of the full network."""
    full: Any
    """Variables of the full network just before the cut, so after absorption."""
    report: Report
    inputs: tuple[Any, ...] | None = None
    """Shapes of what the model was called with, and the keyword arguments of the call."""
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.module, self.variables, self.plan))


def prune(
    model: Any,
    variables: Any,
    ratio: float | None,
    *inputs: Any,
    scores: Any = None,
    absorb: bool = False,
    selection: bool = True,
    modes: Sequence[Mode] | None = None,
    **options: Any,
) -> Pruned:
    """Cut a share of the channels out of a trained model, and return a model of the same kind that is smaller.

    The table says what `variables` are for each kind of model, and how the cut one, `pruned.module`, is called:

    | model | variables | call |
    | --- | --- | --- |
    | Linen module | all collections | `module.apply(pruned.variables, *inputs, ...)`, with every argument of Flax |
    | NNX module | None | `module(*inputs)`, and its methods; its variables have the paths that they had |
    | Equinox module | None, or its `eqx.nn.State` | `module(*inputs)`; the small state is `pruned.variables.state` |
    | Keras model on JAX | None | `module.stateless_call(*pruned.variables, *inputs, ...)` |
    | `hk.transform` | params | `module.apply(pruned.variables, key, *inputs)` |
    | `hk.transform_with_state` | (params, state) | `module.apply(*pruned.variables, key, *inputs)` |
    | function | its first argument | `module(pruned.variables, *inputs)` |

    The cut model runs the program of the full one on the small arrays (see `narrow`), so nothing is asked of the
    model's code. A Linen module with a method `resized(variables)`, which returns the module with the widths of
    `variables`, is built that way if it then computes the same.

    The graph is traced in evaluation, and also in training where the kind tells how: a parameter of the call named
    `train`, `training`, `is_training`, `deterministic`, `inference` or `use_running_average`, and `train()` and
    `eval()` of NNX or the `inference` fields of Equinox. If training cannot be traced by itself, evaluation decides.

    Args:
      model: one of the table.
      variables: as in the table.
      ratio: share of the channels to cut, in [0, 1); None with `threshold`, `macs`, `params` or `latency`.
      *inputs: what the model is called with: pytrees of arrays or `ShapeDtypeStruct`s. The check uses the arrays.
      scores: what says which channels matter: as for `plan`, or a function `(graph, variables) -> scores`. By default
        the |scale| of BatchNorm layers (Liu et al., ICCV 2017), and for a network without any `criteria.magnitude` with
        `normalize="mean"`, so that layers of all sizes compete.
      absorb: first move relu(bias), the constant that a channel outputs, into the layers behind; see `jaxslim.absorb`.
        For models of one input, given as an array, whose variables have `params`.
      selection: whether a norm may read fewer channels than its source keeps for other readers; see `trace`.
      modes: the ways in which the model is used, in place of the above: functions `(variables, *inputs)`, for NNX
        `(model, *inputs)`, for Equinox `(model, *inputs)` or `(model, state, *inputs)`. The first is the one checked.
      **options: further arguments of `plan` (min_channels, threshold, macs, params, latency, scope, ratios,
        max_layer_ratio, multiple_of, leave); all others are keyword arguments of the model's call, for example
        `train=False` or `method="encode"`. For `latency` some cut networks are timed on the inputs, on this device.

    Returns:
      `Pruned`. Its outputs on `inputs` agree with those of the full model in which all slices of what was cut are zero,
      as far as `graph.exact` says that they do; `report.difference` has the difference.

    Raises:
      InputError: the model is of no kind, does not run with the inputs, or has no channel that can go; NaN in what
        stays; as for `plan`.
    """
    _check_inputs(inputs)
    chosen = {name: options.pop(name) for name in PLAN_OPTIONS & options.keys()}
    model = network(model, variables, inputs, options, modes)
    graph = traced(model, inputs, selection, given=modes is not None)
    if "latency" in chosen:
        chosen["measure"] = _timer(model, graph, check.examples(inputs))
    which = plan(graph, scored(model, graph, scores), ratio, **chosen)
    full = _absorbed(model, graph, which, inputs) if absorb else model.variables
    pruned = apply_plan(model, graph, which, full, inputs)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), inputs)
    return dataclasses.replace(pruned, inputs=shapes, call=options)


def _check_inputs(inputs: Sequence[Any]) -> None:
    if not inputs:
        raise InputError("There are no inputs to trace the model with; pass what it is called with, such as images.")
    for leaf in jax.tree.leaves(inputs):
        if isinstance(leaf, bool | str):
            raise InputError(f"An input is {leaf!r}; pass what is no array by its name, for example train=False.")


def traced(model: Network, inputs: Sequence[Any], selection: bool = True, given: bool = False) -> ChannelGraph:
    """The graph of all modes; of evaluation alone where a training mode that we guessed does not run."""
    try:
        return trace(model.modes, model.variables, *inputs, selection=selection)
    except InputError:
        if given or len(model.modes) == 1:
            raise
        return trace(model.modes[:1], model.variables, *inputs, selection=selection)


def scored(model: Network, graph: ChannelGraph, scores: Any = None) -> Any:
    """The scores that `plan` takes, from the argument `scores` of `prune`."""
    if callable(scores):
        return scores(graph, model.variables)
    if scores is not None:
        return scores
    scales = batch_scales(graph, model.variables)
    return magnitude(graph, model.trained(model.variables), normalize="mean") if scales is None else scales


def _timer(model: Network, graph: ChannelGraph, inputs: Sequence[Any]) -> Callable[[Plan], float]:
    """Seconds that one evaluation of a cut network takes."""
    return lambda which: latency(narrow(model.modes[0], graph, which), cut(graph, model.variables, which), *inputs)


def _absorbed(model: Network, graph: ChannelGraph, plan: Plan, inputs: Sequence[Any]) -> Any:
    if len(inputs) != 1 or not isinstance(model.variables, Mapping) or "params" not in model.variables:
        raise InputError(
            "absorb is for models of one input whose variables have params, as Linen's; leave it out here."
        )
    return absorb_constants(model.modes[0], model.variables, graph, plan, *inputs)


def apply_plan(
    model: Network, graph: ChannelGraph, plan: Plan, full: Any, inputs: Sequence[Any], *, compare: bool = True
) -> Pruned:
    """Cut the variables `full`, build the cut model, and compare it with the full one by numbers.

    Raises:
      InputError: what stays holds NaN, or the two differ although all that was cut is exact.
    """
    small, gap = cut(graph, full, plan), None
    run, plain = narrow(model.modes[0], graph, plan), model.rebuilt(small)
    gone = ~graph.survivors(plan.keep)
    exact = float(graph.exact[gone].mean()) if gone.any() else 1.0
    if compare:
        gap, plain = _compared(model, run, plain, full, mask(graph, full, plan), small, inputs, exact == 1)
    report = Report(
        params=(_size(model.trained(full)), _size(model.trained(small))),
        macs=_macs(model, full, run, small, inputs),
        exact=exact,
        difference=gap,
    )
    return Pruned(plain.model if plain else model.narrowed(graph, plan, small), small, plan, graph, full, report)


def _compared(
    model: Network,
    run: Mode,
    plain: Plain | None,
    full: Any,
    masked: Any,
    small: Any,
    inputs: Sequence[Any],
    exact: bool,
) -> tuple[float, Plain | None]:
    """The difference of a cut network from the masked one, and `plain` if it computes what the cut network does."""
    evaluation, inputs = model.modes[0], check.examples(inputs)
    expected = check.outputs(evaluation, masked, inputs)
    check.check_finite(small, expected, lambda: check.outputs(evaluation, full, inputs))

    def agree(gap: float) -> bool:
        return gap <= check.NOISE or gap <= check.rounding(evaluation, masked, inputs)

    built = None if plain is None else check.outputs(plain.run, small, inputs)
    if plain and built and exact and agree(gap := check.difference(expected, built)):
        return gap, plain  # the cut program would give the same: it need not be compiled
    found = check.outputs(run, small, inputs)
    gap = check.difference(expected, found)
    if exact and not agree(gap):
        raise InputError(
            f"The cut network's outputs differ from the masked full network's by {gap:.2g} of the largest, where they "
            "should agree. This is a mistake of jaxslim, so nothing is returned; report it with the model. Until then, "
            "name layers to spare in leave."
        )
    return gap, plain if built and agree(check.difference(found, built)) else None


def _size(tree: Any) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def _macs(model: Network, full: Any, run: Mode, small: Any, inputs: Sequence[Any]) -> tuple[int, int] | None:
    def macs(mode: Mode, variables: Any) -> int:
        if model.batched:
            return count(mode, variables, *inputs).macs
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *np.shape(x)), x.dtype), inputs)
        over_batch = jax.vmap(mode, in_axes=(None, *[0] * len(inputs)))
        return count(over_batch, variables, *batch).macs

    try:
        return macs(model.modes[0], full), macs(run, small)
    except InputError:  # it loops as often as its values say
        return None
