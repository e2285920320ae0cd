"""The ratio sweep and the demo: rows that agree with networks really cut, one compiled evaluation, reports on disk."""

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_commands import assert_one_message, invoke
from test_loop import contents, rows, tiny

import jaxslim
from jaxslim import data
from jaxslim.errors import InputError
from jaxslim.experiments.sweep import study, sweep
from jaxslim.files import LOCK, locked
from jaxslim.slim.prune import save_cut
from jaxslim.storage import metadata as description
from jaxslim.training import steps
from jaxslim.training.loop import train

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FILES = {"report.md", "report.json", "sweep.csv", "accuracy.png", "channels.png", "scales.png"}


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the finished runs `sparse` and `dense`."""
    folder = tmp_path_factory.mktemp("home")
    train(tiny(folder, workdir=str(folder / "sparse"), epochs=12))  # enough to learn what a cut spoils
    train(tiny(folder, workdir=str(folder / "dense"), epochs=1, l1=0.0))
    return folder


@pytest.fixture(scope="module")
def subject(home):
    """What `sweep` takes."""
    loaded = jaxslim.load(home / "sparse")
    return loaded, description.training_config(loaded.meta), data.load(str(home / "data.npz"), image_size=8, channels=1)


def really(loaded, images, ratio, **options):
    """Accuracy and size of the network cut at a ratio, without anything that the sweep does."""
    module, variables, _ = jaxslim.prune(loaded.module, loaded.variables, ratio, np.zeros((1, 8, 8, 1)), **options)
    logits = module.apply(variables, (images.test_images / np.float32(255) - np.float32(0.5)) / np.float32(0.5))
    return (
        module,
        np.mean(np.asarray(logits).argmax(-1) == images.test_labels),
        sum(map(np.size, jax.tree.leaves(variables["params"]))),
    )


def test_rows_are_those_of_the_cut_networks(subject):
    loaded, _, images = subject
    ratios = (0.5, 0.0, 0.75)
    accuracies = set()
    for ratio, (row, pruned) in zip(ratios, sweep(*subject, ratios), strict=True):
        accuracies.add(row.accuracy)
        module, accuracy, params = really(loaded, images, ratio)
        assert (row.ratio, row.accuracy, row.params, row.widths) == (ratio, accuracy, params, module.widths)
        assert list(row.kept.values()) == [width for width in module.widths if width != "M"]
        assert pruned.module == module
        assert (row.verified_accuracy, row.logits_difference) == (None, None)
    assert sum(row.kept.values()) == 12 - 9
    assert len(accuracies) > 1  # or the comparison would show nothing


def test_ratio_0_is_the_network_itself(subject):
    ((row, pruned),) = sweep(*subject, [0.0])
    assert row.accuracy == subject[0].meta["metrics"]["accuracy"]
    assert (row.params, row.macs, row.widths) == (375, 6936, (4, "M", 8))
    np.testing.assert_array_equal(
        pruned.variables["params"]["conv1"]["kernel"], subject[0].variables["params"]["conv1"]["kernel"]
    )


def test_verify_evaluates_the_cut_networks_too(subject):
    loaded, _, images = subject
    for row, _ in sweep(*subject, (0.0, 0.25, 0.5), verify=True):
        assert row.verified_accuracy == row.accuracy == really(loaded, images, row.ratio)[1]
        assert row.logits_difference < 1e-5


def test_verify_would_tell_of_a_disagreement(subject, monkeypatch):
    """Leave the dropped channels in the full network that stands in for the cut one."""
    monkeypatch.setattr("jaxslim.experiments.sweep.zero", lambda graph, tree, plan: tree)
    monkeypatch.setattr(sys.modules["jaxslim.slim.prune"], "zero", lambda graph, tree, plan: tree)
    rows_ = [row for row, _ in sweep(*subject, (0.0, 0.75), verify=True)]
    assert rows_[0].logits_difference < 1e-5 < rows_[1].logits_difference


def test_one_compiled_evaluation_serves_all_ratios(subject, monkeypatch):
    made, build = [], steps.evaluate_step
    monkeypatch.setattr(steps, "evaluate_step", lambda *args: made.append(build(*args)) or made[-1])
    assert len(list(sweep(*subject, [number / 10 for number in range(9)]))) == 9
    assert [step._cache_size() for step in made] == [1]


@pytest.mark.parametrize("how", [{"absorb": True}, {"recalibrate": 2}, {"absorb": True, "recalibrate": 2}])
def test_rows_of_networks_that_are_adapted_before_the_cut(subject, tmp_path, home, how):
    """The stand-in for the cut network gets what `save_cut` gives that."""
    loaded, _, images = subject
    (plain, _), (row, _) = (next(sweep(*subject, [0.7], verify=True, **options)) for options in ({}, how))
    assert row.verified_accuracy == row.accuracy
    assert row.logits_difference < 1e-5
    assert (row.params, row.kept) == (plain.params, plain.kept)
    _, meta = save_cut(home / "sparse", tmp_path / "cut", 0.7, **how)
    assert {name: meta["plan"][name] for name in how} == how
    saved = jaxslim.load(tmp_path / "cut")
    logits = saved.module.apply(saved.variables, (images.test_images / np.float32(255) - 0.5) / np.float32(0.5))
    assert np.mean(np.asarray(logits).argmax(-1) == images.test_labels) == row.accuracy
    other = jaxslim.prune(loaded.module, loaded.variables, 0.7, np.zeros((1, 8, 8, 1))).variables
    changed = {
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_flatten_with_path(saved.variables)[0], jax.tree.leaves(other), strict=True
        )
        if not np.allclose(new, old, atol=1e-5)
    }
    assert changed
    ends = ("mean", *(["bias"] if "absorb" in how else []), *(["var"] if "recalibrate" in how else []))
    assert all(name.removesuffix("']").endswith(ends) for name in changed)


def test_min_channels_protects_layers(subject):
    ((row, _),) = sweep(*subject, [0.5], min_channels=3)
    assert row.kept == {"bn0": 3, "bn1": 3}


# Studies


def test_a_study_with_fine_tuning(home, tmp_path, subject, capsys):
    out = tmp_path / "out"
    path = str(home / "sparse" / "latest")
    before = contents(home)
    wanted = {"ratios": (0.0, 0.5), "finetune_epochs": 1, "baseline": str(home / "dense")}
    report = study(path, out, **wanted)
    assert contents(home) == before
    assert report.channels == {"bn0": 4, "bn1": 8}
    for ratio, row in zip((0.0, 0.5), report.sweep, strict=True):
        pruned, tuned = (jaxslim.load(out / f"ratio-{ratio:g}{end}") for end in ("", "-finetuned"))
        assert (pruned.meta["kind"], tuned.meta["kind"]) == ("pruned", "fine-tuned")
        assert pruned.module == tuned.module
        assert (tuned.meta["config"]["l1"], tuned.meta["config"]["epochs"]) == (0.0, 1)
        assert tuned.meta["parent"]["path"] == str(out / f"ratio-{ratio:g}")
        assert row.finetuned_accuracy == rows(out / f"ratio-{ratio:g}-finetuned")[-1]["accuracy"]
        assert row.widths == pruned.module.widths
    for name, kind in (("dense", "baseline"), ("sparse", "sparse")):
        variables = jaxslim.load(home / name).variables["params"]
        expected = np.concatenate([np.abs(variables[layer]["scale"]) for layer in ("bn0", "bn1")])
        np.testing.assert_array_equal(np.sort(report.scales[kind]), np.sort(expected))

    capsys.readouterr()
    before = contents(out)
    assert study(path, out, **wanted).sweep == report.sweep  # nothing is trained twice
    assert contents(out) == before
    assert "epoch 1/1" not in capsys.readouterr().err

    for changes in ({"min_channels": 2}, {}):
        subjects = path if changes else str(home / "dense")
        with pytest.raises(InputError, match=r"ratio-0 was cut from another checkpoint or with other options; choose"):
            study(subjects, out, **wanted, **changes)
    with pytest.raises(InputError, match=r"finetuned holds another run \(epochs 1 there, 2 here\); choose another"):
        study(path, out, **{**wanted, "finetune_epochs": 2})
    assert contents(out) == before


def test_the_script_in_a_process_of_its_own(home, tmp_path, subject):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    words = [str(SCRIPTS / "ratio_sweep.py"), "sparse", "--ratios", "0", "0.5", "--verify", "--baseline", "dense"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "sparse-sweep"  # beside the run
    assert {path.name for path in out.iterdir()} == FILES | {LOCK}
    assert done.stdout.endswith(f"Report: {out}/report.md\n")
    expected = [row for row, _ in sweep(*subject, (0.0, 0.5), verify=True)]
    for line, row in zip(done.stderr.splitlines(), expected, strict=True):
        assert line == f"ratio {row.ratio:g}: accuracy {row.accuracy:.2%}, {row.params:,} parameters"
    with (out / "sweep.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in found] == [row.accuracy for row in expected]
    assert [float(row["verified_accuracy"]) for row in found] == [row.accuracy for row in expected]
    record = json.loads((out / "report.json").read_text())
    assert [row["widths"] for row in record["sweep"]] == [list(row.widths) for row in expected]
    assert f"{expected[1].params:,} ({expected[1].params / 375:.1%})" in done.stdout
    assert str(list(expected[1].widths)) in done.stdout


MISTAKES = {
    "absent": (["no"], "There is no checkpoint {home}/no; check the path."),
    "no ratios": (["sparse", "--ratios"], "The ratios are []; give at least one, each once, for example 0 0.5 0.7."),
    "twice": (["sparse", "--ratios", 0.5, 0.5], "The ratios are [0.5, 0.5]; give at least one, each once"),
    "ratio 1": (
        ["sparse", "--ratios", 0, 1],
        "The ratio is 1.0; it must lie in [0, 1): 0.7 cuts 70 % of the channels.",
    ),
    "too much": (["sparse", "--ratios", 0, 0.95], "A ratio of 0.95 cannot be met: with min_channels=1"),
    "epochs": (["sparse", "--finetune-epochs", -1], "finetune_epochs is -1; it must be at least 0."),
    "channels": (["sparse", "--min-channels", 0], "min_channels is 0; it must be at least 1."),
    "baseline": (["sparse", "--baseline", "no"], "There is no checkpoint {home}/no; check the path."),
    "out": (
        ["sparse", "--out", "data.npz"],
        "data.npz cannot be a folder, since a file is in its place; choose another --out.",
    ),
    "below": (
        ["sparse", "--out", "data.npz/x/y"],
        "data.npz/x/y cannot be a folder, since a file is in its place; choose",
    ),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(capsys, home, monkeypatch, words, message):
    monkeypatch.chdir(home)
    before = contents(home)
    done = invoke(capsys, script("ratio_sweep"), *words)
    assert_one_message(done, message.format(home=home))
    assert "accuracy" not in done.err  # found before the work
    assert contents(home) == before
    assert sorted(path.name for path in home.iterdir()) == ["data.npz", "dense", "sparse"]


def test_two_sweeps_into_one_folder(capsys, home, tmp_path):
    with locked(tmp_path / "out", "--out"):
        done = invoke(capsys, script("ratio_sweep"), home / "sparse", "--ratios", 0.5, "--out", tmp_path / "out")
    assert_one_message(done, f"{tmp_path}/out is in use by process")
    assert "accuracy" not in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


# The demo


def test_the_demo_from_training_to_report(tmp_path, monkeypatch, capsys):
    """With configurations that take a second each in place of the digits'."""
    demo = script("demo")
    monkeypatch.setattr(demo, "HOME", tmp_path)
    monkeypatch.setattr(demo, "load_config", lambda path: tiny(tmp_path, l1=1e-3 * path.endswith("_sparse.py")))
    words = ("--out", tmp_path / "out", "--ratio", 0.5, "--epochs", 1)
    done = invoke(capsys, demo, *words)
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert {path.name for path in (out / "report").iterdir()} == FILES | {"pipeline.csv"}
    assert [path.name for path in sorted(out.iterdir())] == [
        "baseline",
        "finetuned-0.5",
        "pruned-0.5",
        "report",
        "sparse",
    ]
    with (out / "report" / "pipeline.csv").open() as file:
        stages = list(csv.DictReader(file))
    assert [row["name"] for row in stages] == ["Baseline", "Trained with sparsity", "Cut at 0.5", "Fine-tuned"]
    for row, name in zip(stages, ("baseline", "sparse", None, "finetuned-0.5"), strict=True):
        if name:
            assert float(row["accuracy"]) == rows(out / name)[-1]["accuracy"]
    assert (
        int(stages[3]["params"]) == int(stages[2]["params"]) == jaxslim.load(out / "pruned-0.5").meta["cost"]["params"]
    )
    assert jaxslim.load(out / "finetuned-0.5").meta["parent"]["path"] == str(out / "pruned-0.5")

    before = contents(out)
    again = invoke(capsys, demo, *words)
    assert again.code == 0
    assert re.search(r"Done before; delete \S+ to start over\. Report: ", again.out)
    assert contents(out) == before
    other = invoke(capsys, demo, "--out", out, "--epochs", 2)
    assert_one_message(other, f"{out}/baseline holds another run (epochs 1 there, 2 here); choose another")
    assert contents(out) == before

    for name in ("baseline", "sparse", "report", "finetuned-0.5"):
        shutil.rmtree(out / name)
    other = invoke(capsys, demo, "--out", out, "--ratio", 0.5, "--epochs", 2)
    assert_one_message(other, f"{out}/pruned-0.5 was cut from another checkpoint or with other options; choose another")
    assert not (out / "report").exists()
