"""Each layer cut alone: rows by hand and against NumPy, one compiled evaluation, ratios that a plan and prune take."""

import dataclasses
import functools
import itertools
import json
import re
import shlex

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_commands import assert_one_message, flat, invoke, make_home
from test_sweep import accuracy

import jaxslim
from jaxslim import data
from jaxslim.commands import main as every_command
from jaxslim.errors import InputError
from jaxslim.experiments import sensitivity as experiment
from jaxslim.experiments.cutting import save_cut
from jaxslim.experiments.sensitivity import read_ratios, sensitivity, study
from jaxslim.files import LOCK, locked
from jaxslim.reporting import canvas
from jaxslim.reporting.plot_layers import plot_layers
from jaxslim.reporting.results import LayerRow, Sensitivity, harmless
from jaxslim.reporting.sensitivity import table
from jaxslim.training import evaluation
from jaxslim.training.config import LAYER_RATIOS


def two_branches(params, x):
    """Two layers side by side; `idle` leads to weights of zero."""
    return x @ params["busy"] @ params["busy_out"] + x @ params["idle"] @ params["idle_out"]


EYE = np.eye(4, dtype=np.float32)
PARAMS = {"busy": EYE, "busy_out": EYE, "idle": EYE, "idle_out": 0 * EYE}
SCORES = {"busy": np.array([4.0, 3, 2, 1]), "idle": np.array([1.0, 2, 3, 4])}


def test_a_layer_that_does_not_matter_may_lose_most():
    """Each channel of `busy` tells one of four classes; without its channel a class is taken for class 0."""
    graph = jaxslim.trace(two_branches, PARAMS, EYE)

    def right(plan):
        return np.mean(two_branches(jaxslim.mask(graph, PARAMS, plan), EYE).argmax(-1) == np.arange(4))

    rows = list(sensitivity(graph, SCORES, right, [0.25, 0.5, 0.75]))
    assert [(row.layer, row.ratio, row.before, row.after, row.accuracy) for row in rows] == [
        ("busy", 0.25, 4, 3, 0.75),
        ("busy", 0.5, 4, 2, 0.5),
        ("busy", 0.75, 4, 1, 0.25),
        ("idle", 0.25, 4, 3, 1.0),
        ("idle", 0.5, 4, 2, 1.0),
        ("idle", 0.75, 4, 1, 1.0),
    ]
    assert [row.params for row in rows] == [row.macs for row in rows] == [56 / 64, 48 / 64, 40 / 64] * 2
    assert harmless(rows, 1.0, 0.01) == {"busy": 0.0, "idle": 0.75}
    assert harmless(rows, 1.0, 0.25) == {"busy": 0.25, "idle": 0.75}
    plan = jaxslim.plan(graph, SCORES, ratios=harmless(rows, 1.0, 0.25))
    assert [layer.after for layer in plan.layers] == [3, 1]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_rows_are_those_of_plain_numpy(widths, seed):
    """A chain of layers, of which one at a time loses its channels with the lowest scores."""
    rng = np.random.default_rng(seed)
    sizes = [3, *widths, 2]
    params = {f"w{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(itertools.pairwise(sizes))}
    params |= {f"b{i}": rng.normal(size=width).astype(np.float32) for i, width in enumerate(widths)}
    scores = {f"b{i}": rng.permutation(width).astype(float) for i, width in enumerate(widths)}
    inputs = rng.normal(size=(5, 3)).astype(np.float32)
    ratios = (0.0, 0.3, 0.5, 0.9)

    def apply(params, x):
        for i in range(len(widths)):
            x = abs(x @ params[f"w{i}"] + params[f"b{i}"][None])
        return x @ params[f"w{len(widths)}"]

    def mean(plan):
        return float(apply(jaxslim.mask(graph, params, plan), inputs).mean())

    graph = jaxslim.trace(apply, params, inputs)
    found = list(sensitivity(graph, scores, mean, ratios))
    expected = []
    for i, width in enumerate(widths):
        for ratio in ratios if width > 1 else ():  # one channel stays
            gone = np.isin(np.arange(width), np.argsort(scores[f"b{i}"])[: int(width * ratio + 1e-9)])
            less = params | {name: np.where(gone, 0, params[name]) for name in (f"w{i}", f"b{i}")}
            left = sum(map(np.size, params.values())) - gone.sum() * (sizes[i] + 1 + sizes[i + 2])
            expected.append((f"b{i}", ratio, width - gone.sum(), left, apply(less, inputs).mean()))
    assert [row[:3] for row in expected] == [(row.layer, row.ratio, row.after) for row in found]
    assert [row[3] / sum(map(np.size, params.values())) for row in expected] == [row.params for row in found]
    np.testing.assert_allclose([row.accuracy for row in found], [row[4] for row in expected], rtol=1e-3, atol=1e-5)


def test_plans_that_cut_the_same_are_measured_once():
    graph, seen = jaxslim.trace(two_branches, PARAMS, EYE), []
    rows = list(sensitivity(graph, SCORES, lambda plan: seen.append(plan) or 1.0))
    assert len(rows) == 2 * len(LAYER_RATIOS)
    assert sorted(np.count_nonzero(~plan.keep) for plan in seen) == [0, 1, 1, 2, 2, 3, 3]


def test_a_ratio_that_a_layer_does_not_allow_has_no_row():
    graph = jaxslim.trace(two_branches, PARAMS, EYE)
    rows = list(sensitivity(graph, SCORES, lambda plan: 1.0, [0.25, 0.5, 0.75], min_channels=2))
    assert [(row.layer, row.ratio) for row in rows] == [(name, r) for name in ("busy", "idle") for r in (0.25, 0.5)]
    with pytest.raises(InputError, match=r"The scores busy have shape \(3,\); the parameter has shape \(4, 4\)"):
        list(sensitivity(graph, {"busy": np.ones(3)}, lambda plan: 1.0))


def test_a_layer_without_a_channel_that_can_go_has_no_row():
    params = {"w": np.ones((3, 4)), "a": np.ones(4), "v": np.ones((4, 1)), "one": np.ones(1), "u": np.ones((1, 2))}

    def apply(params, x):
        return (x @ params["w"] * params["a"][None]) @ params["v"] * params["one"][None] @ params["u"]

    graph = jaxslim.trace(apply, params, np.ones((1, 3)))
    scores = {"a": np.arange(4.0), "one": np.ones(1)}
    assert {row.layer for row in sensitivity(graph, scores, lambda plan: 1.0)} == {"a"}


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((), r"The ratios are \[\]; give at least one, each once, for example 0\.3 0\.5 0\.7\."),
        ((0.5, 0.5), r"The ratios are \[0\.5, 0\.5\]; give at least one, each once"),
        ((0.5, 1.0), r"The ratio is 1\.0; it must lie in \[0, 1\): 0\.7 cuts 70 % of the layer's channels\."),
        ((float("nan"),), r"The ratio is nan; it must lie in \[0, 1\)"),
    ],
)
def test_ratios_that_are_none(ratios, message):
    graph = jaxslim.trace(two_branches, PARAMS, EYE)
    with pytest.raises(InputError, match=f"^{message}"):
        next(sensitivity(graph, SCORES, lambda plan: 1.0, ratios))


# Of a checkpoint


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.getbasetemp())


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return functools.partial(invoke, capsys, every_command)


def test_rows_are_those_of_the_cut_networks(home):
    result = study(home / "sparse", ratios=(0.75,))
    module, variables, meta = jaxslim.load(home / "sparse")
    images = data.load(str(home / "data.npz"), image_size=8, channels=1)
    assert result.accuracy == meta["metrics"]["accuracy"]
    assert [(row.layer, row.ratio) for row in result.rows] == [("bn0", 0.75), ("bn1", 0.75)]
    for row in result.rows:
        small = jaxslim.prune(module, variables, None, np.zeros((1, 8, 8, 1)), ratios={row.layer: row.ratio})
        assert row.accuracy == accuracy(small.module, small.variables, images)
        shares = tuple(after / before for before, after in (small.report.params, small.report.macs))
        assert (row.params, row.macs) == pytest.approx(shares)
        widths = {layer.name: layer.after for layer in small.plan.layers}
        assert widths == {"bn0": 4, "bn1": 8} | {row.layer: row.after}
    assert len({row.accuracy for row in result.rows}) > 1  # or the comparison would show nothing


def test_rows_of_networks_that_are_adapted_before_the_cut(home, tmp_path):
    how = {"absorb": True, "recalibrate": 2}
    images = data.load(str(home / "data.npz"), image_size=8, channels=1)
    (row,) = study(home / "sparse", ratios=(0.75,), **how).layers["bn1"]
    save_cut(home / "sparse", tmp_path / "cut", None, ratios={"bn1": 0.75}, **how)
    saved = jaxslim.load(tmp_path / "cut")
    assert saved.meta["plan"]["ratios"] == {"bn1": 0.75}
    assert row.accuracy == accuracy(saved.module, saved.variables, images)


@pytest.fixture
def steps(monkeypatch):
    """The compiled evaluations that are made."""
    made, build = [], evaluation.evaluate_step
    monkeypatch.setattr(evaluation, "evaluate_step", lambda *args: made.append(build(*args)) or made[-1])
    return made


def test_one_compiled_evaluation_serves_all_layers(home, steps):
    assert len(study(home / "sparse", absorb=True).rows) == 2 * len(LAYER_RATIOS)
    assert [step._cache_size() for step in steps] == [1]


def test_what_zeroed_channels_do_not_stand_in_for_is_cut(home, steps, monkeypatch):
    exact, trace = study(home / "sparse", ratios=(0.5, 0.75)), experiment.traced

    def inexact(*args):
        graph = trace(*args)
        return dataclasses.replace(graph, exact=np.zeros_like(graph.exact))

    monkeypatch.setattr(experiment, "traced", inexact)
    assert study(home / "sparse", ratios=(0.5, 0.75)).rows == exact.rows
    assert [step._cache_size() for step in steps] == [1] + [1] + 4 * [1]


def test_the_commands_lead_from_training_to_a_cut_by_layer(call, tmp_path, monkeypatch):
    """On the digits, each layer loses what it can lose alone."""
    monkeypatch.chdir(tmp_path)
    small = "train --epochs 1 --image-size 8 --model-args widths=8,M,8"
    assert call(*shlex.split(small)).code == 0
    done = call("sensitivity", "runs/digits-sparse", "--ratios", 0.25, 0.5, "--tolerance", 0.5)
    assert done.code == 0, done.err
    out = tmp_path / "runs" / "digits-sparse-sensitivity"
    assert {path.name for path in out.iterdir()} == {"sensitivity.json", "sensitivity.png", LOCK}
    record = json.loads((out / "sensitivity.json").read_text())
    assert [(row["layer"], row["ratio"]) for row in record["rows"]] == [
        (layer, ratio) for layer in ("bn0", "bn1") for ratio in (0.25, 0.5)
    ]
    ends = [row for row in record["rows"] if row["ratio"] == 0.5]
    assert done.err.splitlines() == [f"{row['layer']}: accuracy {row['accuracy']:.2%} at ratio 0.5" for row in ends]
    for layer in ("bn0", "bn1"):
        shares = [f"{100 * row['accuracy']:.1f}" for row in record["rows"] if row["layer"] == layer]
        assert f" {layer} {' '.join(shares)} {record['ratios'][layer]} " in flat(done.out)
    assert f"uncut {record['accuracy']:.2%}" in done.out
    assert f"\nPlot: {out}/sensitivity.png\n" in done.out
    assert any(record["ratios"].values())
    following = re.search(r"^Next: jaxslim (prune .*)$", done.out, re.MULTILINE)[1]
    cut = call(*shlex.split(following))
    assert cut.code == 0, cut.err
    assert "channels by ratios of layers, cut" in flat(cut.out)
    widths = [int(8 - 8 * record["ratios"][layer]) for layer in ("bn0", "bn1")]
    module, _, meta = jaxslim.load(tmp_path / "runs" / "digits-sparse-pruned")
    assert [*module.widths] == [widths[0], "M", widths[1]]
    assert meta["plan"]["ratios"] == record["ratios"]


def test_a_ratio_for_the_layers_that_the_file_leaves_out(call, home, tmp_path):
    (tmp_path / "mine.json").write_text('{"bn0": 0.25}')
    words = ("--ratios", tmp_path / "mine.json", "--out", tmp_path / "cut")
    done = call("prune", home / "sparse", "--ratio", 0.5, *words)
    assert "channels by ratios of layers, requested 50.00%, cut" in flat(done.out)
    assert [*jaxslim.load(tmp_path / "cut").module.widths] == [3, "M", 4]


def test_a_network_whose_layers_can_lose_nothing(call, home, tmp_path, monkeypatch):
    whole = Sensitivity(title="x", accuracy=0.9, tolerance=0.01, rows=(ROW,), ratios={"a": 0.0})
    monkeypatch.setattr(experiment, "study", lambda *args, **options: whole)
    done = call("sensitivity", home / "sparse", "--out", tmp_path / "out")
    *_, said, following = done.out.splitlines()
    assert said == "Each cut costs more than 1 points of accuracy."
    assert following == f"Next: jaxslim sweep {home}/sparse --finetune-epochs 10"


def test_two_analyses_into_one_folder(call, home, tmp_path):
    with locked(tmp_path / "out", "--out"):
        done = call("sensitivity", home / "sparse", "--out", tmp_path / "out")
    assert_one_message(done, f"{tmp_path}/out is in use by another process")
    assert not (tmp_path / "out").exists()


def test_a_network_without_a_channel_to_measure(home):
    with pytest.raises(InputError, match=r"^No layer of \S+ loses a channel at these ratios; give larger"):
        study(home / "sparse", min_channels=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"There is no file \S+/x\.json; give the sensitivity\.json of jaxslim sensitivity, or an object"),
        ("{", r"\S+/x\.json is no JSON; give"),
        ("[" * 100_000, r"\S+/x\.json is no JSON; give"),
        ("[0.5]", r"\S+/x\.json holds no ratios of layers; give"),
        ("{}", r"\S+/x\.json holds no ratios of layers; give"),
        ('{"bn0": "0.5"}', r"\S+/x\.json gives bn0 the ratio '0\.5'; give"),
        ('{"ratios": {"bn0": true}}', r"\S+/x\.json gives bn0 the ratio True; give"),
    ],
)
def test_files_that_hold_no_ratios(tmp_path, text, message):
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=f"^{message}"):
        read_ratios(tmp_path / "x.json")


def test_bytes_that_are_no_text_hold_no_ratios(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"^\S+/x\.json is no JSON"):
        read_ratios(tmp_path / "x.json")


# The table and the plot

ROW = LayerRow(layer="a", ratio=0.5, before=8, after=4, accuracy=0.3, params=0.5, macs=None)


def many(count):
    rows = tuple(
        dataclasses.replace(ROW, layer=f"stage/block_{i}", ratio=ratio, accuracy=0.9 - ratio * i / 100)
        for i in range(count)
        for ratio in (0.3, 0.6)
    )
    return Sensitivity(title="All", accuracy=0.9, tolerance=0.02, rows=rows, ratios=harmless(rows, 0.9, 0.02))


def test_the_table_leaves_a_ratio_empty_that_was_not_measured():
    rows = (ROW, dataclasses.replace(ROW, layer="b", ratio=0.25, accuracy=0.888))
    result = Sensitivity(title="", accuracy=0.9, tolerance=0.02, rows=rows, ratios=harmless(rows, 0.9, 0.02))
    shown = table(result)
    assert shown.header == ["Layer", "0.25", "0.5", "Harmless"]
    assert shown.rows == [["a", "", "30.0", "0.0"], ["b", "88.8", "", "0.25"]]


@pytest.mark.parametrize("count", [1, 4, 17])
def test_the_plot_has_a_panel_for_each_layer(count):
    result = many(count)
    with canvas.report_style():
        figure = plot_layers(result)
        figure.draw_without_rendering()
    panels = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title(loc="left").replace("\n", "") for panel in panels] == [*result.ratios]
    for panel, (name, rows) in zip(panels, result.layers.items(), strict=True):
        *_, own, mark = panel.lines
        assert [*own.get_xdata()] == [0, 0.3, 0.6]
        np.testing.assert_allclose(own.get_ydata(), [90, *(100 * row.accuracy for row in rows)])
        assert [*mark.get_xdata()] == [result.ratios[name]]
        low, high = panel.get_ylim()
        assert low < min(own.get_ydata()) <= max(own.get_ydata()) < high
    boxes = [panel.get_tightbbox() for panel in panels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    legend = figure.legends[0].get_window_extent()
    assert not any(box.overlaps(legend) for box in boxes)
