"""The script that reproduces the tables, with a tiny network, few images, and a few stages of each kind."""

import dataclasses
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxslim import data, models
from jaxslim.data import Dataset
from jaxslim.errors import DivergedError, InputError
from jaxslim.experiments import configs
from jaxslim.experiments.stages import Outcome
from jaxslim.storage import checkpoint
from jaxslim.training import loop

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
reproduce, stages, of = map(importlib.import_module, ("reproduce", "reproduce_stages", "reproduce_report"))
recipes = importlib.import_module("reproduce_recipes")

DONE = (
    "baseline",
    "sparse",
    "sweep",
    "cut",
    "tuned-short",
    "tuned-short-cosine",
    "tuned-long",
    "sweep-both",
    "cut-both",
)
DONE += ("tuned-short-both", "sparse-proximal", "sweep-proximal", "pass-1-cut", "pass-1", "pass-2-cut", "pass-2")
RATIOS = (0.0, 0.3, 0.7)
every_stage = stages.stages_of_seed


@pytest.fixture(scope="module", autouse=True)
def _small():
    """The script with a tiny network, tiny images in place of CIFAR-10, fewer stages and fewer ratios."""
    rng = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 10
    images = (rng.integers(0, 100, (400, 32, 32, 3)) + 15 * labels[:, None, None, None]).astype(np.uint8)
    tiny = Dataset("cifar10", images, labels, images[:100], labels[:100], tuple("abcdefghij"))
    load = data.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, **how: tiny if name == "cifar10" else load(name, **how))
        patch.setattr(
            stages, "stages_of_seed", lambda *args: [stage for stage in every_stage(*args) if stage.name in DONE]
        )
        patch.setattr(stages, "RATIOS", RATIOS)
        patch.setattr(reproduce, "QUICK", {"width": 0.5, "epochs": 2, "l1": 1e-2})
        patch.setattr(reproduce, "QUICK_IMAGES", 300)
        for name, small in (("VGG", {"widths": (8, "M", 16, "M")}), ("PreResNet", {"depth": 11, "widths": (2, 2, 4)})):
            patch.setitem(recipes.KINDS, name, recipes.KINDS[name]._replace(small=small))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished rehearsal."""
    folder = tmp_path_factory.mktemp("reproduce") / "out"
    reproduce.main(["--quick", "--out", str(folder)])
    return folder


@pytest.fixture
def out(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "out")


def results(out):
    return json.loads((out / "report" / "results.json").read_text())


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_every_stage_leaves_its_numbers(finished):
    (found,) = results(finished)
    assert tuple(found) == DONE
    assert {path.stem for path in (finished / "seed-0").glob("*.json")} == set(DONE)
    files = {path.name for path in (finished / "report").iterdir()}
    assert files >= {"report.md", "report.json", "pipeline.csv", "sweep.csv", "accuracy.png", "compared.png"}
    assert all(0 <= one["accuracy"] <= 1 for one in found.values() if "rows" not in one)
    assert [row["ratio"] for row in found["sweep"]["rows"]] == list(RATIOS)


def test_numbers_agree_with_each_other(finished):
    (found,) = results(finished)
    for cut, sweep in (("cut", "sweep"), ("cut-both", "sweep-both")):
        row = found[sweep]["rows"][-1]
        assert found[cut]["accuracy"] == pytest.approx(row["accuracy"], abs=0.011)  # one image may be close
        assert (found[cut]["params"], found[cut]["macs"]) == (row["params"], row["macs"])
        assert found[cut]["architecture"] == row["architecture"]
    assert found["sweep"]["rows"][0]["accuracy"] == found["sparse"]["accuracy"]
    assert found["tuned-short"]["params"] == found["cut"]["params"] < found["sparse"]["params"]
    names = ("sparse", "pass-1-cut", "pass-2-cut")
    first, second, third = (checkpoint.load(finished / "seed-0" / name).module.widths for name in names)
    for before, after in ((first, second), (second, third)):
        assert all(new == old or old / 2 <= new < old for new, old in zip(after, before, strict=True))
    assert first == (4, "M", 8, "M") != second != third


def test_only_some_cuts_absorb_and_recalibrate(finished):
    plans = {name: checkpoint.load(finished / "seed-0" / name).meta["plan"] for name in ("cut", "cut-both")}
    assert [plans["cut"][how] for how in ("absorb", "recalibrate")] == [False, 0]
    assert [plans["cut-both"][how] for how in ("absorb", "recalibrate")] == [True, 20]


def test_the_report_shows_them_beside_what_is_published(finished):
    (found,) = results(finished)
    text = (finished / "report" / "report.md").read_text()
    of_what = "300 images of cifar10, a rehearsal: the accuracies mean nothing"
    assert text.startswith(f"# Network slimming of vgg19 on {of_what}")
    for name in ("baseline", "sparse", "cut", "tuned-short", "pass-2"):
        assert f"{100 * found[name]['accuracy']:.2f}" in text
    row = re.search(r"\| Baseline \|(.*)\|", text.partition("Beside what is published")[2])[1].split("|")
    assert [float(cell) for cell in row[1:]] == [93.26, 93.62, 93.77, 93.66]
    for note in (
        "vgg19 [4, 'M', 8, 'M']; 2 epochs, batch 100, L1 0.01",
        "no comparison",
        "python scripts/reproduce.py --quick",
    ):
        assert note in text


def test_the_same_command_trains_nothing_twice_and_needs_checkpoints_only_for_a_plot(out, monkeypatch):
    shutil.rmtree(out / "report")
    shutil.rmtree(out / "seed-0" / "sparse-proximal" / "checkpoints")
    (checkpoint.find(out / "seed-0" / "baseline") / "checksums.json").unlink()
    before = modified(out / "seed-0")
    monkeypatch.setattr(loop, "train", None)
    reproduce.main(["--quick", "--out", str(out)])
    assert modified(out / "seed-0") == before
    text = (out / "report" / "report.md").read_text()
    assert "checkpoints gone or damaged, so that no plot shows their scales: baseline, sparse-proximal" in text
    assert (out / "report" / "scales.png").exists()  # of the one that is left


def test_a_lost_stage_is_done_again_and_others_are_not(finished, out):
    home = out / "seed-0"
    (home / "cut.json").unlink()
    shutil.rmtree(home / "cut")
    (home / "cut-both.json").unlink()  # its checkpoint is there, in a folder of another name than when it was cut
    before = modified(home / "cut-both")
    shutil.rmtree(home / "pass-2")  # its result is there
    (out / "report" / "results.json").unlink()
    reproduce.main(["--quick", "--out", str(out)])
    assert results(out) == results(finished)
    assert (home / "cut").exists()
    assert modified(home / "cut-both") == before
    assert not (home / "pass-2").exists()


def test_a_failed_stage_is_named_and_the_rest_reported(out, monkeypatch):
    for name in ("tuned-short", "pass-1", "pass-2-cut", "pass-2", "tuned-long"):
        (out / "seed-0" / f"{name}.json").unlink()
        shutil.rmtree(out / "seed-0" / name)
    train = loop.train

    def fragile(config):
        if config.name in ("tuned-short", "pass-1"):
            raise DivergedError("The training diverged in epoch 1, step 3.")
        return train(config)

    monkeypatch.setattr(loop, "train", fragile)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--quick", "--out", str(out)])
    said = str(ended.value)  # which makes the exit code 1
    assert "failed: seed 0: tuned-short (The training diverged in epoch 1, step 3.); seed 0: pass-1 (" in said
    assert "; 2 more that need their results. The same command tries these stages again." in said
    text = (out / "report" / "report.md").read_text()
    assert "- failed: seed 0: tuned-short (The training diverged" in text
    assert "Several passes" not in text
    (found,) = results(out)
    assert found["pass-1"] == found["pass-2-cut"] == found["pass-2"] == {}
    assert 0 <= found["tuned-long"]["accuracy"] <= 1


def test_several_seeds_give_means_and_deviations(out):
    """The second seed's results are the first's, but two points better."""
    home = out / "seed-1"
    home.mkdir()
    for file in (out / "seed-0").glob("*.json"):
        shutil.copy(file, home)
        record = json.loads(file.read_text())
        if "seed" in record["spec"]:
            record["spec"]["seed"] = 1
        for row in record["result"].get("rows", [record["result"]]):
            row["accuracy"] += 0.02
        change(home / file.name, **record)
    reproduce.main(["--quick", "--seeds", "2", "--out", str(out)])
    first, second = (found["sparse"]["accuracy"] for found in results(out))
    shown = f"{50 * (first + second):.2f} \N{PLUS-MINUS SIGN} {100 * abs(first - second) / 2**0.5:.2f}"
    text = (out / "report" / "report.md").read_text()
    assert f"| Trained with sparsity | {shown} |" in text
    assert f"| 0 | {shown} |" in text


def told_apart(names):
    """Outcomes with an accuracy and a size of their own: the number of the stage, as per cent and millions."""
    outcomes = {}
    for number, name in enumerate(names, start=1):
        size = {"params": 1_000_000 * number, "macs": 10_000_000 * number}
        rows = [{"ratio": ratio, "accuracy": number / 100 + ratio / 100, "kept": {}, **size} for ratio in RATIOS]
        outcomes[name] = Outcome({"rows": rows} if name.startswith("sweep") else {"accuracy": number / 100, **size})
    return outcomes


def test_each_cell_of_the_tables_is_of_its_own_stage(tmp_path):
    """With an accuracy of its own for every stage."""
    recipe = recipes.recipe("vgg19", "cifar10")
    base = recipe.config
    names = [stage.name for stage in every_stage(stages.Setting(base, "", tmp_path, recipe.plan), True)]
    assert len(set(names)) == len(names) == 48
    report = of.compose(recipe, base, "cifar10", {tmp_path: told_apart(names)}, "")
    assert "published figures" not in report.notes
    tables = {table.title.partition(":")[0]: table for table in report.more_tables}

    def shown(*stages):
        return [f"{names.index(stage) + 1:.2f}" if stage else "" for stage in stages]

    beside = tables["Beside what is published"].rows
    pipeline = ["Baseline", "Trained with sparsity", "Cut at 0.7", "Fine-tuned, 10 epochs", "Fine-tuned, 40 epochs"]
    assert [row[0] for row in beside[:5]] == [row.name for row in report.pipeline] == pipeline
    assert [row[1] for row in beside[:5]] == shown("baseline", "sparse", "cut", "tuned-short", "tuned-long")
    assert [row[1] for row in beside[6:]] == [f"{names.index('cut') + 1:.2f}", f"{(names.index('cut') + 1) / 100:.2f}"]
    for number, row in enumerate(tables["Several passes, each cutting up to half of each layer"].rows, start=1):
        assert row[1:3] == shown(f"pass-{number}-cut", f"pass-{number}")
    rows = {row[0]: row[1:] for row in tables["Techniques at 0.7"].rows}
    techniques = {
        "": "as the reference",
        "-absorbed": "absorbed",
        "-recalibrated": "recalibrated",
        "-both": "both",
        "-proximal": "proximal",
        "-proximal-undecayed": "proximal, undecayed",
        "-proximal-both": "proximal; both",
        "-proximal-undecayed-both": "proximal, undecayed; both",
    }
    columns = ("cut", "tuned-short", "tuned-short-cosine", "tuned-short-one-cycle", "tuned-long", "tuned-long-cosine")
    for end, label in techniques.items():
        measured = [f"{column}{end}" for column in columns]
        assert rows[label] == shown(*(name if name in names else "" for name in measured))
    assert sum(cell != "" for cells in rows.values() for cell in cells) == 28
    sweeps = tables["Accuracy (%) without fine-tuning"]
    assert sweeps.header[1:9] == list(techniques.values())
    assert sweeps.rows[1][1:9] == [f"{names.index(f'sweep{end}') + 1.3:.2f}" for end in techniques]
    assert sweeps.rows[1][9:] == [f"{names.index('sweep') + 1:.2f}", "93.95", "9.30", "93.75", "9.12"]


def test_two_ratios_have_cells_of_their_own_beside_the_figures_of_their_network(tmp_path):
    """ResNet-164 on CIFAR-100, of which 0.4 is published."""
    recipe = recipes.recipe("resnet164", "cifar100")
    planned = every_stage(stages.Setting(recipe.config, "", tmp_path, recipe.plan), True)
    names = [stage.name for stage in planned]
    assert len(set(names)) == len(names) == 40 + 3
    report = of.compose(recipe, recipe.config, "cifar100", {tmp_path: told_apart(names)}, "")
    table = report.more_tables[0]
    assert table.header == ["", "jaxslim", "authors (Rethinking)"]

    def mine(stage):
        return f"{names.index(stage) + 1:.2f}"

    assert table.rows[:7] == [
        ["Baseline", mine("baseline"), "76.79"],
        ["Trained with sparsity", mine("sparse"), "76.87"],
        ["Cut at 0.4", mine("cut-0.4"), "48.00"],
        ["Fine-tuned at 0.4, 10 epochs", mine("tuned-short-0.4"), ""],
        ["Fine-tuned at 0.4, 160 epochs", mine("tuned-long-0.4"), "77.36"],
        ["Parameters left at 0.4 (M)", mine("cut-0.4"), "1.49"],
        ["MACs left at 0.4 (G)", f"{(names.index('cut-0.4') + 1) / 100:.2f}", ""],
    ]
    assert [row[1:] for row in table.rows[7:10]] == [
        [mine(f"{name}-0.6"), ""] for name in ("cut", "tuned-short", "tuned-long")
    ]
    assert [row.name for row in report.pipeline[2:]] == [row[0] for row in (*table.rows[2:5], *table.rows[7:10])]
    techniques = report.more_tables[-1]
    assert techniques.title.startswith("Techniques at 0.6")
    assert techniques.rows[3][:2] == ["both", mine("cut-both-0.6")]
    assert "published figures" not in report.notes


@pytest.mark.parametrize(
    "changes", [{"epochs": 12}, {"l1": 1e-3}, {"model_args": {"depth": 164, "widths": (4, 8, 16)}}, {"dataset": "part"}]
)
def test_less_than_the_recipe_is_no_comparison(changes, tmp_path):
    recipe = recipes.recipe("resnet164", "cifar10")
    base = dataclasses.replace(recipe.config, **changes)
    report = of.compose(recipe, base, "cifar10", {tmp_path: {}}, "")
    said = "of resnet164 on cifar10 with all widths, 160 epochs and L1 1e-05: no comparison"
    assert report.notes["published figures"] == said


def test_without_published_figures_there_are_no_columns_for_them(tmp_path):
    recipe = recipes.recipe("densenet22", "cifar10")
    names = [stage.name for stage in every_stage(stages.Setting(recipe.config, "", tmp_path, recipe.plan), False)]
    report = of.compose(recipe, recipe.config, "cifar10", {tmp_path: told_apart(names)}, "")
    assert report.more_tables == ()
    assert [row.name for row in report.pipeline][-1] == "Fine-tuned at 0.6, 40 epochs"
    assert not {"published figures", "authors and paper", "reference at 0.7"} & report.notes.keys()


@pytest.mark.parametrize(
    ("network", "dataset", "ratios", "long", "who"),
    [
        ("vgg19", "cifar10", (0.7,), 4, ["PyTorch reference", "foolwood", "authors (Rethinking)", "paper"]),
        ("vgg19", "cifar100", (0.5,), 1, ["authors (Rethinking)"]),
        ("vgg19", "svhn_cropped+extra", (0.7,), 4, []),
        ("resnet164", "cifar10", (0.4, 0.6), 1, ["authors (Rethinking)", "paper"]),
        ("preresnet164", "/data/cifar-100-binary.tar.gz", (0.4, 0.6), 1, ["authors (Rethinking)"]),
        ("densenet40", "cifar-10-batches-bin", (0.4, 0.6, 0.7), 1, ["authors (Rethinking)", "paper"]),
        ("densenet40", "cifar100", (0.4, 0.6), 1, ["authors (Rethinking)"]),
        ("vgg_a", "/data/imagenet", (0.5,), 4, []),
        ("mlp", "mnist", (0.8,), 4, []),
        ("preresnet20", "cifar10", (0.4, 0.6), 4, []),
    ],
)
def test_each_network_is_cut_at_its_ratios(network, dataset, ratios, long, who, tmp_path):
    recipe = recipes.recipe(network, dataset)
    assert list(recipe.published) == who
    planned = every_stage(stages.Setting(recipe.config, "", tmp_path, recipe.plan), False)
    specs = {stage.name: stage.spec for stage in planned}
    cuts = {name: spec["ratio"] for name, spec in specs.items() if name.startswith("cut")}
    assert tuple(cuts.values()) == ratios
    epochs = recipe.config.epochs
    for name, ratio in cuts.items():
        end = "" if len(ratios) == 1 else f"-{ratio:g}"
        assert name == f"cut{end}"
        assert specs[name]["source"] == "sparse"
        for tuning, expected in ((f"tuned-short{end}", max(1, epochs // 16)), (f"tuned-long{end}", epochs // long)):
            assert specs[tuning]["init_from"] == name
            assert (specs[tuning]["epochs"], specs[tuning]["l1"]) == (expected, 0)
    assert (specs["baseline"]["l1"], specs["sparse"]["l1"]) == (0, recipe.config.l1)
    assert set(ratios) <= set(specs["sweep"]["ratios"])
    assert ("pass-4" in specs) == (network == "vgg19")


@pytest.mark.parametrize(
    ("network", "dataset", "expected"),
    [
        ("resnet164", "cifar10", {"epochs": 160, "batch_size": 64, "l1": 1e-5, "mean": (0.4914, 0.4822, 0.4465)}),
        ("densenet40", "svhn_cropped", {"epochs": 20, "batch_size": 64, "l1": 1e-5, "augment": ("crop",)}),
        (
            "vgg_a",
            "photos",
            {"epochs": 60, "batch_size": 256, "l1": 1e-5, "image_size": 224, "lr_drops": (1 / 3, 2 / 3)},
        ),
        ("mlp", "mnist", {"epochs": 30, "batch_size": 256, "l1": 1e-3, "image_size": 28, "channels": 1, "augment": ()}),
        ("vgg19", "photos", {"epochs": 160, "batch_size": 100, "l1": 1e-4, "mean": (0.5, 0.5, 0.5)}),
        ("resnet50", "photos", {"epochs": 60, "image_size": 224}),
        ("preresnet20", "digits", {"epochs": 20, "l1": 1e-2, "image_size": 16, "channels": 1}),
    ],
)
def test_recipes(network, dataset, expected):
    config = recipes.recipe(network, dataset).config
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.learning_rate, config.lr_drop_factor, config.weight_decay) == (0.1, 0.1, 1e-4)


def packaged_recipes():
    """Packaged configurations of sparse training, with their network and data set."""
    found = {"cifar10-sparse": ("vgg19", "cifar10"), "cifar100-sparse": ("vgg19", "cifar100")}
    for name in configs.packaged():
        data, _, network = name.partition("-")
        if network.replace("-", "_") in models.MODELS:
            found[name] = (network.replace("-", "_"), {"svhn": "svhn_cropped+extra"}.get(data, data))
    return found.items()


@pytest.mark.parametrize(("name", "of_what"), packaged_recipes())
def test_recipes_are_those_of_the_packaged_configurations(name, of_what):
    packaged, mine = configs.load_config(name), recipes.recipe(*of_what).config
    decided = {name for fields in (*recipes.DATA.values(), recipes.AUTHORS, recipes.AUTHORS_CIFAR) for name in fields}
    decided |= {"learning_rate", "lr_drop_factor", "weight_decay", "momentum", "schedule", "optimizer"}
    decided -= set() if packaged.l1 else {"l1"}
    assert len(decided) > 14
    assert {name: getattr(packaged, name) for name in decided} == {name: getattr(mine, name) for name in decided}


@pytest.mark.parametrize("network", ["vgg19", "resnet164", "densenet40", "resnet18_cifar", "vgg_a", "mlp"])
def test_rehearsals_and_shares_of_the_widths_are_of_the_same_kind(network):
    full, half, small = (recipes.model_of(network, *how) for how in ((1.0,), (0.5,), (0.125, True)))
    assert full["model"] == half["model"] == small["model"]

    def params(fields):
        module = models.build(fields["model"], fields["model_args"], num_classes=10, dtype=np.float32)
        shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert params(full) > 1.9 * params(half) > 5 * params(small)


def test_a_network_of_own_code_has_no_widths_to_take_a_share_of():
    assert recipes.recipe("own_networks:Linen", "cifar10").config.model == "own_networks:Linen"
    with pytest.raises(InputError, match=r"own_networks:Linen has no widths .*; leave --width out"):
        recipes.model_of("own_networks:Linen", 0.5)


def test_a_network_with_gates_goes_the_same_way(tmp_path, monkeypatch):
    """And no way of cutting that estimates statistics of BatchNorm is asked of it."""
    few = ("baseline", "sparse", "sweep", "cut", "tuned-short", "cut-absorbed", "cut-recalibrated", "cut-both")
    monkeypatch.setattr(
        stages, "stages_of_seed", lambda *args: [stage for stage in every_stage(*args) if stage.name in few]
    )
    reproduce.main(
        ["--quick", "--network", "mlp", "--dataset", "digits", "--epochs", "4", "--out", str(tmp_path / "out")]
    )
    (found,) = results(tmp_path / "out")
    assert tuple(found) == few[:6]
    assert [row["ratio"] for row in found["sweep"]["rows"]] == [*RATIOS, 0.8]
    gates = checkpoint.load(tmp_path / "out" / "seed-0" / "cut").variables["params"]
    assert sum(gates[f"gate{layer}"].size for layer in (0, 1)) == round(0.2 * (250 + 150))
    assert (tmp_path / "out" / "report" / "scales.png").exists()
    text = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "| dense0 | 250 | 250 |" in text  # in place of an architecture
    assert "Beside what is published" not in text


def test_other_images_of_the_same_name_are_refused(finished, monkeypatch):
    load = data.load

    def others(name, **how):
        found = load(name, **how)
        return found._replace(test_labels=found.test_labels[::-1].copy()) if name == "cifar10" else found

    monkeypatch.setattr(data, "load", others)
    with pytest.raises(InputError, match=r"baseline.json is of another configuration \(images \w+ there, \w+ here\)"):
        reproduce.main(["--quick", "--out", str(finished)])


def test_another_configuration_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match=r"baseline.json is of another configuration \(epochs 2 there, 3 here\)"):
        reproduce.main(["--quick", "--epochs", "3", "--out", str(finished)])
    shutil.copytree(finished / "seed-0" / "sparse", tmp_path / "seed-0" / "sparse")  # as if it were interrupted
    with pytest.raises(InputError, match=r"sparse holds another run \(.*l1 0.01 there, 0.5 here"):
        reproduce.main(["--quick", "--l1", "0.5", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds is 0; it must lie between 1 and 1000."),
        (["--out", ""], "The path '' is empty; choose another name."),
        (["--width", "0"], "width is 0.0; it must lie in (0, 1], for example 0.25."),
        (["--epochs", "0"], "epochs is 0; it must"),
        (["--network", "resnet163"], "There is no model 'resnet163'; the models are "),
        (
            ["--network", "vgg_a", "--dataset", "digits"],
            "vgg_a does not fit the images of digits: 5 poolings shrink images of 16x16 pixels to nothing; choose "
            "another --network or --dataset.",
        ),
        (["--out", __file__], "test_reproduce.py cannot be a folder, since a file is in its place"),
    ],
)
def test_unusable_options(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the default --out would be made
    with pytest.raises(InputError, match=re.escape(message)):
        reproduce.main(["--quick", *arguments])
    assert not Path("runs").exists()
