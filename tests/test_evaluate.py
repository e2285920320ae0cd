"""What `jaxslim evaluate` says: classes against NumPy, times that are given, layers against JAX, and the report."""

import functools
import json
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_commands import assert_one_message, flat, invoke, make_home
from test_loop import contents
from test_steps import COLOURS, Linear, linear_variables, one_device, some_images
from zoo import recurrent

import jaxslim
from jaxslim import data
from jaxslim.commands import main as every_command
from jaxslim.core.isolate import isolated, repeated, sample
from jaxslim.errors import InputError
from jaxslim.experiments import latency as experiment
from jaxslim.reporting.canvas import report_style
from jaxslim.reporting.confusion import accuracies, confusion_matrix, confusions, per_class
from jaxslim.reporting.latency import Latency, Layer, Size, Timing, is_slow, macs_ratio, slow, slowest, tables, verdict
from jaxslim.reporting.plot_confusion import plot_confusion
from jaxslim.slim import latency
from jaxslim.slim.latency import Spread, compare
from jaxslim.storage.checkpoint import Loaded
from jaxslim.training.config import TrainConfig
from jaxslim.training.evaluation import evaluator


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.getbasetemp())


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return functools.partial(invoke, capsys, every_command)


# Classes


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_the_confusion_matrix_counts_pairs(drawn):
    classes, pairs = drawn
    labels, predicted = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    matrix = confusion_matrix(labels, predicted, classes)
    counted = Counter(pairs)
    assert matrix.shape == (classes, classes)
    assert all(matrix[one, other] == counted[one, other] for one in range(classes) for other in range(classes))
    for one, share in enumerate(accuracies(matrix)):
        mine = predicted[labels == one]
        assert share == np.mean(mine == one) if len(mine) else np.isnan(share)


def test_a_few_classes_are_all_in_the_tables():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    names = ("ant", "bee", "cat")
    assert per_class(matrix, names).rows == [
        ["ant", "4", "75.00", "bee (1 of 4)"],
        ["cat", "4", "50.00", "ant (2 of 4)"],
    ]
    table = confusions(matrix, names)
    assert table.header == ["", *names]
    assert table.rows == [["ant", "3", "1", ""], ["bee", "", "", ""], ["cat", "2", "", "2"]]


def test_of_many_classes_the_worst_are_in_the_tables():
    """Class k of 1,000 has k of its 1,000 images wrong, and all of these are taken for the class before."""
    wrong = np.arange(1000)
    matrix = np.diag(1000 - wrong)
    matrix[wrong[1:], wrong[1:] - 1] = wrong[1:]
    names = [f"class {one}" for one in wrong]
    table = per_class(matrix, names)
    assert table.title == "Accuracy by class: the worst 20 of 1,000"
    assert table.rows[0] == ["class 999", "1,000", "0.10", "class 998 (999 of 1,000)"]
    assert [row[0] for row in table.rows] == names[:-21:-1]
    most = confusions(matrix, names)
    assert [row[:2] for row in most.rows] == [[f"class {one}", f"class {one - 1}"] for one in range(999, 979, -1)]
    assert most.rows[0][2:] == ["999", "99.90"]
    assert per_class(np.diag([5, 5]), "ab").rows == [["a", "5", "100.00", ""], ["b", "5", "100.00", ""]]
    assert confusions(np.diag(np.ones(21, int)), names[:21]).rows == []


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (12, 4), (3, 500)])
def test_predictions_are_those_of_numpy_and_change_no_mean(count, batch):
    images, labels = some_images(count)
    variables = linear_variables(1)
    build = functools.partial(evaluator, TrainConfig(**COLOURS, eval_batch_size=batch), Linear(), one_device())
    plain, found = build(images, labels)(variables), build(images, labels, predictions=True)(variables)
    dense = variables["params"]["Dense_0"]
    mean, std = (np.array(COLOURS[name], np.float32) for name in ("mean", "std"))
    logits = ((images / np.float32(255) - mean) / std).reshape(count, -1) @ dense["kernel"] + dense["bias"]
    np.testing.assert_array_equal(found.predicted, logits.argmax(1))
    assert (plain.loss, plain.accuracy, plain.predicted) == (found.loss, found.accuracy, None)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_plot_shows_shares_of_rows(classes):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (classes, classes))
    matrix[0] = 0  # a class without images
    with report_style():
        figure = plot_confusion(matrix, [f"name {one}" for one in range(classes)], "title")
        figure.canvas.draw()
    panel, _ = figure.axes
    shown = panel.images[0].get_array()
    np.testing.assert_allclose(shown[1:].sum(1), 100)
    np.testing.assert_allclose(shown[1, 0], 100 * matrix[1, 0] / matrix[1].sum())
    assert (shown[0] == 0).all()
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Predicted class", "Class of the image")
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    if classes <= 10:
        assert texts == {(k, i): str(matrix[i, k]) for i, k in np.ndindex(matrix.shape) if matrix[i, k]}
        assert [label.get_text() for label in panel.get_yticklabels()] == [f"name {one}" for one in range(classes)]
    else:
        assert texts == {}
        assert list(panel.get_xticks()) == list(panel.get_yticks()) == list(range(0, 100, 10))


# Times


def test_calls_take_turns_and_each_turn_counts_its_second_call(monkeypatch):
    """The clock goes on by what each call is given to take."""
    now, called = [0.0], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run(name, *seconds):
        waiting = list(seconds)

        def call():
            called.append(name)
            now[0] += waiting.pop(0)

        return call

    a = run("a", 100, 100, 1, 100, 2, 100, 3, 100, 4, 100, 5)
    b = run("b", 100, 100, 8, 100, 8, 100, 8, 100, 8, 100, 80)
    found = compare({"a": a, "b": b}, range(5))
    assert "".join(called) == "ab" + "aabb" * 5
    assert found == {"a": Spread(3, 2, 4), "b": Spread(8, 8, 8)}


def timing(dense, cut, **more):
    spreads = (Spread(median, 0.9 * median, 1.1 * median) for median in (dense, cut))
    return Timing(runtime="JAX", batch=1, **dict(zip(("dense", "cut"), spreads, strict=True)), **more)


SAID = "JAX, 1 image: the cut network needs {} times fewer MACs and is {}."
VERDICTS = [
    ((10.0, 5.0), 2.0, None),
    ((10.0, 6.6), 2.0, None),  # half of the way is 1.5 times as fast
    ((10.0, 6.7), 2.0, SAID.format("2.00", "only 1.49 times as fast")),
    ((10.0, 1.0), 30.0, SAID.format("30.00", "only 10.00 times as fast")),
    ((10.0, 8.5), 4.0, SAID.format("4.00", "not measurably faster")),  # the quartiles touch
    ((10.0, 10.0), 4.0, SAID.format("4.00", "no faster")),
    ((10.0, 20.0), 4.0, SAID.format("4.00", "no faster")),
    ((10.0, 20.0), 1.19, None),  # hardly smaller
    ((10.0, 20.0), float("nan"), None),  # nobody knows
]


@pytest.mark.parametrize(("seconds", "ratio", "sentence"), VERDICTS)
def test_a_network_that_got_smaller_and_not_faster_is_said_so(seconds, ratio, sentence):
    assert verdict(timing(*seconds), ratio) == sentence
    assert is_slow(seconds[0] / seconds[1], ratio) == (sentence is not None)


def layer(name, dense, cut, dense_macs, cut_macs):
    return Layer(name=name, dense_seconds=dense, cut_seconds=cut, dense_macs=dense_macs, cut_macs=cut_macs)


def test_the_layers_that_keep_it_slow_come_worst_first():
    layers = (
        layer("as expected", 8e-3, 2e-3, 400, 100),
        layer("much faster", 8e-3, 1e-3, 400, 100),
        layer("as slow as before", 4e-3, 4e-3, 400, 100),  # 3 ms beyond
        layer("slower", 1e-3, 2e-3, 400, 200),  # 1.5 ms beyond
    )
    assert [one.name for one in slowest(layers)] == ["as slow as before", "slower"]
    assert [one.name for one in slowest(layers, 1)] == ["as slow as before"]
    sizes = [Size(params=params, macs=macs, weights=4 * params, disk=disk) for params, macs, disk in
             ((400, 1600, 12_345_678), (100, 500, 999))]  # fmt: skip
    assert macs_ratio(*sizes) == 3.2
    fine, bad = timing(0.03, 0.01), timing(0.02, 0.012, layers=layers)
    times, size = tables(both := Latency(dense=sizes[0], cut=sizes[1], timings=(fine, bad)))
    assert times.rows[1] == ["JAX, 1 image", "20.0 (18.0-22.0)", "12.0 (10.8-13.2)", "1.67", "3.20"]
    assert [row[1:] for row in size.rows] == [
        ["400", "100", "4.00"],
        ["1,600", "500", "3.20"],
        ["1.6 kB", "400 B", "4.00"],
        ["12.35 MB", "999 B", "12358.04"],
    ]
    ((sentence, table),) = slow(both)
    took = (
        " Its convolutions and products, each timed alone, took 21.0 ms and take 9.00 ms, of 20.0 and 12.0 ms in all."
    )
    assert sentence == SAID.format("3.20", "only 1.67 times as fast") + took
    assert table.rows == [
        ["as slow as before", "4.00", "4.00", "1.00", "4.00"],
        ["slower", "1.00", "2.00", "0.50", "2.00"],
        ["all 4 layers", "21.0", "9.00", "2.33", "3.20"],
    ]


# Layers alone


def test_layers_have_the_names_of_their_kernels_and_compute_what_the_network_does():
    def apply(params, x):
        x = jax.nn.relu(x @ params["first"]["kernel"].T)
        y = jax.jit(lambda w, x: x @ (w * params["gain"][None]))(params["second"], x)
        return (y @ params["second"]) @ x.T

    rng = np.random.default_rng(0)
    shapes = {"first": {"kernel": (6, 3)}, "second": (6, 6), "gain": (6,)}
    params = jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: type(s) is tuple)
    parts = isolated(apply, {"params": params}["params"], np.ones((2, 3), np.float32))
    assert {name: part.macs for name, part in parts.items()} == {
        "first/kernel": 36,
        "second": 72,
        "second (2)": 72,
        "dot_general": 24,
    }
    left, right = (sample(shape) for shape in parts["second"].inputs)
    wanted = np.asarray(left) @ np.asarray(right)
    for times in (1, 5):
        (out,) = jax.jit(repeated(parts["second"], times))([left, right])
        np.testing.assert_allclose(out, wanted, rtol=1e-5)
    program = str(jax.make_jaxpr(repeated(parts["second"], 5))([left, right]))
    assert program.count("dot_general") == 5


def test_the_layers_of_a_recurrent_network_add_up():
    """A loop over steps counts as one layer, with all of its rounds."""
    network = recurrent.NETWORKS[0]
    parts = isolated(network.apply, network.variables, *network.inputs)
    assert {part.macs > 0 for part in parts.values()} == {True}
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), network.inputs)
    alone = isolated(network.apply, network.variables, *described)
    assert (
        sum(part.macs for part in alone.values())
        == jaxslim.count(network.apply, network.variables, *network.inputs).macs
    )
    for part in parts.values():
        jax.eval_shape(repeated(part, 2), list(map(sample, part.inputs)))


def test_a_layer_of_integers_runs():
    (part,) = isolated(lambda w, x: x @ w, jnp.ones((3, 2), jnp.int32), jnp.ones((4, 3), jnp.int32)).values()
    (out,) = repeated(part, 3)(list(map(sample, part.inputs)))
    assert out.shape == (4, 2)


# The dense network


def test_the_dense_network_is_the_first_that_was_cut(home, tmp_path):
    """Fine-tuned from cut from tuned from cut from sparse: the sparse one."""
    module, variables, _ = jaxslim.load(home / "pruned")

    def save(name, kind, parent):
        return jaxslim.save(tmp_path / name, module, variables, {"kind": kind, "parent": {"path": str(parent)}})

    sparse = home / "sparse" / "checkpoints" / "72"
    assert experiment.uncut(home / "pruned") == sparse
    tuned = save("tuned", "fine-tuned", home / "pruned")
    again = save("again", "fine-tuned", save("cut again", "pruned", tuned))
    assert experiment.uncut(again) == sparse
    with pytest.raises(
        InputError, match=r"sparse/checkpoints/72 names no network that it was cut from; give the dense"
    ):
        experiment.uncut(home / "sparse")
    lost = save("lost", "pruned", tmp_path / "gone")
    with pytest.raises(
        InputError, match=r"lost was made from .*/gone, which is no checkpoint any more; give the dense "
    ):
        experiment.uncut(lost)
    loop = save("loop", "fine-tuned", tmp_path / "loop")
    with pytest.raises(InputError, match="names no network that it was cut from"):
        experiment.uncut(loop)


# Runtimes


def loaded(module):
    """A network with variables between 0 and 1, and images."""
    rng, images = np.random.default_rng(0), jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    shapes = jax.eval_shape(module.init, jax.random.key(1), images)
    return Loaded(module, jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes), {}), images


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_runtime_computes_the_same(dtype, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(experiment, "cores", lambda: 3)
    network, images = loaded(jaxslim.VGG(widths=(4, "M", 8), num_classes=3, dtype=jnp.dtype(dtype)))
    found = experiment.runtimes()
    assert [*found] == ["JAX", "onnxruntime"]
    in_jax, (in_onnxruntime,) = (runtime.prepare(network, images)() for runtime in found.values())
    np.testing.assert_allclose(in_onnxruntime, in_jax, rtol=1e-5 if dtype == "float32" else 2e-2)
    where = "float32, on the CPU with as many threads as JAX has there: 3"
    assert found["onnxruntime"].note == f"{onnxruntime.__version__}, {where}"


def test_onnxruntime_takes_the_threads_that_it_is_given(tmp_path):
    pytest.importorskip("onnxruntime")
    from jaxslim.interop.onnx.model import start

    jaxslim.export(tmp_path / "net.onnx", lambda w, x: x @ w, np.ones((3, 2)), np.ones((1, 3), np.float32))
    assert start(tmp_path / "net.onnx", 3).get_session_options().intra_op_num_threads == 3


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_jax_alone_where_a_package_is_missing(name, monkeypatch):
    monkeypatch.setattr(experiment, "find_spec", lambda wanted: wanted != name)
    assert [*experiment.runtimes()] == ["JAX"]


class Spectrum(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(jnp.abs(jnp.fft.fft(x.reshape(len(x), -1))))


def test_a_runtime_that_lacks_something_is_left_out(given_times, tmp_path):
    pytest.importorskip("onnx")
    (cut, images), (dense, _) = loaded(Spectrum()), loaded(jaxslim.VGG(widths=(4, "M", 8), num_classes=3))
    with pytest.raises(InputError, match="ONNX export has no rule for fft"):
        experiment.in_onnxruntime(cut, images)
    jax_alone = experiment.runtimes()["JAX"]
    both = {"other": experiment.Runtime(experiment.in_onnxruntime, "1.0"), "JAX": jax_alone}
    found = experiment.measure((tmp_path, dense), (tmp_path, cut), images.shape[1:], (1, 2), rounds=2, runtimes=both)
    assert [(one.runtime, one.batch) for one in found.timings] == [("JAX", 1), ("JAX", 2)]
    assert found.notes["JAX"] == jax_alone.note
    assert re.fullmatch(r"1\.0; left out: ONNX export has no rule for fft \(.*\)\.", found.notes["other"])


# The command


@pytest.fixture
def given_times(monkeypatch):
    """In place of the clock: the dense network takes 4 ms and the cut one 3, and all else takes a millisecond."""

    def times(runs, rounds):
        assert len(list(rounds)) > 1
        for run in runs.values():
            run()
        known = {("JAX", "dense"): Spread(4e-3, 3.9e-3, 4.1e-3), ("JAX", "cut"): Spread(3e-3, 2.9e-3, 3.1e-3)}
        return {name: known.get(name, Spread(1e-3, 1e-3, 1e-3)) for name in runs}

    monkeypatch.setattr(experiment, "compare", times)


def test_latency_beside_the_dense_network(call, home, given_times, tmp_path, caplog):
    done = call("evaluate", home / "pruned", "--latency", "--out", tmp_path / "report")
    assert done.code == 0, done.err
    found = jaxslim.load(home / "pruned").meta
    ratio = f"{found['full_cost']['macs'] / found['cost']['macs']:.2f}"
    for images in ("1 image", "8 images"):
        assert re.search(
            rf"^JAX, {images} +4\.00 \(3\.90-4\.10\) +3\.00 \(2\.90-3\.10\) +1\.33 +{ratio}$", done.out, re.M
        )
        said = f"JAX, {images}: the cut network needs {ratio} times fewer MACs and is only 1.33 times as fast. Its conv"
        assert said in flat(done.out)
    assert len(re.findall(r"^(?:conv[01]|classifier)/kernel +1\.00 +1\.00 +1\.00 +\d\.\d\d$", done.out, re.M)) >= 4
    assert re.search(r"^all 3 layers +3\.00 +3\.00 +1\.00", done.out, re.M)
    assert re.search(r"^Weights in memory +\S+ kB +\S+ k?B", done.out, re.M)
    assert f"beside      {home}/sparse/checkpoints/72\n" in done.out
    assert not re.search("^latency", done.out, re.M)
    assert re.search(r"^JAX: [\d.]+, jax\.jit, on cpu$", done.out, re.M)
    assert "runs: 20 calls of each\n" in done.out
    assert "Timing both networks on batches of 8" in caplog.text
    assert "Timing 3 layers alone on batches of 8" in caplog.text
    record = json.loads((tmp_path / "report" / "report.json").read_text())["latency"]
    assert [one["dense"] for one in record["timings"] if one["runtime"] == "JAX"] == [[4e-3, 3.9e-3, 4.1e-3]] * 2
    assert record["dense"]["weights"] == 4 * (375 + 2 * 12)
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert f"| JAX, 1 image | 4.00 (3.90-4.10) | 3.00 (2.90-3.10) | 1.33 | {ratio} |" in markdown
    assert "- JAX: " in markdown


def test_latency_in_onnxruntime(call, home, given_times, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setenv("COLUMNS", "150")
    done = call("evaluate", home / "pruned", "--latency")
    for images in ("1 image", "8 images"):
        row = rf"^onnxruntime, {images} +1\.00 \(1\.00-1\.00\) +1\.00 \(1\.00-1\.00\) +1\.00 +\d+\.\d\d$"
        assert re.search(row, done.out, re.M), done.out
        assert re.search(rf"^onnxruntime, {images}: the cut network needs \S+ times fewer MACs and is ", done.out, re.M)
    assert f"\nonnxruntime: {onnxruntime.__version__}, float32, on the CPU with as many threads as JAX" in done.out
    assert "What keeps it slow, onnxruntime" not in done.out


def test_a_network_beside_one_that_is_given(call, home, given_times):
    done = call("evaluate", home / "sparse", "--latency", "--against", home / "dense")
    assert done.code == 0, done.err
    assert re.search(r"^JAX, 1 image .* 1\.33 +1\.00$", done.out, re.M)
    assert "the cut network needs" not in done.out  # it is no smaller


def test_the_report_has_all_classes(call, home, tmp_path):
    before = contents(home)
    done = call("evaluate", home / "sparse", "--out", tmp_path / "report")
    assert (done.code, done.err) == (0, "")
    module, variables, _ = jaxslim.load(home / "sparse")
    images = data.load(str(home / "data.npz"), image_size=8, channels=1)
    pixels = (images.test_images / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    predicted = np.asarray(module.apply(variables, pixels)).argmax(1)
    matrix = [[int(np.sum(predicted[images.test_labels == i] == k)) for k in range(3)] for i in range(3)]
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["confusion"] == matrix
    assert record["accuracy"] == pytest.approx(np.trace(matrix) / 24)
    assert record["classes"] == [{"name": str(i), "images": 8, "accuracy": matrix[i][i] / 8} for i in range(3)]
    for one in range(3):
        assert re.search(rf"^{one} +8 +{100 * matrix[one][one] / 8:.2f}\b", done.out, re.M)
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "![Confusion matrix: classes of images below, predicted classes across](confusion.png)" in markdown
    assert f"| 0 | {' | '.join(str(count or '') for count in matrix[0])} |" in markdown
    assert f"- loss: {record['loss']:.4f}\n" in markdown
    assert re.search(r"^- latency: \d+\.\d\d ms for 1 image \(.*\); \d+\.\d\d ms for 64 images", markdown, re.M)
    with Image.open(tmp_path / "report" / "confusion.png") as picture:
        assert min(picture.size) > 500
    assert (tmp_path / "report" / "confusion.svg").read_text().startswith("<?xml")
    assert done.out.endswith(f"Report: {tmp_path}/report/report.md\n")
    assert contents(home) == before


def test_a_network_that_was_saved_as_a_program(call, home, given_times, tmp_path):
    """Its products cannot be seen, so nothing is said of them, unless its meta tells how many there are."""
    module, variables, meta = jaxslim.load(home / "sparse")
    small = jaxslim.prune(module.apply, variables, 0.5, np.zeros((1, 8, 8, 1), np.float32))
    known = {name: meta[name] for name in ("config", "class_names", "image_shape")}
    jaxslim.save(tmp_path / "program", small, meta=known)
    jaxslim.save(tmp_path / "told", small, meta={**known, "cost": {"macs": 100}})
    done = call("evaluate", tmp_path / "program", "--latency", "--against", home / "sparse")
    assert done.code == 0, done.err
    assert re.search(r"^MACs +unknown$", done.out, re.M)
    assert re.search(r"^JAX, 1 image .* 1\.33 +unknown$", done.out, re.M)
    if "onnxruntime" in experiment.runtimes():
        reason = "A network that was saved as a program lacks the code that ONNX needs."
        assert f"; left out: {reason} runs: " in flat(done.out)
    done = call("evaluate", tmp_path / "told", "--latency", "--against", home / "sparse")
    assert "the cut network needs 69.36 times fewer MACs and is only 1.33 times as fast." in flat(done.out)
    assert "Its convolutions" not in done.out


MISTAKES = {
    "no ancestor": ("sparse --latency", "{home}/sparse/checkpoints/72 names no network that it was cut from; give the"),
    "nothing to compare": ("sparse --against dense", "--against names the network that --latency compares with; give"),
    "absent dense": ("sparse --latency --against no", "There is no checkpoint {home}/no; check the path."),
    "empty report": ("sparse --out ''", "--out is empty; give a folder for the report."),
    "report in itself": ("pruned --out pruned", "{home}/pruned holds a checkpoint; choose another --out."),
    "report in a run": ("pruned --out sparse", "{home}/sparse holds a training run; choose another --out."),
    "report over a file": ("pruned --out data.npz", "{home}/data.npz cannot be a folder, since a file is in its place"),
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(call, home, monkeypatch, line, message):
    monkeypatch.chdir(home)
    before = contents(home)
    done = call("evaluate", *(word.strip("'") for word in line.split()))
    assert_one_message(done, message.replace("{home}", str(home)))
    assert done.out == ""
    assert contents(home) == before
