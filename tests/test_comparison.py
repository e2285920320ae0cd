"""The comparison of criteria: its rows against networks that are really cut, its tables by hand, and its command."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxslim import models
from jaxslim.data import Dataset, Form
from jaxslim.data.archives import read_npz, write_part
from jaxslim.errors import InputError
from jaxslim.experiments.comparison import by_criterion, in_steps
from jaxslim.experiments.cutting import save_cut
from jaxslim.experiments.finetuning import finetuning
from jaxslim.reporting.comparison import CutRow, StepsRow, cuts_table, percent, plot, steps_table, summary_table
from jaxslim.storage import checkpoint
from jaxslim.training.config import DIGITS
from jaxslim.training.loop import train

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
criteria = importlib.import_module("criteria")

ASKED = ["--seeds", "1", "--epochs", "2", "--tune-epochs", "1", "--criteria", "bn_scale", "random", "--macs", "0.5"]
ASKED += ["--tuned-macs", "0.5", "--steps", "2", "--trainings", "plain", "l1"]


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A tiny network on tiny digits, which learns something in two epochs."""
    small = dataclasses.replace(DIGITS, image_size=8, model_args={"widths": (8, "M", 8)}, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteria, "DIGITS", small)
        yield
    models.MODELS.pop("no-norm", None)


def command(folder, *more):
    criteria.main([*ASKED, "--out", str(folder / "runs"), "--report", str(folder / "report"), *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("criteria")
    command(folder)
    return folder


def results(folder, name="digits"):
    return json.loads((folder / "report" / f"{name}.json").read_text())


def test_each_training_is_cut_by_each_criterion_in_each_scope(finished):
    cuts = results(finished)["cuts"]
    expected = [
        (training, criterion, scope, 0.5)
        for training in ("plain", "l1")
        for criterion in ("bn_scale", "random")
        for scope in ("global", "alike")
    ]
    assert [(row["training"], row["criterion"], row["scope"], row["macs"]) for row in cuts] == expected
    assert all(0 < row["reached"] <= 0.5 and 0 <= row["before"] <= 1 and 0 <= row["after"] <= 1 for row in cuts)
    assert [(row["training"], row["steps"], row["epochs"]) for row in results(finished)["steps"]] == [
        (training, steps, 2) for training in ("plain", "l1") for steps in (1, 2)
    ]
    text = (finished / "report" / "digits.md").read_text()
    assert text.count("\n| random | alike |") == 2
    assert (finished / "report" / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_comparison_goes_on(finished, capsys):
    (finished / "runs" / "seed-0" / "plain-random.json").unlink()
    before = results(finished)
    command(finished)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")] == [
        "--- seed-0: plain-random ---"
    ]
    assert results(finished) == before


def test_rows_are_those_of_networks_that_are_cut_and_trained_on(finished, tmp_path):
    path = finished / "runs" / "seed-0" / "plain"
    (row,) = by_criterion(path, "bn_scale", ["alike"], [0.5], [0.5], 2)
    _, meta = save_cut(path, tmp_path / "cut", None, macs=0.5, criterion="bn_scale", scope="alike", absorb=True)
    assert row.reached == pytest.approx(meta["cost"]["macs"] / meta["full_cost"]["macs"])
    trained = train(finetuning(tmp_path / "cut", epochs=2)).metrics["accuracy"]
    assert row.before != trained
    assert abs(row.after - trained) < 0.01  # 3 of 360 images, for rounding


def test_more_steps_end_at_the_same_size_with_another_result(finished):
    path = finished / "runs" / "seed-0" / "plain"
    one, two = (in_steps(path, "bn_scale", 0.3, steps, 2) for steps in (1, 2))
    assert (one.steps, two.steps, one.epochs, two.epochs) == (1, 2, 2, 2)
    assert one.accuracy != two.accuracy


def test_a_network_without_norms_has_neither_scales_nor_a_pull_on_them(tmp_path):
    command(tmp_path, "--no-norm", "--tuned-macs", "--scopes", "layer", "--epochs", "1")
    rows = results(tmp_path, "digits-no-norm")["cuts"]
    assert [(row["training"], row["criterion"], row["scope"], row["after"]) for row in rows] == [
        ("plain", "random", "layer", None)
    ]
    params = checkpoint.load(tmp_path / "runs" / "seed-0" / "plain").variables["params"]
    assert {name for layer in params.values() for name in layer} == {"kernel", "bias"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--seeds", "0"], r"^seeds and steps must be at least 1\.$"),
        (["--criteria", "luck"], r"^There is no criterion luck; give some of bn_scale, magnitude,"),
        (["--trainings", "hard"], r"^There is no training hard; give some of plain, group_lasso, l1\.$"),
        (["--scopes", "wide"], r"^There is no scope wide; give some of global, alike, layer\.$"),
    ],
)
def test_options_that_mean_nothing(tmp_path, asked, message):
    with pytest.raises(InputError, match=message):
        command(tmp_path, *asked)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_data_set_is_the_same_each_time(tmp_path):
    labels = np.arange(20, dtype=np.int32) % 4
    pixels = np.repeat(labels, 4).reshape(20, 2, 2, 1).astype(np.uint8)
    images = Dataset("all", pixels, labels, pixels, labels, tuple("abcd"))
    parts = []
    for name in ("a.npz", "b.npz"):
        write_part(images, tmp_path / name, 15, 100)
        parts.append(read_npz(tmp_path / name, Form(2, 1)))
    one, other = parts
    assert (len(one.train_labels), len(one.test_labels)) == (15, 20)
    np.testing.assert_array_equal(one.train_images, other.train_images)
    np.testing.assert_array_equal(one.train_images[:, 0, 0, 0], one.train_labels)


def test_tables_by_hand():
    assert percent([0.5, None, 0.6]) == "55.00 ± 7.07"  # the deviation of 50 and 60 is 10 / sqrt(2)
    assert (percent([0.5]), percent([None])) == ("50.00", "")
    rows = [
        CutRow("lamp", "global", macs, macs, 0.5 + 0.1 * seed, 0.9, "l1", seed)
        for macs in (0.2, 0.5)
        for seed in (0, 1)
    ]
    rows += [CutRow("random", "global", 0.5, 0.5, 0.1, None, "l1", 0)]
    table = cuts_table("l1", rows)
    assert table.header == [
        "Criterion",
        "Scope",
        "Cut to 0.5 (%)",
        "Cut to 0.2 (%)",
        "0.5, fine-tuned (%)",
        "0.2, fine-tuned (%)",
    ]
    assert table.rows == [
        ["lamp", "global", "55.00 ± 7.07", "55.00 ± 7.07", "90.00 ± 0.00", "90.00 ± 0.00"],
        ["random", "global", "10.00", "", "", ""],
    ]
    summary = summary_table(rows, 0.5, "global")
    assert summary.header == ["Criterion", "l1, cut (%)", "l1, fine-tuned (%)"]
    assert summary.rows == [["lamp", "55.00 ± 7.07", "90.00 ± 0.00"], ["random", "10.00", ""]]
    steps = [StepsRow("lamp", 0.25, number, 6, number / 10, "plain") for number in (1, 3)]
    assert steps_table("", steps)[1:3] == (
        ["Training", "MACs left", "1 step (%)", "3 steps (%)"],
        [["plain", "0.25", "10.00", "30.00"]],
    )


def test_the_plot_has_a_line_for_each_criterion(monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **how: (drawn.append(figure), save(figure, *args, **how))
    )
    rows = [CutRow(name, "global", macs, macs, macs, 0.9, "l1") for name in ("lamp", "random") for macs in (0.5, 0.25)]
    plot("title", [*rows, CutRow("lamp", "alike", 0.5, 0.5, 0.0, 0.0, "l1")])
    before, after = drawn[0].axes
    assert [line.get_label() for line in before.get_lines()] == ["lamp", "random"]
    assert [list(line.get_ydata()) for line in before.get_lines()] == [[50.0, 25.0]] * 2
    assert [list(line.get_ydata()) for line in after.get_lines()] == [[90.0, 90.0]] * 2
