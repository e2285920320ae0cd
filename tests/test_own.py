"""Networks of the user's own code in the trainer: all commands on them, checkpoints with and without the code."""

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_networks
import pytest
from flax import nnx
from test_commands import assert_one_message, flat, invoke, python
from test_loop import write_data

import jaxslim
from jaxslim.commands import evaluate, export, multipass, prune, sensitivity, sweep, train
from jaxslim.models import MODELS, build
from jaxslim.storage import checkpoint
from jaxslim.storage.programs import Program
from jaxslim.training import own
from jaxslim.training.config import TrainConfig
from jaxslim.training.loop import train as train_network

SHAPE = (8, 8, 1)
NAMES = ("Linen", "NNX", "build")
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _nothing_known():
    """A command of its own knows no code until its `--model` names some."""
    yield
    _forget()


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def run(module: Any, *argv: Any) -> Any:
        _forget()
        return invoke(capsys, module, *argv)

    return run


def _forget() -> None:
    for name in [name for name in MODELS if ":" in name]:
        del MODELS[name]


def config(folder: Path, model: str, **changes: Any) -> TrainConfig:
    """A run of a few steps on grey images of 8x8 pixels, three classes."""
    file = folder / "data.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_data(file)
    fields: dict[str, Any] = {
        "dataset": str(file), "image_size": 8, "channels": 1, "mean": (0.5,), "std": (0.5,), "augment": ("flip",),
        "epochs": 3, "batch_size": 8, "learning_rate": 0.05, "l1": 0.01, "workdir": str(folder / "run"),
    }  # fmt: skip
    return TrainConfig(model=model, **fields | changes)


@functools.cache
def make_home(base: Path) -> Path:
    """For each network a folder with its run."""
    for name in NAMES:
        train_network(config(base / name, f"own_networks:{name}", model_args={"width": 6}))
    _forget()
    return base


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.getbasetemp() / "own")


def images(count: int = 5) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (count, *SHAPE))


def logits_of_user(module: Any, variables: Any) -> jax.Array:
    """What the user's own module computes."""
    if isinstance(module, nnx.Module):
        module.eval()
        return module(images())
    return module.apply(variables, images(), training=False)


def users(name: str) -> Any:
    return own_networks.Linen(3, 6) if name == "Linen" else own_networks.NNX(3, 6, rngs=nnx.Rngs(5))


@every
def test_a_run_loads_with_the_code_and_without(home, name):
    """The checkpoint loads as a program, with the user's module, and as what was registered, with equal outputs."""
    run = home / name / "run"
    program, variables, meta = jaxslim.load(run)
    assert isinstance(program, Program)
    assert meta["module"]["model"] == f"own_networks:{name}"
    logits = program.apply(variables, images())
    module, own_variables, _ = jaxslim.load(run, module=users(name))
    assert type(module) is type(users(name))
    np.testing.assert_allclose(logits_of_user(module, own_variables), logits, rtol=1e-5, atol=1e-6)
    own.register(f"own_networks:{name}")
    adapted, adapted_variables, _ = jaxslim.load(run)
    np.testing.assert_allclose(adapted.apply(adapted_variables, images()), logits, rtol=1e-5, atol=1e-6)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["l1"] < rows[0]["l1"]  # it is pulled
    assert rows[-1]["loss"] < rows[0]["loss"]


@every
def test_a_stopped_run_goes_on_bit_for_bit(home, tmp_path, name):
    shutil.copytree(home / name, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    shutil.rmtree(run / "checkpoints" / "18")
    train_network(config(home / name, f"own_networks:{name}", model_args={"width": 6}, workdir=str(run)))
    one, other = (jaxslim.load(folder).meta for folder in (home / name / "run", run))
    assert one["digest"] == other["digest"]
    assert one["metrics"] == other["metrics"]


def test_dropout_of_nnx_draws_anew_in_each_layer_and_step():
    """Layers of one stream drop other units, steps too, and the same key drops the same."""

    class Two(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.stack([layer(x) for layer in self.layers])

    module = own.Adapted(lambda rngs, dtype: Two(rngs), {})
    variables = module.init(jax.random.key(0), None)

    def dropped(seed: int) -> np.ndarray:
        out, after = module.apply(
            variables, jnp.ones(64), train=True, mutable=["rngs"], rngs={"d": jax.random.key(seed)}
        )
        assert after["rngs"] is variables["rngs"]
        return np.asarray(out) == 0

    first = dropped(1)
    assert (first[0] != first[1]).any()
    assert (first != dropped(2)).any()
    assert (first == dropped(1)).all()
    assert not (np.asarray(module.apply(variables, jnp.ones(64))) == 0).any()


@pytest.mark.parametrize("name", ["Linen", "NNX"])
def test_every_command_works_on_it(call, home, tmp_path, name):
    folder = tmp_path / "home"
    shutil.copytree(home / name, folder)
    run, code = folder / "run", f"own_networks:{name}"
    data = ["--dataset", folder / "data.npz"]
    shown = call(evaluate, run, *data)
    assert shown.code == 0, shown.err
    assert f"network     {type(users(name)).__name__}, as a program" in shown.out
    for module, words in ((sweep, ["--ratios", 0, 0.4]), (sensitivity, ["--ratios", 0.5])):
        done = call(module, run, *data, *words, "--model", code)
        assert done.code == 0, done.err
        assert f"--model {code}" in flat(done.out).rpartition("Next: ")[2]
    cut = folder / "cut"
    done = call(prune, run, *data, "--ratio", 0.4, "--out", cut, "--recalibrate", 2, "--model", code)
    assert done.code == 0, done.err
    small = jaxslim.load(cut)
    full = jaxslim.load(run)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(found.variables["params"])) for found in (full, small)]
    assert sizes[1] < sizes[0]
    whole, variables, _ = jaxslim.load(cut, module=users(name))
    if name == "Linen":
        np.testing.assert_allclose(
            whole.apply(variables, images(), training=False), small.module.apply(small.variables, images()), atol=1e-6
        )
    else:
        np.testing.assert_allclose(
            logits_of_user(whole, None), small.module.apply(small.variables, images()), atol=1e-6
        )
    done = call(train, "--init-from", cut, *data, "--epochs", 1, "--model", code)
    assert done.code == 0, done.err
    tuned = folder / "cut-finetuned"
    again = jaxslim.load(tuned)
    assert again.meta["kind"] == "fine-tuned"
    shapes = [jax.tree.map(jnp.shape, found.variables["params"]) for found in (small, again)]
    assert shapes[0] == shapes[1]
    shown = call(evaluate, tuned, *data)
    assert f"{again.meta['metrics']['accuracy']:.2%}" in shown.out
    done = call(export, tuned, "--out", folder / "net.onnx", "--model", code)
    assert done.code == 0, done.err
    done = call(multipass, run, *data, "--passes", 1, "--epochs", 1, "--model", code)
    assert done.code == 0, done.err


@every
@pytest.mark.parametrize(
    ("command", "words"), [(prune, ["--ratio", 0.5, "--out"]), (train, ["--name", "x", "--workdir"])]
)
def test_what_needs_the_code_says_so(call, home, tmp_path, name, command, words):
    start = ["--init-from"] if command is train else []
    done = call(command, *start, home / name / "run", *words, tmp_path / "out")
    assert_one_message(
        done, f"a network of your own code, which no checkpoint brings along; add --model own_networks:{name}"
    )
    assert not (tmp_path / "out").exists()


def test_statistics_are_estimated_again_as_by_hand():
    """The mean of each batch's own statistics, in NNX too."""
    own.register("own_networks:NNX")
    module = build("own_networks:NNX", {"width": 4}, num_classes=3, dtype=jnp.float32)
    variables = module.init(jax.random.key(0), images())
    batches = [images(4), images(4) * 2 + 1]
    found = jaxslim.recalibrate(module, variables, batches)["batch_stats"]["norms"][0]
    kernel = variables["params"]["convs"][0]["kernel"]

    def conv(x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    outputs = [conv(batch) for batch in batches]
    np.testing.assert_allclose(found["mean"], sum(y.mean((0, 1, 2)) for y in outputs) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], sum(y.var((0, 1, 2)) for y in outputs) / 2, rtol=1e-3)


# Whose code is imported


TRAP = """
from pathlib import Path
from own_networks import Linen
Path(__file__).with_name("imported").touch()
"""


def test_loading_never_imports_what_a_checkpoint_names(tmp_path):
    """Nor does a command, unless the user names the code; code that has moved is named by its new place."""
    (tmp_path / "trap.py").write_text(TRAP)
    shutil.copy(own_networks.__file__, tmp_path)
    options = config(tmp_path, "trap:Linen", epochs=1)
    words = ["--image-size", 8, "--channels", 1, "--epochs", 1, "--batch-size", 8, "--dataset", options.dataset]
    words += ["--augment", "flip", "--workdir", "run", "--model", "trap:Linen"]
    done = python("-m", "jaxslim", "train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "imported").unlink()
    for line in (
        ["evaluate", "run"],
        ["prune", "run", "--ratio", 0.5, "--out", "cut"],
        ["train", "--init-from", "run"],
    ):
        done = python("-m", "jaxslim", *line, cwd=tmp_path)
        assert done.returncode == (0 if line[0] == "evaluate" else 2), done.stderr
        assert not (tmp_path / "imported").exists()
    (tmp_path / "moved").mkdir()
    (tmp_path / "trap.py").rename(tmp_path / "moved" / "nets.py")
    done = python(
        "-m", "jaxslim", "prune", "run", "--ratio", 0.5, "--out", "cut", "--model", "moved.nets:Linen", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    done = python(
        "-m", "jaxslim", "train", "--init-from", "cut", "--epochs", 1, "--model", "moved.nets:Linen", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


# Mistakes


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("own_networks:NUMBER", [], "own_networks:NUMBER is 3, which cannot be called; name what builds a network"),
        ("own_networks:missing", [], "own_networks has no missing; name what builds a network"),
        ("no_such_module:build", [], "There is no module no_such_module; start the command in the folder that holds"),
        ("own_networks:", [], "model is 'own_networks:'; code is named as my_package.my_module:build"),
        ("own networks:x", [], "code is named as my_package.my_module:build"),
        ("own_networks:Linen", ["--model-args", "widht=3"], "unexpected keyword argument 'widht'"),
        ("own_networks:needs_width", [], "missing 1 required positional argument: 'width'"),
        ("own_networks:list_of_layers", [], "It makes [3]; a network is a Flax Linen or NNX module"),
        ("own_networks:NoTrain", [], "NoTrain takes no train, so training and evaluation would be one"),
        ("own_networks:Segmentation", [], "gives (1, 8, 8, 3) for an image, no logits (images, classes)"),
        ("own_networks:Pair", [], "gives tuple for an image, no logits (images, classes)"),
        ("own_networks:NoScales", ["--l1", "0.1"], "NoScales has no scales that L1 could pull on"),
        ("own_networks:Five", [], "own_networks:Five tells 5 classes apart and"),
        ("own_networks:Failing", [], "no_such_attribute"),
        ("own_networks:NNX", ["--dtype", "bfloat16"], "own_networks:NNX takes no dtype"),
        ("own_networks:INSTANCE", [], "own_networks:INSTANCE is a module already; name the class, or a function that"),
        ("own_networks:Linen", ["--model-args", "num_classes=7"], "model_args give num_classes; leave it out"),
        ("own_networks:Probabilities", [], "own_networks:Probabilities gives probabilities, which sum to 1; return"),
        ("own_networks:Heads", [], "own_networks:Heads gives tuple in training and logits (4, 3) in evaluation"),
        ("own_networks:Wider", [], "own_networks:Wider gives (4, 6) in training and logits (4, 3) in evaluation"),
        (
            "own_networks:Mapped",
            [],
            "own_networks:Mapped in training cannot be applied to images of shape (8, 8, 1) (F",
        ),
    ],
)
def test_mistakes(call, tmp_path, model, words, message):
    file = config(tmp_path, model).dataset
    where = ["--dataset", file, "--image-size", 8, "--channels", 1, "--workdir", tmp_path / "run"]
    done = call(train, *where, "--epochs", 1, "--batch-size", 8, "--model", model, *words)
    assert_one_message(done, message)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_code_that_cannot_be_imported(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_code.py").write_text("import no_such_package")
    (tmp_path / "raising_code.py").write_text("raise ValueError('no')")
    for name, message in (
        ("broken_code", "broken_code imports no_such_package, which is not installed"),
        ("raising_code", "raising_code cannot be imported (ValueError: no)"),
    ):
        assert_one_message(call(train, "--model", f"{name}:x"), message)
    sys.path.remove(str(tmp_path))


def test_other_code_than_that_of_the_checkpoint(call, home, tmp_path):
    done = call(prune, home / "Linen" / "run", "--ratio", 0.5, "--out", tmp_path / "x", "--model", "own_networks:NNX")
    assert_one_message(done, "is of another network than the model")


def test_edited_code_is_refused(tmp_path):
    """The parameters still fit, and the network would silently be another."""
    code = "from flax import linen as nn\n\n\nclass Net(nn.Module):\n    num_classes: int\n\n    @nn.compact\n"
    code += "    def __call__(self, x, train):\n        x = nn.BatchNorm(not train)(nn.Conv(8, (3, 3))(x))\n"
    code += "        return nn.Dense(self.num_classes)(nn.relu(x).mean((1, 2)))\n"
    (tmp_path / "edited.py").write_text(code)
    file = config(tmp_path, "").dataset
    words = ["--dataset", file, "--image-size", 8, "--channels", 1, "--workdir", "run", "--batch-size", 8]
    done = python("-m", "jaxslim", "train", "--model", "edited:Net", *words, "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "edited.py").write_text("# a comment\n" + code)
    cut = ["-m", "jaxslim", "prune", "run", "--ratio", 0.3, "--model", "edited:Net", "--out"]
    assert python(*cut, "cut", cwd=tmp_path).returncode == 0
    (tmp_path / "edited.py").write_text(code.replace("nn.relu", "nn.gelu"))
    tune = ["-m", "jaxslim", "train", "--init-from", "cut", "--model", "edited:Net"]
    for command in ([*cut, "cut2"], tune):
        done = python(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert "The code of the model computes something else than the network in " in done.stderr
        assert done.stderr.count("\n") == 1


def test_scales_of_groups_decide_and_parameters_become_float32(call, tmp_path):
    """GroupNorm ties a group's channels in two ways: whole groups go, or the same place of each group."""
    made = train_network(config(tmp_path, "own_networks:Grouped", l1=1e-3, epochs=1))
    own.register("own_networks:Grouped")
    loaded = jaxslim.load(tmp_path / "run")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.variables)} == {"float32"}
    assert made
    words = ["--ratio", 0.5, "--out", tmp_path / "cut", "--model", "own_networks:Grouped"]
    done = call(prune, tmp_path / "run", *words)
    assert done.code == 0, done.err
    small = jaxslim.load(tmp_path / "cut")
    assert small.variables["params"]["GroupNorm_0"]["scale"].shape[0] <= 8


def test_a_checkpoint_of_one_of_jaxslims_own_networks_takes_no_code(call, tmp_path):
    train_network(config(tmp_path, "vgg", model_args={"widths": (4,)}, epochs=1))
    done = call(prune, tmp_path / "run", "--ratio", 0.5, "--out", tmp_path / "x", "--model", "own_networks:Linen")
    assert_one_message(done, "holds no network of your code, so there is none to import; leave --model out")
    done = call(prune, tmp_path / "run", "--ratio", 0.5, "--out", tmp_path / "x", "--model", "vgg")
    assert_one_message(done, "--model is 'vgg'; it names the code of a network of your own")


def test_precision_reaches_the_builder(tmp_path):
    """Parameters stay float32, logits come back in float32, and what lies between is bfloat16."""
    own.register("own_networks:Linen")
    module = build("own_networks:Linen", {}, num_classes=3, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), images())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert module.apply(variables, images()).dtype == jnp.float32
    assert "bf16" in str(jax.make_jaxpr(module.apply)(variables, images()))
    assert "bf16" not in str(jax.make_jaxpr(module.clone(dtype=jnp.float32).apply)(variables, images()))


# Uncut networks of any kind on disk


def test_a_model_with_inputs_is_saved_as_a_program(tmp_path):
    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((3, 1))}
    checkpoint.save(tmp_path / "net", apply, params, inputs=(np.ones((1, 2), np.float32),))
    program, variables, _ = jaxslim.load(tmp_path / "net")
    np.testing.assert_allclose(program.apply(variables, np.ones((4, 2), np.float32)), apply(params, np.ones((4, 2))))
    function, variables, _ = jaxslim.load(tmp_path / "net", module=apply)
    assert function is apply
    np.testing.assert_array_equal(variables["a"], params["a"])
    with pytest.raises(jaxslim.InputError, match="is of another network than the model: a has shape"):
        jaxslim.load(tmp_path / "net", module=apply, variables={"a": jnp.ones((2, 4)), "b": params["b"]})
