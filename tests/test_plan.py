"""Which channels a plan takes, worked by hand, and against a few lines of Python on random scores."""

import functools
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import jaxslim
from jaxslim.core.plan import Layer

Scores = list[list[float]]


@functools.cache
def graph_of(*widths: int) -> jaxslim.ChannelGraph:
    """Layers l0, l1, ... of these widths, one after the other."""
    params: dict[str, Any] = {}
    before = 2
    for i, width in enumerate(widths):
        params[f"l{i}"] = {"kernel": np.ones((before, width)), "scale": np.ones(width)}
        before = width
    params["out"] = {"kernel": np.ones((before, 2))}

    def apply(variables: Any, x: Any) -> Any:
        for i in range(len(widths)):
            layer = variables["params"][f"l{i}"]
            x = x @ layer["kernel"] * layer["scale"][None]
        return x @ variables["params"]["out"]["kernel"]

    return jaxslim.trace(apply, {"params": params}, np.ones((1, 2)))


def tree_of(scores: Scores) -> Any:
    return {"params": {f"l{i}": {"scale": np.array(values)} for i, values in enumerate(scores)}}


def plan_of(scores: Scores, ratio: float | None, **options: Any) -> jaxslim.Plan:
    return jaxslim.plan(graph_of(*map(len, scores)), tree_of(scores), ratio, **options)


def kept(plan: jaxslim.Plan, scores: Scores) -> list[list[int]]:
    """Indices that survive in each layer; units are numbered layer by layer."""
    parts = np.split(plan.keep[1:], np.cumsum([len(values) for values in scores])[:-1])
    return [np.flatnonzero(part).tolist() for part in parts]


HAND = [[0.5, 0.1, 0.9], [0.2, 0.3, 0.05, 0.8]]


def test_the_lowest_scores_of_all_layers_together_go() -> None:
    plan = plan_of(HAND, 0.5)  # int(7 * 0.5) = 3: 0.05, 0.1 and 0.2
    assert kept(plan, HAND) == [[0, 2], [1, 3]]
    assert plan.keep[0]
    assert plan.requested == 0.5
    assert plan.achieved == 3 / 7
    assert plan.layers == (Layer("l0", 3, 2, False), Layer("l1", 4, 2, False))
    assert plan.protected == ()


def test_ratio_zero_removes_nothing() -> None:
    for scores in (HAND, [[0.0, 0.0], [0.0]]):
        plan = plan_of(scores, 0.0)
        assert plan.keep.all()
        assert plan.achieved == 0


def test_among_equals_earlier_channels_go() -> None:
    scores = [[0.5] * 3, [0.5] * 4]
    assert kept(plan_of(scores, 2 / 7), scores) == [[2], [0, 1, 2, 3]]
    plan = plan_of(scores, 3 / 7)  # the last of l0 has to stay, so the next in order goes
    assert kept(plan, scores) == [[2], [1, 2, 3]]
    assert plan.protected == ("l0",)
    scores = [[0.5, 0.1, 0.5], [0.5, 0.6]]
    assert kept(plan_of(scores, 3 / 5), scores) == [[2], [1]]


def test_a_layer_keeps_its_best_and_is_named() -> None:
    scores = [[0.1, 0.3, 0.2], [0.5, 0.6, 0.7, 0.8]]
    plan = plan_of(scores, 3 / 7)
    assert kept(plan, scores) == [[1], [1, 2, 3]]
    assert plan.protected == ("l0",)
    assert plan.achieved == 3 / 7
    plan = plan_of(scores, 3 / 7, min_channels=2)
    assert kept(plan, scores) == [[1, 2], [2, 3]]
    assert [layer.protected for layer in plan.layers] == [True, False]
    assert kept(plan_of(scores, 0.0, min_channels=9), scores) == [[0, 1, 2], [0, 1, 2, 3]]


def test_threshold() -> None:
    assert kept(plan_of(HAND, None, threshold=0.3), HAND) == [[0, 2], [3]]
    plan = plan_of(HAND, None, threshold=0.0)
    assert plan.keep.all()
    assert plan.requested is None
    scores = [[0.0, 1.0], [0.0, 0.0]]
    plan = plan_of(scores, None, threshold=0.0)
    assert kept(plan, scores) == [[1], [1]]
    assert (plan.achieved, plan.protected) == (0.5, ("l1",))


def test_print_shows_what_each_layer_loses() -> None:
    plan = plan_of([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7]], 3 / 7)
    assert repr([plan]) == "[Plan(4 of 7 units stay; 42.86% of the scored units are cut, 42.86% requested)]"
    assert str(plan).splitlines() == [
        "Plan(4 of 7 units stay; 42.86% of the scored units are cut, 42.86% requested)",
        "layer  channels  after  cut",
        "l0            3      1  67%  protected",
        "l1            4      3  25%",
    ]
    assert repr(plan_of(HAND, None, threshold=0.1)) == "Plan(5 of 7 units stay; 28.57% of the scored units are cut)"
    layers = tuple(Layer(f"layer{i}", 9, 9, False) for i in range(99))
    long = jaxslim.Plan(keep=np.ones(892, bool), requested=0.0, achieved=0.0, layers=layers)
    assert len(str(long).splitlines()) == 27
    assert "... 75 more ..." in str(long)


def test_multiple_of_restores_the_best_that_went() -> None:
    scores = [[0.1, 0.2, 0.3, 0.9, 0.8], [0.7, 0.7, 0.7]]
    assert kept(plan_of(scores, 3 / 8), scores) == [[3, 4], [0, 1, 2]]
    plan = plan_of(scores, 3 / 8, multiple_of=4)
    assert kept(plan, scores) == [[1, 2, 3, 4], [0, 1, 2]]
    assert (plan.requested, plan.achieved) == (3 / 8, 1 / 8)


def test_any_multiple_and_minimum_can_be_asked_for() -> None:
    for bounds in ({"multiple_of": 10**30}, {"min_channels": 10**30}):
        assert plan_of(HAND, None, threshold=9.0, **bounds).keep.all()


def test_layers_left_alone_lose_nothing_and_count_as_no_protection() -> None:
    plan = plan_of(HAND, 2 / 7, leave={"l1"})
    assert kept(plan, HAND) == kept(plan_of(HAND, 2 / 7, leave="l1"), HAND) == [[2], [0, 1, 2, 3]]
    assert plan.protected == ()
    with pytest.raises(jaxslim.InputError, match=r"2 of 7 channels can go; the largest ratio is 0\.2857\."):
        plan_of(HAND, 3 / 7, leave=["l1"])


@pytest.mark.parametrize("min_channels", [1, 3])
@given(data=st.data())
def test_plan_agrees_with_a_few_lines_of_python(min_channels: int, data: st.DataObject) -> None:
    score = st.sampled_from([0.0, 0.1, 0.2]) | st.floats(0, 1)
    scores = data.draw(st.lists(st.lists(score, min_size=1, max_size=6), min_size=1, max_size=4))
    ratio = data.draw(st.floats(0, 1, exclude_max=True))
    everything = [(value, layer, i) for layer, values in enumerate(scores) for i, value in enumerate(values)]
    layers = [[entry for entry in everything if entry[1] == layer] for layer in range(len(scores))]
    must_stay = [entry for layer in layers for entry in sorted(layer)[-min_channels:]]
    can_go = sorted(entry for entry in everything if entry not in must_stay)
    total = len(everything)
    count = math.floor(total * ratio + 1e-9)
    if count > len(can_go):
        with pytest.raises(jaxslim.InputError, match="cannot be met"):
            plan_of(scores, ratio, min_channels=min_channels)
        return
    plan = plan_of(scores, ratio, min_channels=min_channels)
    gone = [(layer, i) for _, layer, i in can_go[:count]]
    assert kept(plan, scores) == [
        [i for i in range(len(values)) if (layer, i) not in gone] for layer, values in enumerate(scores)
    ]
    assert plan.achieved == count / total
    saved = {layer for _, layer, _ in set(sorted(everything)[:count]) & set(must_stay)}
    assert plan.protected == tuple(f"l{layer}" for layer in sorted(saved))


@given(st.integers(2, 200), st.integers(0, 199))
@example(100, 29)
def test_a_share_of_whole_channels_is_met_exactly(total: int, gone: int) -> None:
    """0.29 of 100 channels are 29, although 0.29 * 100 is less than that in floating point."""
    gone %= total
    scores = [np.random.default_rng(total).random(total).tolist()]
    assert plan_of(scores, gone / total).achieved == gone / total


@example([[0.5, 0.1, 0.9], [0.2, 0.3, 0.05, 0.8]], 0.5)
@example([[0.5, 0.5, 0.7], [0.5, 0.1, 0.5]], 0.2)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.2]) | st.floats(0, 1), min_size=1, max_size=6), min_size=1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_threshold_chooses_as_the_reference_does(scores: Scores, ratio: float) -> None:
    """The reference keeps a channel if more than int(n * ratio) of all n scores are below its own."""
    everything = [value for values in scores for value in values]
    index = int(len(everything) * ratio)
    plan = plan_of(scores, None, threshold=sorted(everything)[index])
    survivors = [
        [i for i, value in enumerate(values) if sum(other < value for other in everything) > index] for values in scores
    ]
    assert plan.protected == tuple(f"l{layer}" for layer, own in enumerate(survivors) if not own)
    # The reference would empty these layers; here the best channel stays, the last one among equals.
    last_best = [[max(range(len(values)), key=lambda i: (values[i], i))] for values in scores]
    assert kept(plan, scores) == [own or best for own, best in zip(survivors, last_best, strict=True)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 99))
def test_a_ratio_that_cannot_be_met_names_the_largest_that_can(widths: list[int], least: int, seed: int) -> None:
    scores = [np.random.default_rng(seed).random(width).tolist() for width in widths]
    graph, tree, total = graph_of(*widths), tree_of(scores), sum(widths)
    can_go = sum(max(width - least, 0) for width in widths)
    impossible = (can_go + 1) / total
    assume(impossible < 1)
    with pytest.raises(jaxslim.InputError, match=rf"{can_go} of {total} channels can go") as caught:
        jaxslim.plan(graph, tree, impossible, least)
    largest = float(re.findall(r"the largest ratio is ([\d.]+)\.$", str(caught.value))[0])
    assert 0 <= can_go / total - largest <= 1e-4
    assert jaxslim.plan(graph, tree, largest, least).achieved <= largest + 1e-9
    assert jaxslim.plan(graph, tree, can_go / total, least).achieved == can_go / total


@settings(max_examples=30)
@given(st.integers(1, 5), st.floats(0, 0.6), st.integers(0, 99))
def test_multiples_hold_in_tied_layers_too(multiple: int, ratio: float, seed: int) -> None:
    graph, tree = concatenated(seed)
    plan = jaxslim.plan(graph, tree, ratio, multiple_of=multiple)
    for layer in plan.layers:
        assert layer.after % multiple == 0 or layer.after == layer.before
    assert not (jaxslim.plan(graph, tree, ratio).keep & ~plan.keep).any()


def concatenated(seed: int) -> tuple[jaxslim.ChannelGraph, Any]:
    """Layers a (5 channels) and b (6), and c (11) that scales both joined."""
    params = {"a": np.ones(5), "b": np.ones(6), "c": np.ones(11), "out": np.ones((11, 2))}

    def apply(p: Any, x: Any) -> Any:
        return x.sum() * (jnp.concatenate([p["a"], p["b"]]) * p["c"]) @ p["out"]

    graph = jaxslim.trace(apply, params, np.ones((1, 2)))
    assert graph.num_units == 11
    rng = np.random.default_rng(seed)
    return graph, {name: rng.random(len(params[name])) for name in ("a", "b", "c")}


def test_a_unit_has_the_largest_of_its_scores() -> None:
    def apply(p: Any, x: Any) -> Any:
        return (x @ p["a"]["kernel"] * p["a"]["scale"][None] * p["b"]["scale"][None]) @ p["out"]

    params = {"a": {"kernel": np.ones((2, 3)), "scale": np.ones(3)}, "b": {"scale": np.ones(3)}, "out": np.ones((3, 1))}
    graph = jaxslim.trace(apply, params, np.ones((1, 2)))
    assert graph.num_units == 3
    tree = {"a": {"scale": np.array([0.1, 0.2, 0.9])}, "b": {"scale": np.array([0.8, 0.3, 0.1])}}
    plan = jaxslim.plan(graph, tree, 1 / 3)
    assert plan.keep[1:].tolist() == [True, False, True]
    assert [(layer.before, layer.after) for layer in plan.layers] == [(3, 2), (3, 2)]
    # A score for each element, of which the largest of each last index counts.
    plan = jaxslim.plan(graph, {"a": {"kernel": np.array([[0.1, 0.5, 0.2], [0.6, 0.5, 0.2]])}}, 1 / 3)
    assert plan.keep[1:].tolist() == [True, True, False]


def test_fixed_channels_are_not_prunable_and_unscored_units_stay() -> None:
    graph = graph_of(3, 2)
    scores = {"l0": {"scale": np.array([0.3, 0.1, 0.2])}, "out": {"kernel": np.zeros(2)}}
    plan = jaxslim.plan(graph, {"params": scores}, 0.5)
    assert plan.keep.tolist() == [True, True, False, True, True, True]
    assert plan.achieved == 1 / 3
    assert plan.layers == (Layer("l0", 3, 2, False), Layer("out", 2, 2, False))


SCORES = tree_of(HAND)


@pytest.mark.parametrize(
    ("message", "scores", "arguments"),
    [
        ("The ratio is 1.0; it must lie in [0, 1)", SCORES, {"ratio": 1.0}),
        ("The ratio is -0.1; it must lie in [0, 1)", SCORES, {"ratio": -0.1}),
        ("The ratio is nan; it must lie in [0, 1)", SCORES, {"ratio": math.nan}),
        ("Give one of ratio, threshold, macs, params and latency, for example", SCORES, {"ratio": None}),
        ("params and latency, not ratio and threshold together", SCORES, {"ratio": 0.5, "threshold": 0.5}),
        ("The threshold is -1; it must be a number of at least 0", SCORES, {"ratio": None, "threshold": -1}),
        ("The threshold is nan; it must be a number of at least 0", SCORES, {"ratio": None, "threshold": math.nan}),
        ("min_channels is 0; it must be at least 1", SCORES, {"ratio": 0.5, "min_channels": 0}),
        ("multiple_of is 0; it must be at least 1", SCORES, {"ratio": 0.5, "multiple_of": 0}),
        ("There is no layer l7; the layers are l0, l1.", SCORES, {"ratio": 0.5, "leave": ["l7", "l0"]}),
        ("A ratio of 0.9 cannot be met: with min_channels=1", SCORES, {"ratio": 0.9}),
        ("5 of 7 channels can go; the largest ratio is 0.7142.", SCORES, {"ratio": 0.9}),
        ("There are no scores", {}, {"ratio": 0.5}),
        ("The scores params/l0/scale hold NaN", tree_of([[0.5, math.nan, 0.1]]), {"ratio": 0.5}),
        ("The scores params/l0/scale have shape (2,); the parameter has shape (3,)", tree_of([[1, 2]]), {"ratio": 0.5}),
        (
            "The scores hold params/l0/offset, which is no parameter",
            {"params": {"l0": {"offset": np.ones(1)}}},
            {"ratio": 0.5},
        ),
    ],
)
def test_errors_say_what_is_wrong(message: str, scores: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(jaxslim.InputError, match=re.escape(message)):
        jaxslim.plan(graph_of(3, 4), scores, **arguments)


def test_no_layer_loses_more_than_its_share() -> None:
    scores = [[0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.05]]
    plan = plan_of(scores, None, threshold=0.5, max_layer_ratio=0.5)  # l1 may lose one of three
    assert kept(plan, scores) == [[2, 3], [0, 1]]
    assert plan.protected == ("l0",)
    plan = plan_of(scores, 3 / 7, max_layer_ratio=0.5)
    assert kept(plan, scores) == [[2, 3], [0, 1]]
    with pytest.raises(jaxslim.InputError, match=r"max_layer_ratio=0.5 and the layers left alone, 3 of 7"):
        plan_of(scores, 4 / 7, max_layer_ratio=0.5)


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan])
def test_a_share_of_a_layer_lies_between_0_and_1(value: float) -> None:
    with pytest.raises(jaxslim.InputError, match=r"max_layer_ratio is .*; it must be a share in \(0, 1\]"):
        plan_of(HAND, 0.5, max_layer_ratio=value)
