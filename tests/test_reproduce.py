"""The script that reproduces the tables, with a network and images so small that all its stages take a minute."""

import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_sweep import SCRIPTS, script

from jaxslim import data, models
from jaxslim.data.sources import Dataset
from jaxslim.errors import DivergedError, InputError
from jaxslim.experiments.stages import Outcome
from jaxslim.training.config import TrainConfig

REPORT = {"report.md", "report.json", "results.json", "pipeline.csv", "sweep.csv"}
REPORT |= {"accuracy.png", "compared.png", "channels.png", "scales.png"}


@pytest.fixture(scope="module")
def patched():
    """The script with a tiny network, and tiny images in place of CIFAR-10."""
    rng = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 10
    images = (rng.integers(0, 100, (400, 32, 32, 3)) + 15 * labels[:, None, None, None]).astype(np.uint8)
    tiny = Dataset("cifar10", images, labels, images[:100], labels[:100], tuple("abcdefghij"))
    load = data.load
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        reproduce, stages = script("reproduce"), importlib.import_module("reproduce_stages")
        patch.setattr(data, "load", lambda name, **how: tiny if name == "cifar10" else load(name, **how))
        patch.setitem(models.WIDTHS, "tiny", (8, "M", 16, "M"))
        patch.setattr(reproduce, "QUICK", {"model": "tiny", "width": 0.5, "epochs": 2, "l1": 1e-2})
        patch.setattr(reproduce, "FULL", {"model": "tiny", "width": 0.5, "epochs": 2, "l1": 1e-2})
        patch.setattr(reproduce, "QUICK_IMAGES", 300)
        patch.setattr(stages, "PULLS", {"sparse-proximal": stages.PULLS["sparse-proximal"]})
        yield reproduce


@pytest.fixture(scope="module")
def out(patched, tmp_path_factory):
    """The folder of a finished rehearsal."""
    folder = tmp_path_factory.mktemp("reproduce") / "out"
    patched.main(["--quick", "--out", str(folder)])
    return folder


def results(out):
    return json.loads((out / "report" / "results.json").read_text())


def test_every_stage_leaves_its_numbers(out, patched):
    (stages,) = results(out)
    assert {path.stem for path in (out / "seed-0").glob("*.json")} == stages.keys()
    assert len(stages) == 39
    assert {path.name for path in (out / "report").iterdir()} == REPORT
    assert all(0 <= stage["accuracy"] <= 1 for stage in stages.values() if "rows" not in stage)
    assert [row["ratio"] for row in stages["sweep"]["rows"]] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_numbers_agree_with_each_other(out):
    (stages,) = results(out)
    for cut, sweep in (("cut", "sweep"), ("cut-both", "sweep-cut-both"), ("cut-absorbed", "sweep-cut-absorbed")):
        row = stages[sweep]["rows"][-1]
        assert stages[cut]["accuracy"] == pytest.approx(row["accuracy"], abs=0.011)  # one image may be close
        assert (stages[cut]["params"], stages[cut]["macs"]) == (row["params"], row["macs"])
    assert stages["sweep"]["rows"][0]["accuracy"] == stages["sparse"]["accuracy"]
    assert stages["tuned-short"]["params"] == stages["cut"]["params"] < stages["sparse"]["params"]
    widths = [stages[f"pass-{number}-cut"]["widths"] for number in range(1, 5)]
    for before, after in zip([[4, "M", 8, "M"], *widths], widths, strict=False):
        assert all(new == old or old / 2 <= new < old for new, old in zip(after, before, strict=True))
    assert widths[-1] != widths[0]


def test_a_rehearsal_says_so(out):
    text = (out / "report" / "report.md").read_text()
    assert text.startswith(
        "# Network slimming of VGG on 300 images of cifar10, a rehearsal: the accuracies mean nothing"
    )


def test_the_report_shows_them_beside_what_is_published(out):
    (stages,) = results(out)
    text = (out / "report" / "report.md").read_text()
    for name in ("baseline", "sparse", "cut", "tuned-short", "pass-4"):
        assert f"{100 * stages[name]['accuracy']:.2f}" in text
    row = re.search(r"\| Baseline \|(.*)\|", text.partition("Beside what is published")[2])[1].split("|")
    assert [float(cell) for cell in row[1:]] == [93.26, 93.62, 93.77, 93.66]
    assert "subgradient; both" in text
    assert "one-cycle" in text.lower()
    assert "no comparison" in text
    assert "python scripts/reproduce.py --quick" in text


def test_the_same_command_trains_nothing_twice(out, patched, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (out / "seed-0").rglob("*")}
    monkeypatch.setattr("jaxslim.training.loop.train", None)
    patched.main(["--quick", "--out", str(out)])
    assert {path: path.stat().st_mtime_ns for path in (out / "seed-0").rglob("*")} == before


def test_a_lost_stage_is_done_again_and_others_are_not(out, patched, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    lost = copy / "seed-0" / "cut-recalibrated.json"
    lost.unlink()
    shutil.rmtree(lost.with_suffix(""))
    shutil.rmtree(copy / "seed-0" / "pass-4")
    (copy / "report" / "results.json").unlink()
    patched.main(["--quick", "--out", str(copy)])
    assert results(copy) == results(out)
    assert lost.with_suffix("").exists()
    assert not (copy / "seed-0" / "pass-4").exists()  # its result was there


def test_a_failed_stage_is_named_and_the_rest_reported(patched, tmp_path, capsys, monkeypatch):
    from jaxslim.training import loop

    train = loop.train

    def fragile(config):
        if config.name in ("tuned-short", "pass-2"):
            raise DivergedError("The training diverged in epoch 1, step 3.")
        return train(config)

    monkeypatch.setattr(loop, "train", fragile)
    with pytest.raises(SystemExit) as ended:
        patched.main(["--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "failed: seed 0: tuned-short (The training diverged in epoch 1, step 3.); seed 0: pass-2 (" in said
    assert "; 4 more that need their results. The same command tries these stages again." in said
    text = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "- failed: seed 0: tuned-short (The training diverged" in text
    assert len(re.findall(r"^\| [12] \|", text.partition("Several passes")[2], re.MULTILINE)) == 1
    (stages,) = results(tmp_path / "out")
    assert stages["pass-2"] == stages["pass-3"] == {}
    assert 0 <= stages["tuned-long"]["accuracy"] <= 1


def test_several_seeds_give_means_and_deviations(patched, tmp_path, monkeypatch):
    monkeypatch.setattr("reproduce_stages.PASSES", 1)
    patched.main(["--seeds", "2", "--out", str(tmp_path / "out")])
    first, second = (seed["sparse"]["accuracy"] for seed in results(tmp_path / "out"))
    shown = f"{50 * (first + second):.2f} \N{PLUS-MINUS SIGN} {100 * abs(first - second) / 2**0.5:.2f}"
    text = (tmp_path / "out" / "report" / "report.md").read_text()
    assert f"| Trained with sparsity | {shown} |" in text
    assert f"| 0 | {shown} |" in text


def test_each_cell_of_the_tables_is_of_its_own_stage(patched, tmp_path):
    """With an accuracy of its own for every stage."""
    plan, of = (importlib.import_module(f"reproduce_{name}") for name in ("stages", "report"))
    base = TrainConfig(epochs=160, widths=models.WIDTHS["vgg19"], l1=1e-4)
    names = [stage.name for stage in plan.stages(plan.Setting(base, "", tmp_path), True)]
    assert len(set(names)) == len(names)
    results = {}
    for number, name in enumerate(names, start=1):
        sizes = {"params": 1_000_000 * number, "macs": 10_000_000 * number, "widths": []}
        rows = [{"accuracy": number / 100 + place / 1000, "params": 1_000_000 * number} for place in range(8)]
        result = {"rows": rows} if name.startswith("sweep") else {"accuracy": number / 100, **sizes}
        results[name] = Outcome(result)
    tables = {table.title.partition(":")[0]: table for table in of._tables(base, [results], of.published())}

    def shown(*stages):
        return [f"{names.index(stage) + 1:.2f}" if stage else "" for stage in stages]

    beside = tables["Beside what is published"].rows
    assert [row[0] for row in beside[:5]] == list(of._labels(base).values())
    assert [row[1] for row in beside[:5]] == shown("baseline", "sparse", "cut", "tuned-short", "tuned-long")
    assert [row[1] for row in beside[6:]] == [f"{names.index('cut') + 1:.2f}", f"{(names.index('cut') + 1) / 100:.2f}"]
    for number, row in enumerate(tables["Several passes, each cutting up to half of each layer"].rows, start=1):
        assert row[1:3] == shown(f"pass-{number}-cut", f"pass-{number}")
    rows = {row[0]: row[1:] for row in tables["Techniques at 0.7"].rows}
    short, long = "tuned-short", "tuned-long"
    plain = ("cut", short, f"{short}-cut-cosine", f"{short}-cut-one-cycle", long, f"{long}-cut-cosine")
    assert rows["subgradient; none"] == shown(*plain)
    both = ("cut-both", *(f"{short}-cut-both{end}" for end in ("", "-cosine", "-one-cycle")))
    assert rows["subgradient; both"] == shown(*both, f"{long}-cut-both", f"{long}-cut-both-cosine")
    assert rows["subgradient; absorbed"] == shown("cut-absorbed", f"{short}-cut-absorbed", "", "", "", "")
    pull = "sparse-proximal"
    with_pull = (f"cut-both-{pull}", f"{short}-cut-both-{pull}", "", "", "", f"{long}-cut-both-cosine-{pull}")
    assert rows["proximal; both"] == shown(*with_pull)
    alone = (f"cut-{pull}", f"{short}-cut-{pull}", "", "", f"{long}-cut-{pull}", "")
    assert rows["proximal; none"] == shown(*alone)
    header = tables["Techniques at 0.7"].header
    assert header[2:] == [
        *(f"{rate}, 10 epochs (%)" for rate in ("Stepped", "Cosine", "One-cycle")),
        *(f"{rate}, 40 epochs (%)" for rate in ("Stepped", "Cosine")),
    ]
    sweeps = tables["Accuracy (%) without fine-tuning, by technique"]
    order = [
        "sweep",
        "sweep-cut-absorbed",
        "sweep-cut-recalibrated",
        "sweep-cut-both",
        f"sweep-{pull}",
        f"sweep-{pull}-both",
    ]
    assert sweeps.rows[3][1:] == [f"{names.index(name) + 1.3:.2f}" for name in order]
    assert sweeps.header[1:] == ["as the reference", "absorbed", "recalibrated", "both", "proximal", "proximal; both"]


def test_other_images_of_the_same_name_are_refused(out, patched, monkeypatch):
    load = data.load

    def others(name, **how):
        found = load(name, **how)
        return found._replace(test_labels=found.test_labels[::-1].copy()) if name == "cifar10" else found

    monkeypatch.setattr(data, "load", others)
    with pytest.raises(InputError, match=r"baseline.json is of another configuration \(images \w+ there, \w+ here\)"):
        patched.main(["--quick", "--out", str(out)])


def test_an_interrupted_training_of_another_configuration_is_refused(out, patched, tmp_path):
    copy = tmp_path / "out"
    copy.mkdir()
    shutil.copytree(out / "seed-0" / "sparse", copy / "seed-0" / "sparse")
    with pytest.raises(InputError, match=r"sparse holds another run \(.*l1 0.01 there, 0.5 here"):
        patched.main(["--quick", "--l1", "0.5", "--out", str(copy)])


def test_a_cut_that_was_moved_is_used_again(out, patched, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "seed-0" / "cut-both.json").unlink()
    before = (copy / "seed-0" / "cut-both" / "checksums.json").stat().st_mtime_ns
    patched.main(["--quick", "--out", str(copy)])
    assert (copy / "seed-0" / "cut-both" / "checksums.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("spoil", ["damage", "remove"])
def test_a_report_without_the_checkpoints(out, patched, tmp_path, spoil):
    """Only the plot of the scales needs them."""
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "report")
    if spoil == "remove":
        for name in ("baseline", "sparse", "sparse-proximal"):
            shutil.rmtree(copy / "seed-0" / name / "checkpoints")
    else:
        (copy / "seed-0" / "baseline" / "checkpoints" / "2" / "checksums.json").unlink()
    patched.main(["--quick", "--out", str(copy)])
    assert results(copy) == results(out)
    gone = "baseline, sparse, sparse-proximal" if spoil == "remove" else "baseline"
    assert f"scales left out: the checkpoint of {gone} is gone" in (copy / "report" / "report.md").read_text()
    assert (copy / "report" / "scales.png").exists() == (spoil == "damage")


@pytest.mark.parametrize(("name", "result"), [("cut", {"a": 1}), ("sweep", {"rows": []}), ("sweep", {"rows": [1]})])
def test_a_result_that_was_edited(out, patched, tmp_path, name, result):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    file = copy / "seed-0" / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "result": result}))
    with pytest.raises(
        InputError, match=r"A result in \S+out is not what its stage writes \(\w+Error: .*delete it, and"
    ):
        patched.main(["--quick", "--out", str(copy)])


def test_images_of_the_user_are_not_replaced(patched, tmp_path):
    mine = tmp_path / "images.npz"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"is what --quick writes; give the images that it was taken from"):
        patched.main(["--quick", "--dataset", str(tmp_path / "quick" / "images.npz"), "--out", str(tmp_path)])
    with pytest.raises(InputError):
        patched.main(["--quick", "--dataset", str(mine), "--out", str(tmp_path)])
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"reference": {}}'])
def test_published_figures_that_are_gone(patched, tmp_path, monkeypatch, content):
    file = tmp_path / "published.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr("reproduce_report.PUBLISHED", file)
    with pytest.raises(InputError, match=r"published.json cannot be read; restore it: git checkout published.json"):
        patched.main(["--quick", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_another_configuration_is_refused(out, patched):
    with pytest.raises(InputError, match=r"baseline.json is of another configuration \(epochs 2 there, 3 here\)"):
        patched.main(["--quick", "--epochs", "3", "--out", str(out)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds is 0; it must lie between 1 and 1000."),
        (["--out", ""], "--out is empty; give a folder to make."),
        (
            ["--epochs", "1000000000"],
            "1000000000 epochs take 3000000000 steps, more than",
        ),
        (["--width", "0"], "width is 0.0; it must lie in (0, 1], for example 0.25."),
        (["--epochs", "0"], "epochs is 0; it must be a number of at least 1."),
        (
            ["--out", __file__],
            "test_reproduce.py cannot be a folder, since a file is in its place; choose another --out",
        ),
    ],
)
def test_unusable_options(patched, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the default --out would be made
    with pytest.raises(InputError, match=re.escape(message)):
        patched.main(["--quick", *arguments])
    assert not Path("runs").exists()
