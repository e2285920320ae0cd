"""Knowledge distillation: the loss by hand and against NumPy, its gradient in a step, and runs with teachers."""

import dataclasses
import json
import re
import shlex

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_commands import invoke
from test_loop import assert_same_run, contents, elsewhere, rows, tiny, write_data
from test_steps import new_state, one_device

import jaxslim
from jaxslim import data
from jaxslim.commands import main as every_command
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import save_cut
from jaxslim.experiments.finetuning import finetuning
from jaxslim.slim.distillation import distillation
from jaxslim.storage import checkpoint
from jaxslim.training import loop
from jaxslim.training.config import TrainConfig
from jaxslim.training.feed import Batch
from jaxslim.training.loop import train
from jaxslim.training.network import Teacher, teacher


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def divergence(student, other, temperature):
    """The loss in float64, as Hinton et al. write it."""
    p, q = softmax(np.float64(other) / temperature), softmax(np.float64(student) / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)


def test_two_classes_by_hand():
    """At temperature 2, logits 0 and 2 ln 3 are probabilities 1/4 and 3/4; the student knows nothing."""
    found = distillation(jnp.zeros((1, 2)), jnp.array([[0.0, 2 * np.log(3)]]), 2.0)
    np.testing.assert_allclose(found, [4 * (0.25 * np.log(0.5) + 0.75 * np.log(1.5))], rtol=1e-5)


logits = st.integers(2, 6).flatmap(
    lambda classes: st.lists(
        st.lists(st.floats(-20, 20, width=32), min_size=classes, max_size=classes), min_size=2, max_size=2
    )
)


@given(logits, st.floats(0.5, 20))
def test_the_loss_is_that_of_numpy(pair, temperature):
    student, other = np.float32(pair)[:, None]
    found = distillation(student, other, temperature)
    assert found.shape == (1,)
    rounding = 1e-6 * temperature * (np.abs(pair).max() + temperature)
    np.testing.assert_allclose(found, divergence(student, other, temperature), rtol=1e-5, atol=rounding)


@given(logits, st.floats(0.5, 20))
def test_its_gradient_is_the_difference_of_the_probabilities(pair, temperature):
    """T (softmax(student / T) - softmax(teacher / T)), and none for the teacher."""
    student, other = np.float32(pair)[:, None]
    of_student, of_other = jax.grad(lambda *pair: distillation(*pair, temperature).sum(), (0, 1))(student, other)
    expected = temperature * (softmax(student / temperature) - softmax(other / temperature))
    np.testing.assert_allclose(of_student, expected, atol=1e-5 * temperature)
    assert not of_other.any()


def test_half_precision_is_computed_in_float32():
    rng = np.random.default_rng(0)
    student, other = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.bfloat16)
    found = distillation(student, other, 4.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, divergence(student, other, 4.0), rtol=1e-4)


@pytest.mark.parametrize(
    ("other", "temperature", "message"),
    [
        (
            np.zeros((2, 4)),
            1.0,
            "The student's logits have shape (2, 3), the teacher's (2, 4); both must tell the same",
        ),
        (np.zeros((2, 3)), 0.0, "The temperature is 0.0; it must be above 0, for example 4."),
        (np.zeros((2, 3)), float("nan"), "The temperature is nan; it must be above 0"),
    ],
)
def test_what_is_no_pair_of_logits(other, temperature, message):
    with pytest.raises(InputError, match=re.escape(message)):
        distillation(np.zeros((2, 3)), other, temperature)


# A step


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1) * (2.0 if train else 1.0)  # a teacher in training would tell something else
        return nn.Dense(3)(x)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_follows_the_mixed_gradient(steps):
    """Of a linear network, by hand in NumPy; the teacher, in evaluation, normalises by its own mean."""
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (8, 2, 2, 1)).astype(np.uint8), rng.integers(0, 3, 8)
    weights, bias, taught_weights = rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=(4, 3))
    config = TrainConfig(channels=1, mean=(0.5,), std=(0.5,), augment=(), distill_temperature=3.0, distill_weight=0.7)
    variables = {"params": {"Dense_0": {"kernel": jnp.float32(weights), "bias": jnp.float32(bias)}}}
    known = {"params": {"Dense_0": {"kernel": jnp.float32(taught_weights), "bias": jnp.zeros(3)}}}
    guide = Teacher(lambda own, x: Linear().apply(own, data.normalise(x, (0.1,), (1.0,))), known)
    tx = optax.sgd(0.1)
    step = loop.train_step(config, Linear(), tx, one_device(), guide)
    rows = np.stack([np.arange(4) + 4 * number for number in range(steps)])
    state = step(new_state(variables, tx), Batch(pixels, labels, jnp.int32(rows)), jax.random.key(0), known)

    total = 0.0
    for chosen in rows:
        x = 2 * (pixels[chosen].reshape(4, 4) / 255 - 0.5) / 0.5
        student, other = x @ weights + bias, (pixels[chosen].reshape(4, 4) / 255 - 0.1) @ taught_weights
        hot = np.eye(3)[labels[chosen]]
        total += (0.3 * -np.log((softmax(student) * hot).sum(1)) + 0.7 * divergence(student, other, 3.0)).sum()
        slope = 0.3 * (softmax(student) - hot) + 0.7 * 3 * (softmax(student / 3) - softmax(other / 3))
        weights, bias = weights - 0.1 * x.T @ slope / 4, bias - 0.1 * slope.mean(0)
    np.testing.assert_allclose(state.variables["params"]["Dense_0"]["kernel"], weights, atol=1e-5)
    np.testing.assert_allclose(state.variables["params"]["Dense_0"]["bias"], bias, atol=1e-5)
    np.testing.assert_allclose(state.sums.loss, total, rtol=1e-5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(known))  # the old state is donated, the teacher is not


# Runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a finished run, `full`, and a network cut from it, `cut`."""
    folder = tmp_path_factory.mktemp("distillation")
    train(tiny(folder, workdir=str(folder / "full")))
    save_cut(folder / "full", folder / "cut", 0.5)
    return folder


def student(home, folder, **changes):
    fields = {"workdir": str(folder / "run"), "epochs": 1, "l1": 0.0, "learning_rate": 0.01}
    return tiny(home, **fields | {"init_from": str(home / "cut"), "distill_from": str(home / "full")} | changes)


def test_a_teacher_without_weight_is_no_teacher(home, tmp_path):
    without = student(home, tmp_path / "a", distill_from=None)
    weightless = student(home, tmp_path / "b", distill_weight=0.0)
    assert_same_run(train(without).folder, train(weightless).folder)
    taught = student(home, tmp_path / "c", distill_weight=0.5)
    assert rows(train(taught).folder)[0]["loss"] != pytest.approx(rows(without.folder)[0]["loss"], rel=0.01)


def test_a_run_that_stopped_goes_on_with_its_teacher(home, tmp_path):
    """Bit for bit; another temperature is another run."""
    config = student(home, tmp_path / "a", epochs=2)
    before = contents(home / "full")
    train(config)
    half = dataclasses.replace(config, workdir=str(tmp_path / "b"))
    with pytest.MonkeyPatch.context() as patch:
        record = loop.Run.record
        patch.setattr(
            loop.Run, "record", lambda run, *row: record(run, *row) or (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            train(half)
    train(half)
    assert_same_run(config.folder, half.folder)
    with pytest.raises(InputError, match=r"holds another run \(distill_temperature 4\.0 there, 2\.0 here\); choose"):
        train(dataclasses.replace(half, distill_temperature=2.0))
    with pytest.raises(InputError, match=r"holds another run \(distill_from \S+/full there, None here\); choose"):
        train(dataclasses.replace(half, distill_from=None))
    assert contents(home / "full") == before


def test_a_config_from_before_there_were_teachers_goes_on(home, tmp_path, capsys):
    config = student(home, tmp_path, distill_from=None)
    train(config)
    file = tmp_path / "run" / "config.json"
    fields = {name: value for name, value in json.loads(file.read_text()).items() if not name.startswith("distill")}
    file.write_text(json.dumps(fields))
    train(config)
    assert "has all its 1 epochs" in capsys.readouterr().out


class Own(nn.Module):
    """A network that jaxslim does not know, so that its checkpoint is a program."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1))))


def save_own(folder):
    variables = Own().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    jaxslim.save(folder, jaxslim.prune(Own(), variables, 0.5, jnp.zeros((4, 8, 8, 1))))
    return folder


def test_teachers_of_every_kind_of_checkpoint(home, tmp_path):
    """A full network, a cut one, and the exported program of a module whose code is not at hand."""
    config = student(home, tmp_path)
    images = data.load(config.dataset, image_size=8, channels=1)
    pixels = images.train_images[:5]
    for path in (home / "full", home / "cut", save_own(tmp_path / "own")):
        module, variables, _ = checkpoint.load(path)
        guide = teacher(dataclasses.replace(config, distill_from=str(path)), images)
        found = jax.jit(guide.logits)(guide.variables, pixels)
        np.testing.assert_allclose(
            found, module.apply(variables, data.normalise(pixels, (0.5,), (0.5,))), rtol=1e-4, atol=1e-5
        )
    train(dataclasses.replace(config, distill_from=str(tmp_path / "own")))


def test_a_teacher_sees_images_as_it_was_trained_to(home, tmp_path):
    config = dataclasses.replace(student(home, tmp_path), init_from=None, mean=(0.2,), std=(0.9,))
    images = data.load(config.dataset, image_size=8, channels=1)
    guide, full = teacher(config, images), checkpoint.load(home / "full")
    expected = full.module.apply(full.variables, data.normalise(images.test_images, (0.5,), (0.5,)))
    np.testing.assert_allclose(guide.logits(guide.variables, images.test_images), expected, rtol=1e-5, atol=1e-6)


def test_eight_devices_learn_what_one_learns(home, tmp_path):
    path = save_own(tmp_path / "own")
    one, eight = (student(home, tmp_path / name, distill_from=str(path)) for name in ("one", "eight"))
    train(one)
    assert elsewhere(eight, JAX_NUM_CPU_DEVICES="8").wait() == 0
    mine, theirs = (checkpoint.load(config.folder) for config in (one, eight))
    np.testing.assert_allclose(theirs.meta["metrics"]["loss"], mine.meta["metrics"]["loss"], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), theirs.variables, mine.variables)


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        ({"classes": 4}, {}, "/full tells 3 classes apart and {data} has 4; give the data set that it was trained on."),
        (
            {},
            {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3},
            "/full cannot be applied to images of shape (8, 8, 3)",
        ),
        ({}, {"distill_from": "/absent"}, "There is no checkpoint /absent; check the path."),
    ],
)
def test_teachers_that_do_not_fit(home, tmp_path, images, changes, message):
    path = write_data(tmp_path / "other.npz", **images)
    with pytest.raises(InputError, match=re.escape(message.format(data=path))):
        train(student(home, tmp_path, dataset=path, **{"init_from": None} | changes))
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_no_classifier(home, tmp_path):
    jaxslim.save(
        tmp_path / "flat",
        jaxslim.prune(
            lambda p, x: (x * p["scale"]).mean((1, 2, 3)), {"scale": jnp.ones(())}, 0.0, jnp.zeros((1, 8, 8, 1))
        ),
    )
    with pytest.raises(
        InputError, match=r"/flat gives \(1,\) for an image, no logits \(images, classes\); give a classifier\."
    ):
        train(student(home, tmp_path, distill_from=str(tmp_path / "flat")))


# Commands


def test_the_command_fine_tunes_with_the_uncut_network(home, tmp_path, capsys, monkeypatch):
    """On the digits; the paths of both checkpoints may be relative."""
    monkeypatch.chdir(tmp_path)
    for line in (
        "train --epochs 1 --image-size 8 --model-args widths=8,M,8",
        "prune runs/digits-sparse --ratio 0.5 --out runs/cut",
        "train --init-from runs/cut --distill-from runs/digits-sparse --distill-temperature 2 --epochs 1",
    ):
        done = invoke(capsys, every_command, *shlex.split(line))
        assert done.code == 0, done.err
    meta = checkpoint.load(tmp_path / "runs" / "cut-finetuned").meta
    asked = {"distill_from": f"{tmp_path}/runs/digits-sparse", "distill_temperature": 2.0, "distill_weight": 0.9}
    assert {name: meta["config"][name] for name in asked} == asked
    assert finetuning(tmp_path / "runs" / "cut-finetuned").distill_from is None  # a teacher is asked for each time
