"""The ratio sweep and the demo: rows that agree with networks really cut, one compiled evaluation, reports on disk."""

import csv
import importlib
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from test_commands import assert_one_message, invoke, make_home
from test_loop import contents, rows, tiny

import jaxslim
from jaxslim import data
from jaxslim.commands import sweep as sweep_command
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import save_cut
from jaxslim.experiments.sweep import study, sweep
from jaxslim.files import LOCK, locked
from jaxslim.reporting.results import Report, SweepRow
from jaxslim.storage import checkpoint
from jaxslim.training import evaluation
from jaxslim.training.config import from_json

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FILES = {"report.md", "report.json", "sweep.csv"} | {
    f"{plot}.{form}" for plot in ("accuracy", "channels", "scales") for form in ("png", "svg")
}


def script(name):
    return importlib.import_module(name)  # `conftest` has added the folder


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def subject(home):
    """What `sweep` takes."""
    loaded = jaxslim.load(home / "sparse")
    return loaded, from_json(loaded.meta["config"], home), data.load(str(home / "data.npz"), image_size=8, channels=1)


def accuracy(module, variables, images):
    """Share of the test images that a network gets right, without anything that the sweep does."""
    logits = module.apply(variables, (images.test_images / np.float32(255) - np.float32(0.5)) / np.float32(0.5))
    return np.mean(np.asarray(logits).argmax(-1) == images.test_labels)


def test_rows_are_those_of_the_cut_networks(subject):
    loaded, _, images = subject
    ratios = (0.5, 0.75)
    accuracies = set()
    for ratio, (row, pruned) in zip(ratios, sweep(*subject, ratios), strict=True):
        module, variables, _ = jaxslim.prune(loaded.module, loaded.variables, ratio, np.zeros((1, 8, 8, 1)))
        accuracies.add(row.accuracy)
        assert (row.ratio, row.accuracy) == (ratio, accuracy(module, variables, images))
        assert row.params == sum(map(np.size, jax.tree.leaves(variables["params"])))
        assert row.architecture == str([*module.widths])
        assert list(row.kept.values()) == [width for width in module.widths if width != "M"]
        assert pruned.module == module
        assert (row.plain_accuracy, row.verified_accuracy, row.logits_difference) == (None, None, None)
    assert sum(row.kept.values()) == 12 - 9
    assert len(accuracies) > 1  # or the comparison would show nothing


def test_ratio_0_is_the_network_itself(subject):
    ((row, pruned),) = sweep(*subject, [0.0], absorb=True)
    assert row.accuracy == row.plain_accuracy == subject[0].meta["metrics"]["accuracy"]
    assert (row.params, row.macs, row.architecture) == (375, 6936, "[4, 'M', 8]")
    jax.tree.map(np.testing.assert_array_equal, pruned.variables, subject[0].variables)


def test_verify_would_tell_of_a_disagreement(subject, monkeypatch):
    """Leave the dropped channels in the full network that stands in for the cut one."""
    for row, _ in sweep(*subject, (0.0, 0.5), verify=True):
        assert row.verified_accuracy == row.accuracy
        assert row.logits_difference < 1e-5
    monkeypatch.setattr("jaxslim.slim.prune.mask", lambda graph, tree, plan: tree)
    with pytest.raises(InputError, match="outputs differ from the masked full network's"):
        list(sweep(*subject, (0.0, 0.75)))


def test_one_compiled_evaluation_serves_all_ratios(subject, monkeypatch):
    made, build = [], evaluation.evaluate_step
    monkeypatch.setattr(evaluation, "evaluate_step", lambda *args: made.append(build(*args)) or made[-1])
    assert len(list(sweep(*subject, [number / 10 for number in range(9)], absorb=True))) == 9
    assert [step._cache_size() for step in made] == [1]


def test_rows_of_networks_that_are_adapted_before_the_cut(subject, tmp_path, home):
    """The stand-in for the cut network gets what `save_cut` gives the cut one."""
    (loaded, _, images), how = subject, {"absorb": True, "recalibrate": 2}
    ((plain, _),) = sweep(*subject, [0.7], **how | {"absorb": False})
    ((row, _),) = sweep(*subject, [0.7], verify=True, **how)
    assert row.verified_accuracy == row.accuracy
    assert row.plain_accuracy == plain.accuracy
    assert row.logits_difference < 1e-5
    assert (row.params, row.kept) == (plain.params, plain.kept)
    _, meta = save_cut(home / "sparse", tmp_path / "cut", 0.7, **how)
    assert {name: meta["plan"][name] for name in how} == how
    saved = jaxslim.load(tmp_path / "cut")
    assert accuracy(saved.module, saved.variables, images) == row.accuracy
    other = jaxslim.prune(loaded.module, loaded.variables, 0.7, np.zeros((1, 8, 8, 1))).variables
    changed = jax.tree.map(lambda new, old: not np.allclose(new, old, atol=1e-5), saved.variables, other)
    names = {jax.tree_util.keystr(path[-1:], simple=True) for path, new in jax.tree.leaves_with_path(changed) if new}
    assert "mean" in names <= {"mean", "var", "bias"}


# Studies


def test_a_study_with_fine_tuning(home, tmp_path, capsys):
    out = tmp_path / "out"
    path = str(home / "sparse" / "latest")
    before = contents(home)
    wanted = {"ratios": (0.0, 0.5), "finetune": {"epochs": 1}, "baseline": str(home / "dense"), "absorb": True}
    report = study(path, out, **wanted)
    assert contents(home) == before
    assert "fine-tuning each cut network: epochs 1, learning rate 0.01, schedule cosine" in capsys.readouterr().err
    assert report.channels == {"bn0": 4, "bn1": 8}
    for ratio, row in zip((0.0, 0.5), report.sweep, strict=True):
        pruned, tuned = (jaxslim.load(out / f"ratio-{ratio:g}{end}") for end in ("", "-finetuned"))
        assert (pruned.meta["kind"], tuned.meta["kind"]) == ("pruned", "fine-tuned")
        assert pruned.module == tuned.module
        changed = {"l1": 0.0, "epochs": 1, "learning_rate": 0.01, "schedule": "cosine"}
        assert {name: tuned.meta["config"][name] for name in changed} == changed
        assert tuned.meta["parent"]["path"] == str(out / f"ratio-{ratio:g}")
        assert row.finetuned_accuracy == rows(out / f"ratio-{ratio:g}-finetuned")[-1]["accuracy"]
        assert row.architecture == str([*pruned.module.widths])
    full = report.sweep[0]
    assert full.finetuned_accuracy >= full.accuracy - 0.05  # the default rate does not undo the training
    for name, kind in (("dense", "baseline"), ("sparse", "sparse")):
        variables = jaxslim.load(home / name).variables["params"]
        expected = np.concatenate([np.abs(variables[layer]["scale"]) for layer in ("bn0", "bn1")])
        np.testing.assert_array_equal(np.sort(report.scales[kind]), np.sort(expected))
    params = jaxslim.load(home / "sparse").variables["params"]
    scales = {layer: np.sort(np.abs(params[layer]["scale"])) for layer in ("bn0", "bn1")}
    gone = [values[len(values) - report.sweep[1].kept[layer] - 1] for layer, values in scales.items()]
    assert report.thresholds == {"sparse": {0.5: max(gone)}}

    before = contents(out)
    assert study(path, out, **wanted).sweep == report.sweep  # nothing is trained twice
    assert contents(out) == before
    assert "epoch 1/1" not in capsys.readouterr().err

    for changes in ({"min_channels": 2}, {}):
        subjects = path if changes else str(home / "dense")
        with pytest.raises(InputError, match=r"ratio-0 was cut from another checkpoint or with other options; choose"):
            study(subjects, out, **{**wanted, **changes})
    with pytest.raises(InputError, match=r"finetuned holds another run \(epochs 1 there, 2 here\); choose another"):
        study(path, out, **{**wanted, "finetune": {"epochs": 2}})
    assert contents(out) == before


def test_the_command_writes_the_report_beside_the_run(home, tmp_path, subject, capsys):
    """With data whose name is not UTF-8."""
    shutil.copytree(home / "sparse", tmp_path / "sparse")
    data = shutil.copy(home / "data.npz", tmp_path / os.fsdecode(b"d\xff.npz"))
    words = (tmp_path / "sparse", "--ratios", 0, 0.5, "--verify", "--baseline", home / "dense", "--dataset", data)
    done = invoke(capsys, sweep_command, *words)
    assert done.code == 0, done.err
    assert "d\\udcff.npz" in done.out
    out = tmp_path / "sparse-sweep"
    assert {path.name for path in out.iterdir()} == FILES | {LOCK}
    expected = [row for row, _ in sweep(*subject, (0.0, 0.5), verify=True, absorb=True)]
    for line, row in zip(done.err.splitlines(), expected, strict=True):
        plain = f"({row.plain_accuracy:.2%} without absorption)"
        assert line == f"ratio {row.ratio:g}: accuracy {row.accuracy:.2%} {plain}, {row.params:,} parameters"
    with (out / "sweep.csv").open() as file:
        found = list(csv.DictReader(file))
    for name in ("accuracy", "plain_accuracy", "verified_accuracy"):
        assert [float(row[name]) for row in found] == [getattr(row, name) for row in expected]
    record = json.loads((out / "report.json").read_text())
    assert [row["architecture"] for row in record["sweep"]] == [row.architecture for row in expected]
    assert f"\nReport: {out}/report.md\n" in done.out


@pytest.mark.parametrize(
    ("accuracies", "tuned", "advice", "following"),
    [
        ((0.9, 0.895, 0.6), None, "Ratio 0.5 is the largest", "prune {run} --ratio 0.5 --out {run}-pruned"),
        ((0.9, 0.8, 0.6), None, "Each cut costs more than a point", "sweep {run} --finetune-epochs 10"),
        ((0.9, 0.8, 0.6), (0.9, 0.9, 0.95), "Ratio 0.7 is the largest", "evaluate {out}/ratio-0.7-finetuned"),
        ((0.9, 0.8, 0.6), (0.9, 0.8, 0.8), "Each cut costs more than a point", None),
    ],
)
def test_the_command_says_what_to_do_next(home, tmp_path, capsys, monkeypatch, accuracies, tuned, advice, following):
    rows_ = tuple(
        SweepRow(ratio=ratio, accuracy=share, params=1, macs=1, kept={}, finetuned_accuracy=tuned_share)
        for ratio, share, tuned_share in zip((0.0, 0.5, 0.7), accuracies, tuned or [None] * 3, strict=True)
    )
    monkeypatch.setattr("jaxslim.experiments.sweep.study", lambda *args, **options: Report(title="Sweep", sweep=rows_))
    run, out = home / "sparse", tmp_path / "out"
    done = invoke(capsys, sweep_command, run, "--out", out, "--finetune-epochs", 1 if tuned else 0)
    assert done.code == 0, done.err
    *_, said, last = done.out.splitlines()
    if following:
        assert last == f"Next: jaxslim {following.format(run=run, out=out)}"
    assert advice in (said if following else last)


def test_a_sweep_without_the_uncut_network_gives_no_advice(home, tmp_path, capsys):
    done = invoke(capsys, sweep_command, home / "sparse", "--ratios", 0.5, "--out", tmp_path / "out")
    assert done.out.splitlines()[-1] == f"Report: {tmp_path}/out/report.md"


def test_two_sweeps_into_one_folder(capsys, home, tmp_path):
    with locked(tmp_path / "out", "--out"):
        done = invoke(capsys, sweep_command, home / "sparse", "--ratios", 0.5, "--out", tmp_path / "out")
    assert_one_message(done, f"{tmp_path}/out is in use by another process")
    assert "accuracy" not in done.err
    assert not (tmp_path / "out").exists()


# The demo


def test_the_demo_from_training_to_report(tmp_path, monkeypatch, capsys):
    """With configurations that take a second each in place of the digits'."""
    demo = script("demo")
    monkeypatch.setattr("jaxslim.experiments.sweep.RATIOS", (0.0, 0.3))
    monkeypatch.setattr(demo, "load_config", lambda name: tiny(tmp_path, l1=1e-3 * name.endswith("-sparse")))
    words = ("--out", tmp_path / "out", "--ratio", 0.5, "--epochs", 1)
    done = invoke(capsys, demo, *words)
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert {path.name for path in (out / "report").iterdir()} == FILES | {"pipeline.csv", "curves.png", "curves.svg"}
    runs = ["baseline", "sparse", "finetuned-0.5"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*runs, "pruned-0.5", "report"])
    with (out / "report" / "pipeline.csv").open() as file:
        pipeline = list(csv.DictReader(file))
    assert [row["name"] for row in pipeline] == ["Baseline", "Trained with sparsity", "Cut at 0.5", "Fine-tuned"]
    for row, name in zip([*pipeline[:2], pipeline[3]], runs, strict=True):
        assert float(row["accuracy"]) == rows(out / name)[-1]["accuracy"]
    params = checkpoint.load(out / "pruned-0.5").meta["cost"]["params"]
    assert int(pipeline[3]["params"]) == int(pipeline[2]["params"]) == params
    assert jaxslim.load(out / "finetuned-0.5").meta["parent"]["path"] == str(out / "pruned-0.5")
    record = json.loads((out / "report" / "report.json").read_text())
    assert [*record["curves"]] == ["baseline", "sparse", "fine-tuned"]
    assert all(row["plain_accuracy"] is not None for row in record["sweep"])

    before = contents(out)
    again = invoke(capsys, demo, *words)
    assert again.code == 0
    assert re.search(r"Done before; delete \S+ to start over\. Report: ", again.out)
    assert contents(out) == before
    other = invoke(capsys, demo, "--out", out, "--epochs", 2)
    assert_one_message(other, f"{out}/baseline holds another run (epochs 1 there, 2 here); choose another")
    assert contents(out) == before
