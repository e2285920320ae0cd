"""The configuration: the recipe of the reference, the files of configs/, and what is refused."""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxslim.errors import InputError
from jaxslim.experiments.configs import load_config
from jaxslim.training.config import DIGITS, TrainConfig, from_json

HOME = Path(__file__).resolve().parents[1]

# The recipe that the PyTorch reference and foolwood publish, in the words of TrainConfig.
RECIPE = {
    "image_size": 32,
    "channels": 3,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "pad": 4,
    "augment": ("crop", "flip"),
    "holdout": 0.0,
    "model": "vgg19",
    "model_args": {},
    "loss": "cross-entropy",
    "label_smoothing": 0.0,
    "distill_from": None,
    "optimizer": "sgd",
    "optimizer_args": {},
    "dtype": "float32",
    "batch_size": 100,
    "learning_rate": 0.1,
    "lr_drops": (0.5, 0.75),
    "lr_drop_factor": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0001,
}
CIFAR = {
    "cifar10_baseline": {"name": "cifar10-baseline", "dataset": "cifar10", "epochs": 160, "l1": 0.0},
    "cifar10_sparse": {"name": "cifar10-sparse", "dataset": "cifar10", "epochs": 160, "l1": 0.0001},
    "cifar10_finetune": {
        "name": "cifar10-finetuned",
        "epochs": 40,
        "l1": 0.0,
        "init_from": "runs/cifar10-pruned",
    },
    "cifar10_sparse_recommended": {
        "name": "cifar10-proximal",
        "dataset": "cifar10",
        "epochs": 160,
        "l1": 0.0001,
        "l1_method": "proximal",
    },
    "cifar10_finetune_recommended": {
        "name": "cifar10-finetuned-recommended",
        "epochs": 40,
        "l1": 0.0,
        "init_from": "runs/cifar10-best-cut",
        "schedule": "cosine",
    },
    "cifar100_baseline": {"name": "cifar100-baseline", "dataset": "cifar100", "epochs": 160, "l1": 0.0},
    "cifar100_sparse": {"name": "cifar100-sparse", "dataset": "cifar100", "epochs": 160, "l1": 0.0001},
    "cifar100_finetune": {
        "name": "cifar100-finetuned",
        "epochs": 160,
        "l1": 0.0,
        "init_from": "runs/cifar100-pruned",
    },
}
DIGITS_RUNS = {
    "digits_baseline": {"name": "digits-baseline", "l1": 0.0, "init_from": None},
    "digits_sparse": {"name": "digits-sparse", "l1": 0.01, "init_from": None},
    "digits_finetune": {"name": "digits-finetuned", "l1": 0.0, "init_from": "runs/digits-pruned"},
}

# The recipes of Liu et al. (ICCV 2017), section 4.3, in the words of TrainConfig.
BY_DATA = {
    "cifar10": {"dataset": "cifar10", "epochs": 160, "augment": ("crop", "flip"), "batch_size": 64},
    "cifar100": {"dataset": "cifar100", "epochs": 160, "augment": ("crop", "flip"), "batch_size": 64},
    "svhn": {"dataset": "svhn_cropped+extra", "epochs": 20, "augment": ("crop",), "batch_size": 64},
    "imagenet": {"dataset": "imagenet2012", "epochs": 60, "image_size": 224, "batch_size": 256},
    "mnist": {"dataset": "mnist", "epochs": 30, "image_size": 28, "channels": 1, "batch_size": 256},
}
LAMBDA = {"resnet164": 1e-5, "densenet40": 1e-5, "vgg19": 1e-4, "vgg_a": 1e-5, "mlp": 1e-3}  # MNIST's is not published
PAPER = (
    *("cifar10_resnet164", "cifar10_densenet40", "cifar100_resnet164", "cifar100_densenet40"),
    *("svhn_resnet164", "svhn_densenet40", "svhn_vgg19", "imagenet_vgg_a", "mnist_mlp"),
)


def values(config, names):
    return {name: getattr(config, name) for name in names}


def test_the_defaults_are_the_references_recipe():
    assert values(TrainConfig(), RECIPE) == RECIPE
    assert values(TrainConfig(), ["dataset", "epochs", "l1"]) == {"dataset": "cifar10", "epochs": 160, "l1": 0.0}
    as_there = {"schedule": "step", "l1_method": "subgradient", "decay_scales": True}
    assert values(TrainConfig(), as_there) == as_there


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_configs(name):
    expected = RECIPE | {"init_from": None, "workdir": None} | CIFAR[name]
    config = load_config(str(HOME / "configs" / f"{name}.py"))
    assert values(config, expected) == expected
    assert config.folder == f"runs/{CIFAR[name]['name']}"


@pytest.mark.parametrize("name", DIGITS_RUNS)
def test_digits_configs(name):
    images = {"dataset": "digits", "channels": 1, "image_size": 16, "augment": ("crop",)}
    expected = DIGITS_RUNS[name] | ({} if DIGITS_RUNS[name]["init_from"] else images)  # else the checkpoint knows
    assert values(load_config(str(HOME / "configs" / f"{name}.py")), expected) == expected


@pytest.mark.parametrize("name", PAPER)
def test_configs_of_the_papers_networks(name):
    data, _, model = name.partition("_")
    drops = (0.5, 0.75) if data in ("cifar10", "cifar100", "svhn") else (1 / 3, 2 / 3)
    sgd = {"learning_rate": 0.1, "momentum": 0.9, "optimizer_args": {"nesterov": True}, "weight_decay": 1e-4}
    own = {"name": name.replace("_", "-"), "model": model, "model_args": {}, "l1": LAMBDA[model], "lr_drops": drops}
    expected = BY_DATA[data] | sgd | own
    config = load_config(str(HOME / "configs" / f"{name}.py"))
    assert values(config, expected) == expected
    described = (HOME / "configs" / f"{name}.py").read_text()
    assert f"Baseline: jaxslim train {config.name} --l1 0 --name {config.name}-baseline\n" in described
    assert re.search(rf"\nThen: jaxslim prune {config.folder} --ratio \S+ .*--out {config.folder}-cut\n", described)
    assert f"\n      jaxslim train {config.name} --init-from {config.folder}-cut --l1 0 " in described


@pytest.mark.parametrize("file", sorted((HOME / "configs").glob("*.py")), ids=lambda file: file.stem)
def test_each_config_says_how_to_run_it(file):
    assert file.stem in {**CIFAR, **DIGITS_RUNS, **dict.fromkeys(PAPER)}  # none without expected values above
    described = file.read_text().split('"""')[1]
    assert f"Command: jaxslim train {file.stem.replace('_', '-')}" in described
    assert re.search(r"^Cost: \S", described, re.MULTILINE)
    assert re.search(r"^Expected.*: .*\d %", described, re.MULTILINE)
    if file.stem.endswith("_sparse"):  # what it says comes next makes what the fine-tuning starts from
        tuned = load_config(str(file.with_name(file.name.replace("_sparse", "_finetune"))))
        assert re.search(rf"Then: +jaxslim prune runs/\S+ --ratio \S+ --out {tuned.init_from}\n", described)


def test_without_a_config_the_digits_are_trained_with_sparsity():
    assert load_config(str(HOME / "configs" / "digits_sparse.py")) == DIGITS
    assert DIGITS.l1 > 0


# Values


_unit = st.floats(0, 1, exclude_min=True, exclude_max=True)


@st.composite
def configs(draw):
    channels = draw(st.sampled_from([1, 3]))
    image_size = draw(st.integers(1, 64))
    value = st.integers() | st.booleans() | st.text() | st.floats(allow_nan=False) | st.lists(st.integers())
    arguments = st.dictionaries(st.text(), value, max_size=3)
    text = st.none() | st.text(min_size=1)
    return TrainConfig(
        name=draw(st.text(min_size=1).filter(lambda name: not set(name) & set("/\\\0") and name not in (".", ".."))),
        workdir=draw(text),
        dataset=draw(st.text()),
        data_dir=draw(text),
        image_size=image_size,
        channels=channels,
        holdout=draw(st.floats(0, 1, exclude_max=True)),
        mean=draw(st.tuples(*[st.floats(-9, 9)] * channels)),
        std=draw(st.tuples(*[st.floats(1e-3, 9)] * channels)),
        pad=draw(st.integers(0, image_size - 1)),
        augment=draw(st.lists(st.text()).map(tuple)),
        model=draw(st.text()),
        model_args=draw(arguments),
        init_from=draw(text),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        epochs=draw(st.integers(1, 2**31 - 1)),
        batch_size=draw(st.integers(1, 2**31 - 1)),
        loss=draw(st.sampled_from(["cross-entropy", "focal", "squared-error"])),
        label_smoothing=draw(st.floats(0, 1, exclude_max=True)),
        distill_from=draw(text),
        distill_temperature=draw(st.floats(0.01, 1000)),
        distill_weight=draw(st.floats(0, 1)),
        optimizer=draw(st.text()),
        optimizer_args=draw(arguments),
        learning_rate=draw(st.floats(0, 1e30, exclude_min=True)),
        lr_drops=draw(st.lists(_unit).map(tuple)),
        lr_drop_factor=draw(st.floats(0, 2)),
        momentum=draw(st.floats(0, 1, exclude_max=True)),
        weight_decay=draw(st.floats(0, 1e3)),
        decay_scales=draw(st.booleans()),
        **draw(
            st.sampled_from([{"schedule": "one-cycle"}, *({"schedule": s, "warmup": 0.3} for s in ("step", "cosine"))])
        ),
        l1_method=draw(st.sampled_from(["subgradient", "proximal"])),
        l1=draw(st.floats(0, 1e3)),
        group_lasso=draw(st.floats(0, 1e3)),
        group_lasso_growth=draw(st.floats(0, 1)),
        fit=draw(st.sampled_from(["stretch", "crop"])),
        stream=draw(st.sampled_from(["auto", "always", "never"])),
        workers=draw(st.none() | st.integers(0, 9)),
        skip_broken=draw(st.booleans()),
        accumulate=draw(st.integers(1, 8)),
        ema=draw(st.floats(0, 0.999)),
        progressive=draw(st.floats(0, 1, exclude_max=True)),
        progressive_steps=draw(st.integers(1, 2**31 - 1)),
        progressive_schedule=draw(st.sampled_from(["cubic", "linear"])),
        save_every=draw(st.integers(1, 2**31 - 1)),
        seed=draw(st.integers(0, 2**31 - 1)),
        eval_batch_size=draw(st.integers(1, 2**31 - 1)),
        tensorboard=draw(st.booleans()),
    )


@given(configs())
def test_a_config_comes_back_from_json(config):
    assert from_json(json.loads(json.dumps(dataclasses.asdict(config))), "run") == config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"model": "vgg11", "widths": [4, "M"], "pad": 2, "flip": True},
            {"model": "vgg11", "model_args": {"widths": (4, "M")}, "pad": 2, "augment": ("crop", "flip")},
        ),
        ({"widths": None, "pad": 0, "flip": False}, {"pad": 0, "augment": ()}),
    ],
)
def test_a_config_of_version_0_1_is_read(old, new):
    assert from_json(old, "run") == TrainConfig(**new)


def test_a_config_with_unknown_fields_is_refused():
    with pytest.raises(
        InputError, match=r"runs/a holds a configuration that this jaxslim cannot read \(.*'wings'\); take another"
    ):
        from_json({"wings": 2}, "runs/a")


def test_a_config_is_frozen_and_takes_names_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3
    with pytest.raises(TypeError):
        TrainConfig("run")


COUNT = "[1, 2147483647]"
REFUSED = [
    ({"epochs": 0}, f"epochs is 0; it must lie in {COUNT}."),
    ({"batch_size": 2**31}, f"batch_size is 2147483648; it must lie in {COUNT}."),
    ({"eval_batch_size": 0}, f"eval_batch_size is 0; it must lie in {COUNT}."),
    ({"image_size": -3}, f"image_size is -3; it must lie in {COUNT}."),
    ({"pad": -1}, "pad is -1; it must lie in [0, 2147483647]."),
    ({"pad": 33}, "pad is 33; it must be at most image_size, 32."),
    ({"seed": 2**31}, "seed is 2147483648; it must lie in [0, 2147483647]."),
    ({"weight_decay": -1e-4}, "weight_decay is -0.0001; it must lie in [0, 1e+30]."),
    ({"l1": float("nan")}, "l1 is nan; it must lie in [0, 1e+30]."),
    ({"group_lasso": -1.0}, "group_lasso is -1.0; it must lie in [0, 1e+30]."),
    ({"group_lasso_growth": 1.5}, "group_lasso_growth is 1.5; it must lie in [0, 1]."),
    ({"lr_drop_factor": -0.1}, "lr_drop_factor is -0.1; it must lie in [0, 1e+30]."),
    ({"learning_rate": 0.0}, "learning_rate is 0.0; it must lie in (0, 1e+30]."),
    ({"learning_rate": float("inf")}, "learning_rate is inf; it must lie in (0, 1e+30]."),
    ({"momentum": 1.0}, "momentum is 1.0; it must lie in [0, 1)."),
    ({"holdout": float("nan")}, "holdout is nan; it must lie in [0, 1)."),
    ({"label_smoothing": 1}, "label_smoothing is 1; it must lie in [0, 1)."),
    ({"distill_temperature": 0.0}, "distill_temperature is 0.0; it must lie in [0.01, 1000]."),
    ({"workers": -1}, "workers is -1; it must be at least 0."),
    ({"warmup": 1.0}, "warmup is 1.0; it must lie in [0, 1)."),
    ({"accumulate": 0}, "accumulate is 0; it must lie in [1, 2147483647]."),
    ({"ema": 1.0}, "ema is 1.0; it must lie in [0, 1)."),
    ({"progressive": 1.0}, "progressive is 1.0; it must lie in [0, 1)."),
    ({"distill_weight": 1.5}, "distill_weight is 1.5; it must lie in [0, 1]."),
    ({"distill_from": ""}, "distill_from is empty; give a path, or leave it out."),
    ({"lr_drops": (0.5, 80.0)}, "lr_drops is (0.5, 80.0); it must lie in (0, 1)."),
    ({"mean": (0.5,)}, "mean has 1 numbers for 3 channels; give one a channel."),
    ({"std": (0.5, 0.5)}, "std has 2 numbers for 3 channels; give one a channel."),
    ({"std": (0.5, 0.5, 0.0)}, "std is (0.5, 0.5, 0.0); it must lie in [1e-6, 1e+6]."),
    ({"mean": (0.5, 0.5, float("nan"))}, "mean is (0.5, 0.5, nan); it must lie in [-1e+6, 1e+6]."),
    ({"workdir": ""}, "workdir is empty; give a path, or leave it out."),
    ({"name": ""}, "name is ''; it must be a plain folder name, for example cifar10-sparse."),
    ({"name": ".."}, "name is '..'; it must be a plain folder name"),
    ({"name": "a/b"}, "name is 'a/b'; it must be a plain folder name"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda case: repr(case)[:40])
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TrainConfig(**changes)


WRONG_TYPES = {
    "name": 3,
    "workdir": Path("runs"),
    "dataset": None,
    "data_dir": 3,
    "image_size": 32.0,
    "channels": 2,
    "holdout": "0.1",
    "mean": 0.5,
    "std": ("0.5", "0.5", "0.5"),
    "pad": 0.5,
    "augment": "crop",
    "model": 19,
    "model_args": ("widths",),
    "init_from": False,
    "dtype": "float16",
    "epochs": 2.5,
    "batch_size": "100",
    "loss": "hinge",
    "label_smoothing": "0.1",
    "distill_from": 4,
    "distill_temperature": "4",
    "distill_weight": None,
    "optimizer": None,
    "optimizer_args": "b2=1",
    "learning_rate": "0.1",
    "lr_drops": 0.5,
    "lr_drop_factor": None,
    "momentum": "0.9",
    "weight_decay": (1e-4,),
    "decay_scales": 1,
    "schedule": "linear",
    "l1": "1e-4",
    "group_lasso": "1e-4",
    "group_lasso_growth": "half",
    "l1_method": None,
    "progressive": "half",
    "fit": "middle",
    "stream": True,
    "workers": "two",
    "skip_broken": "yes",
    "warmup": "a tenth",
    "accumulate": 1.5,
    "ema": None,
    "progressive_steps": 2.5,
    "progressive_schedule": "square",
    "save_every": 0.5,
    "seed": "1",
    "eval_batch_size": 1e3,
    "compilation_cache": 1,
    "tensorboard": 1,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainConfig)])
def test_values_of_another_type_are_refused(name):
    """A config file is Python, which checks no types."""
    with pytest.raises(InputError, match=re.escape(f"{name} is {WRONG_TYPES[name]!r}; it must be of type ")):
        TrainConfig(**{name: WRONG_TYPES[name]})


def test_whole_numbers_pass_for_numbers_and_lists_for_tuples():
    config = TrainConfig(weight_decay=0, l1=1, lr_drops=[0.5], model_args={"widths": [4, "M"]})
    assert (config.l1, config.lr_drops, config.model_args) == (1, (0.5,), {"widths": (4, "M")})


# Config files


FILES = [
    ("config = 3", "defines no config; end it with `config = TrainConfig(...)`."),
    ("", "defines no config; end it with `config = TrainConfig(...)`."),
    ("def", "does not run: SyntaxError: "),
    ("import nothing_of_that_name", "does not run: ModuleNotFoundError: No module named 'nothing_of_that_name'."),
    (
        "config = TrainConfig(epoch=3)",
        "unexpected keyword argument 'epoch'. Correct it; `jaxslim train --help`",
    ),
    ("config = TrainConfig(epochs=-1)", ": epochs is -1; it must lie in"),
    ("config = TrainConfig(epochs='3')", ": epochs is '3'; it must be of type int."),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[text for text, _ in FILES])
def test_config_files_that_are_refused(tmp_path, text, message):
    file = tmp_path / "config.py"
    file.write_text(f"from jaxslim.training.config import TrainConfig\n{text}\n")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_config(str(file))
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("name", ["absent.py", "folder.py", "text.txt"])
def test_what_is_no_config_file(tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").write_text("config = 3")
    with pytest.raises(
        InputError, match=re.escape(f"There is no config {tmp_path / name}; give a Python file, or the name")
    ):
        load_config(str(tmp_path / name))


def test_a_config_is_read_anew_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "config.py"
    for epochs in (3, 4):  # as long, and written within the second that bytecode would be told apart by
        file.write_text(f"from jaxslim.training.config import TrainConfig\nconfig = TrainConfig(epochs={epochs})\n")
        os.utime(file, (1e9, 1e9))
        assert load_config(str(file)).epochs == epochs
    assert list(tmp_path.iterdir()) == [file]
