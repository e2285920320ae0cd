"""Plans by cost, by layer and by alike layers: the cost of the cut program is met, and each layer gets its share."""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program, programs
from zoo.gpt import NETWORKS as GPTS
from zoo.vit import NETWORKS as VITS

import jaxslim
from jaxslim import criteria
from jaxslim.core.groups import alike, groups
from jaxslim.core.layers import scored_layers


@pytest.fixture
def in_64_bits() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


SOME = settings(max_examples=max(1, settings.default.max_examples // 5))


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def costs(apply: Any, graph: jaxslim.ChannelGraph, variables: Any, plan: jaxslim.Plan, *inputs: Any) -> jaxslim.Cost:
    """Of the cut program, counted anew."""
    small = jax.eval_shape(functools.partial(jaxslim.cut, graph, plan=plan), shapes_of(variables))
    return jaxslim.count(jaxslim.narrow(apply, graph, plan), small, *inputs)


@pytest.mark.usefixtures("in_64_bits")
@SOME
@given(programs(3), st.integers(0, 99), st.floats(0.05, 0.95), st.sampled_from([1, 3]))
def test_a_target_is_met_by_as_few_channels_as_it_takes(program: Program, seed: int, share: float, many: int) -> None:
    variables, inputs = program.init(), (program.key(), program.inputs(1))
    graph = jaxslim.trace(program, variables, *inputs)
    scores = criteria.random(graph, seed=seed)
    full = jaxslim.count(program, variables, *inputs)
    for name in ("macs", "params"):
        try:
            plan = jaxslim.plan(graph, scores, multiple_of=many, **{name: share})
        except jaxslim.InputError as error:
            if "cannot be met" not in str(error):
                raise
            least = float(re.findall(rf"is {name}=([\d.e-]+)\.$", str(error))[0])
            assert least > share - 1e-4
            if least < 1:
                assert jaxslim.plan(graph, scores, multiple_of=many, **{name: least}).target is not None
            continue
        assert plan.target is not None
        cost = costs(program, graph, variables, plan, *inputs)
        left = getattr(cost, name) / getattr(full, name)
        assert plan.target.reached == pytest.approx(left, abs=1e-9)
        assert left <= share + 1e-9


class ResNet(nn.Module):
    """Two basic blocks, the second with a projection."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(32, (3, 3), use_bias=False)(x)))
        for width in (32, 48):
            y = nn.relu(norm()(nn.Conv(width, (3, 3), use_bias=False)(x)))
            y = norm()(nn.Conv(width, (3, 3), use_bias=False)(y))
            x = nn.relu(y + (x if width == 32 else norm()(nn.Conv(width, (1, 1), use_bias=False)(x))))
        return nn.Dense(10)(x.mean((1, 2)))


def vgg() -> tuple[Any, Any, Any]:
    module, images = jaxslim.vgg11(), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return module.apply, jax.eval_shape(module.init, jax.random.key(0), images), images


def resnet() -> tuple[Any, Any, Any]:
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    return ResNet().apply, jax.eval_shape(ResNet().init, jax.random.key(0), images), images


def vit() -> tuple[Any, Any, Any]:
    network = next(network for network in VITS if network.name == "vit_plain")
    return network.apply, network.variables, network.inputs[0]


@pytest.mark.parametrize("network", [vgg, resnet, vit])
@pytest.mark.parametrize("target", [{"macs": 0.5}, {"params": 0.3}])
def test_targets_are_hit_within_a_point(network: Callable[[], Any], target: dict[str, float]) -> None:
    apply, variables, images = network()
    graph = jaxslim.trace(apply, variables, images)
    plan = jaxslim.plan(graph, criteria.random(graph), **target)
    cost, full = costs(apply, graph, variables, plan, images), jaxslim.count(apply, variables, images)
    ((name, share),) = target.items()
    assert share - 0.01 <= getattr(cost, name) / getattr(full, name) <= share


def test_prune_takes_targets() -> None:
    images = jnp.zeros((1, 16, 16, 3))
    variables = ResNet().init(jax.random.key(0), images)
    pruned = jaxslim.prune(ResNet(), variables, None, images, macs=0.5, scores=criteria.random)
    assert pruned.report.macs is not None
    assert 0.49 <= pruned.report.macs[1] / pruned.report.macs[0] <= 0.5
    assert "macs: " in repr(pruned.plan)
    pruned = jaxslim.prune(ResNet(), variables, None, images, latency="100 s", scores=criteria.random)
    assert pruned.plan.keep.all()
    pruned = jaxslim.prune(ResNet(), variables, None, images, params=0.3, scores=criteria.random)
    assert 0.29 <= pruned.report.params[1] / pruned.report.params[0] <= 0.3


def test_a_latency_is_met_by_what_was_measured() -> None:
    """Here a network takes a microsecond for each unit that stays, and three more."""
    apply, variables, images = resnet()
    graph = jaxslim.trace(apply, variables, images)
    measured: list[float] = []

    def measure(plan: jaxslim.Plan) -> float:
        measured.append((plan.keep.sum() + 2) * 1e-6)
        return measured[-1]

    scores = criteria.random(graph)
    plan = jaxslim.plan(graph, scores, latency=0.5, measure=measure)
    total = graph.num_units + 3
    assert plan.target is not None
    assert 0.48 < plan.target.reached <= 0.5
    assert (plan.keep.sum() + 2) / total == pytest.approx(plan.target.reached)
    assert len(measured) <= 8
    plan = jaxslim.plan(graph, scores, latency="100 us", measure=measure)
    assert plan.keep.sum() + 2 <= 100
    assert "latency: 0.1 ms, 100 us wanted" in repr(plan)
    with pytest.raises(
        jaxslim.InputError, match=r"latency=1us cannot be met: the full network takes 0\.\d+ ms, and wit"
    ):
        jaxslim.plan(graph, scores, latency="1us", measure=measure)


# ---------------------------------------------------------------------------------------------------------------------
# Scope.


@pytest.mark.usefixtures("in_64_bits")
@SOME
@given(programs(3), st.integers(0, 99), st.floats(0, 0.6), st.sampled_from(["layer", "alike"]))
def test_each_layer_or_class_of_layers_loses_its_share(program: Program, seed: int, ratio: float, scope: Any) -> None:
    variables, inputs = program.init(), (program.key(), program.inputs(1))
    graph = jaxslim.trace(program, variables, *inputs)
    scores = criteria.random(graph, seed=seed)
    group = np.where(graph.choosable, groups(graph) if scope == "layer" else alike(graph), 0)
    try:
        plan = jaxslim.plan(graph, scores, ratio, scope=scope)
    except jaxslim.InputError as error:
        if "cannot be met" not in str(error):
            raise
        return
    if len(graph.below[0]) or plan.protected:
        return  # others go along, or instead
    for number in range(1, group.max() + 1):
        own = np.flatnonzero(group == number)
        gone = own[~plan.keep[own]]
        assert math.floor(len(own) * ratio - 1e-9) <= len(gone) <= math.ceil(len(own) * ratio + 1e-9)
        assert not len(gone) or scores[gone].max() <= scores[own[plan.keep[own]]].min(initial=2)


def test_layers_are_alike_whatever_their_widths() -> None:
    apply, variables, images = resnet()
    graph = jaxslim.trace(apply, variables, images)
    group, kind = groups(graph), alike(graph)

    def of(name: str, numbers: np.ndarray) -> set[int]:
        number = graph.find(("params", name, "scale"))
        assert number is not None
        return set(numbers[graph.units[number][0]].tolist())

    assert of("BatchNorm_0", group) == of("BatchNorm_2", group)  # one residual stream
    assert len(of("BatchNorm_0", group) | of("BatchNorm_1", group) | of("BatchNorm_3", group)) == 3
    assert of("BatchNorm_1", kind) == of("BatchNorm_3", kind)  # inside the two blocks
    assert of("BatchNorm_0", kind) != of("BatchNorm_1", kind)


# ---------------------------------------------------------------------------------------------------------------------
# Layers by name: ratios, and whole heads or widths of heads.


def test_layers_have_ratios_of_their_own() -> None:
    apply, variables, images = resnet()
    graph = jaxslim.trace(apply, variables, images)
    scores = criteria.random(graph)
    plan = jaxslim.plan(graph, scores, ratios={"Conv_1": 0.25, "*Conv_3": 0.5})
    assert {layer.name: layer.before - layer.after for layer in plan.layers if layer.after < layer.before} == {
        "Conv_1": 8,
        "Conv_3": 24,
    }
    both = jaxslim.plan(graph, scores, 0.5, ratios={"Conv_1": 0.0})
    lost = {layer.name: layer.before - layer.after for layer in both.layers}
    assert lost["Conv_1"] == 0
    assert sum(lost.values()) == (graph.num_units - 32) // 2


def normed(v: Any, x: Any) -> Any:
    """A stream that two norms read, as in a pre-activation network."""
    h = x @ v["a"]
    return jax.nn.relu(h * v["g"][None]) @ v["b"] + h @ v["c"]


def test_ratios_of_layers_hold_for_what_goes_along() -> None:
    """A channel behind a norm goes with that of the stream, and can go alone; the order of the ratios decides."""
    variables = {"a": np.ones((2, 8)), "g": np.ones(8), "b": np.ones((8, 2)), "c": np.ones((8, 2))}
    graph = jaxslim.trace(normed, variables, np.ones((1, 2)))
    scores = np.arange(graph.num_units + 1.0)

    def kept(**ratios: float) -> dict[str, int]:
        return {layer.name: layer.after for layer in jaxslim.plan(graph, scores, ratios=ratios).layers}

    assert kept(g=0.25)["g"] == 6
    assert kept(a=0.5) | {"g": 4} == kept(a=0.5)
    with pytest.raises(jaxslim.InputError, match="The ratios contradict one another: channels that go take along"):
        kept(a=0.5, g=0.0)
    with pytest.raises(jaxslim.InputError, match=r"A ratio of 0.5 for a cannot be met: .* 0 of its 8 channels can go"):
        kept(g=0.0, a=0.5)


def test_a_ratio_for_elements_of_a_grid_names_rows_and_columns() -> None:
    def attend(v: Any, x: Any) -> Any:
        heads = (x @ v["q"]).reshape(len(x), 4, 6)
        return jnp.einsum("bhd,bgd->bhg", heads, heads).sum(-1) @ v["o"]

    graph = jaxslim.trace(attend, {"q": np.ones((2, 24)), "o": np.ones((4, 1))}, np.ones((1, 2)))
    with pytest.raises(jaxslim.InputError, match="No channel of q has a score of its own; name its rows or columns: q"):
        jaxslim.plan(graph, criteria.random(graph), ratios={"q": 0.5})


def test_a_threshold_counts_what_an_earlier_plan_cut() -> None:
    apply, variables, images = resnet()
    graph = jaxslim.trace(apply, variables, images)
    scores = criteria.random(graph)
    before = jaxslim.plan(graph, 1 - scores, 0.1)
    plan = jaxslim.plan(graph, scores, threshold=0.2, within=before)
    expected = (scores > 0.2) & before.keep
    np.testing.assert_array_equal(plan.keep[1:], expected[1:])


@pytest.mark.parametrize("name", [network.name for network in (*GPTS, *VITS)])
def test_heads_and_their_widths_are_chosen_by_pattern(name: str) -> None:
    network = next(network for network in (*GPTS, *VITS) if network.name == name)
    graph = jaxslim.trace(network.modes, network.variables, *network.inputs)
    scores = criteria.random(graph)
    layers, _ = scored_layers(graph, scores)  # query heads that share a key head are elements of a grid themselves
    rows = [layer.name for layer in layers if ":" in layer.name and graph.choosable[layer.units].all()]
    heads, widths = ([row for row in rows if re.search(f"^[^:]*:{end}", row)] for end in (r"\d+x-", r"-x\d+"))
    if not (heads and widths):
        pytest.skip("this network has a kernel with an axis of heads")
    for left, gone in ((heads, widths), (widths, heads)):
        others = [layer.name for layer in jaxslim.plan(graph, scores, 0.0).layers if ":" not in layer.name]
        plan = jaxslim.plan(graph, scores, ratios={**dict.fromkeys(gone, 0.5), "*": 0.0})
        after = {layer.name: layer.after / layer.before for layer in plan.layers}
        assert all(after[row] == 1 for row in left)
        assert any(after[row] < 1 for row in gone)
        assert any(after[other] < 1 for other in others)


def test_the_names_of_heads_work_in_leave() -> None:
    def attend(v: Any, x: Any) -> Any:
        heads = (x @ v["q"]).reshape(len(x), 4, 6)
        return jnp.einsum("bhd,bgd->bhg", heads, heads).sum(-1) @ v["o"]

    variables = {"q": np.ones((2, 24)), "o": np.ones((4, 1))}
    graph = jaxslim.trace(attend, variables, np.ones((1, 2)))
    scores = criteria.random(graph)
    before = {layer.name: layer.before for layer in jaxslim.plan(graph, scores, 0.0).layers}
    assert before == {"q": 24, "q:4x-": 4, "q:-x6": 6, "o": 4}
    plan = jaxslim.plan(graph, scores, 0.3, leave=["*:4x-"])  # of ten units three
    assert {layer.name: layer.after for layer in plan.layers} == {"q": 12, "q:4x-": 4, "q:-x6": 3, "o": 4}
    plan = jaxslim.plan(graph, scores, 0.2, leave=["q:-x*"])
    assert {layer.name: layer.after for layer in plan.layers} == {"q": 12, "q:4x-": 2, "q:-x6": 6, "o": 2}


MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("macs is 1.5; it must be a share in (0, 1): 0.5 leaves half.", {"macs": 1.5}),
    ("params is 0; it must be a share in (0, 1)", {"params": 0}),
    ("latency needs measure, a function of a plan that gives seconds", {"latency": 0.5}),
    ("The latency is 'soon'; give a share such as 0.5, or a time such as", {"latency": "soon", "measure": lambda _: 1}),
    ("macs=0.0001 cannot be met: with min_channels=1 and the layers left alone, the least that can", {"macs": 0.0001}),
    ("Give one of ratio, threshold, macs, params and latency, not macs and params", {"macs": 0.5, "params": 0.5}),
    ("scope is 'block'; it must be global, layer or alike.", {"ratio": 0.5, "scope": "block"}),
    ("The ratio of Conv_1 is 1.5; it must lie in [0, 1).", {"ratios": {"Conv_1": 1.5}}),
    ("A threshold compares all channels, so scope='layer' means nothing", {"threshold": 0.5, "scope": "layer"}),
    ("The latency is '1.2.3 ms'; give a share such as 0.5, or a time", {"latency": "1.2.3 ms", "measure": lambda _: 1}),
    ("The plan is for 2 units and the graph has 160", {"ratio": 0.5, "within": jaxslim.Plan(keep=np.ones(3, bool))}),
    ("There is no layer Cnov_1; the layers are Conv_0, Conv_1, Conv_3, Conv_4.", {"ratios": {"Cnov_1": 0.5}}),
    ("A ratio of 0.9 for Conv_1 cannot be met: with min_channels=8, the ratios before and the layers left alone, 24 of "
     "its 32 channels can go; the largest ratio is 0.75.", {"ratios": {"Conv_1": 0.9}, "min_channels": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "arguments"), MISTAKES, ids=[message[:30] for message, _ in MISTAKES])
def test_mistakes_are_one_sentence(message: str, arguments: dict[str, Any]) -> None:
    apply, variables, images = resnet()
    graph = jaxslim.trace(apply, variables, images)
    with pytest.raises(jaxslim.InputError, match=re.escape(message)):
        jaxslim.plan(graph, criteria.random(graph), **arguments)
