"""Cut networks of any kind on disk: what is saved comes back, with the network's code and without it."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from programs import Program, programs
from saved_networks import Layers, Linen, dict_inputs, function, images, weights
from test_narrow import by_hand, random_keep

import jaxslim
from jaxslim.errors import InputError
from jaxslim.models import VGG, PreResNet
from jaxslim.storage import plans
from jaxslim.storage.integrity import seal
from jaxslim.storage.trees import build, layout_of

FEW = settings(max_examples=max(1, settings.default.max_examples // 4))
REASON = "belongs to the optional extra `zoo`"


def assert_close(one: Any, other: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, other)


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*(map(jax.random.key_data, (a, b)) if is_key else (a, b)))
        assert a.dtype == b.dtype


@pytest.fixture(scope="module")
def linen() -> Any:
    variables = jax.jit(Linen().init)(jax.random.key(0), images())
    return variables, jaxslim.prune(Linen(), variables, 0.5, images())


@pytest.fixture(scope="module")
def layers() -> Any:
    """A cut NNX module, trained for a step."""
    pruned = jaxslim.prune(Layers(0), None, 0.5, images())
    optimizer = nnx.Optimizer(pruned.module, optax.sgd(0.1), wrt=nnx.Param)
    pruned.module.train()
    optimizer.update(pruned.module, nnx.grad(lambda model: jnp.sum(model(images()) ** 2))(pruned.module))
    pruned.module.eval()
    return pruned


@pytest.fixture(scope="module")
def narrowed() -> Any:
    """A function with its graph, a plan made by hand and the cut weights."""
    graph = jaxslim.trace(function, weights(), dict_inputs())
    plan = by_hand(graph, random_keep(graph, 1, 0.5))
    assert 0 < np.count_nonzero(~plan.keep) < graph.num_units
    return jaxslim.narrow(function, graph, plan), jaxslim.cut(graph, weights(), plan), graph, plan


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any, linen: Any, layers: Any, narrowed: Any) -> Path:
    """A folder with a checkpoint of each; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    jaxslim.save(folder / "linen", linen[1], meta={"kind": "pruned"}, inputs=(images(),))
    jaxslim.save(folder / "nnx", layers, inputs=(images(),))
    run, small, graph, plan = narrowed
    jaxslim.save(folder / "function", run, small, graph=graph, plan=plan, inputs=(dict_inputs(),))
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# jaxslim's own networks


def test_an_own_network_comes_back_with_its_code(tmp_path: Path) -> None:
    """It trains and can be cut again; two cuts come back as one."""
    net, x = PreResNet(11, (2, 2, 2), num_classes=3, dtype=jnp.float32), images()
    full = jax.jit(net.init)(jax.random.key(0), x)
    once = jaxslim.prune(net, full, 0.4, x, scores=jaxslim.criteria.random)
    twice = jaxslim.prune(once.module, once.variables, 0.3, x, scores=jaxslim.criteria.random)
    jaxslim.save(tmp_path / "once", once, meta={"kind": "pruned"})
    jaxslim.save(tmp_path / "twice", twice.module, twice.variables)
    assert not (tmp_path / "once" / "program").exists()
    loaded = {name: jaxslim.load(tmp_path / name) for name in ("once", "twice")}
    for name, expected in (("once", once), ("twice", twice)):
        assert loaded[name].module.full == jaxslim.load(tmp_path / name, module=net).module.full == net
        assert_same(loaded[name].variables, expected.variables)

    def trained(module: Any, variables: Any) -> Any:
        return jax.jit(lambda variables: module.apply(variables, x, train=True, mutable=["batch_stats"]))(variables)

    module, variables, _ = loaded["twice"]
    assert_close(trained(module, variables), trained(twice.module, variables))
    half = module.clone(dtype=jnp.bfloat16)
    assert half.full.dtype == jnp.bfloat16
    assert half.plan is module.plan


def test_fields_that_were_edited(tmp_path: Path) -> None:
    net, x = PreResNet(11, (2, 2, 2), num_classes=3), images()
    pruned = jaxslim.prune(net, jax.jit(net.init)(jax.random.key(0), x), 0.4, x)
    for changes, message in (
        ({"depth": 12}, "The checkpoint's .*PreResNet cannot be built from its fields: depth is 12; it must be 9n"),
        ({"planes": 3}, "The checkpoint's .*PreResNet cannot be built from its fields: .*planes"),
    ):
        path = jaxslim.save(tmp_path / next(iter(changes)), pruned)
        file = path / "meta" / "metadata"
        meta = json.loads(file.read_text())
        meta["module"]["fields"] |= changes
        file.write_text(json.dumps(meta))
        seal(path)
        with pytest.raises(InputError, match=message):
            jaxslim.load(path)


# ---------------------------------------------------------------------------------------------------------------------
# In another process


READ = """
import sys
import jax, numpy as np
import jaxslim

def outputs(x, inputs):
    out = {}
    for name, given in (("linen", x), ("nnx", x), ("function", inputs)):
        program, variables, meta = jaxslim.load(name)
        out[name] = program.apply(variables, given)
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (out[name], program(given)))))
    return out

images = np.load("images.npy")
programs = outputs(images, {"image": images, "shift": [np.ones((len(images), 3), "float32")]})
assert not {"saved_networks", "flax.nnx.examples"} & set(sys.modules)

sys.path.append(sys.argv[1])
from saved_networks import Layers, Linen, dict_inputs, function, weights

models = {}
net, variables, meta = jaxslim.load("linen", module=Linen())
assert meta["kind"] == "pruned"
models["linen"] = net.apply(variables, images)
_, new = net.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
assert jax.tree.map(np.shape, new["batch_stats"]) == jax.tree.map(np.shape, variables["batch_stats"])
net = jaxslim.load("nnx", module=Layers(7)).module
net.eval()
assert isinstance(net, Layers)
models["nnx"] = net(images)
net, small, _ = jaxslim.load("function", module=function, variables=weights(9))
assert type(small) is type(weights())
models["function"] = net(small, dict_inputs(len(images)) | {"image": images})
flat = [np.asarray(leaf) for leaf in jax.tree.leaves((programs, models))]
np.savez("out.npz", *flat)
"""


def test_a_fresh_process_computes_the_same(saved: Path, linen: Any, layers: Any, narrowed: Any, tmp_path: Path) -> None:
    """With the networks' code and without it, for another batch size than that of the save."""
    x = images(3, seed=5)
    np.save(saved / "images.npy", x)
    code = tmp_path / "read.py"
    code.write_text(READ)
    subprocess.run([sys.executable, code, Path(__file__).parent], cwd=saved, check=True)
    run, small, *_ = narrowed
    expected = {
        "linen": linen[1].module.apply(linen[1].variables, x),
        "nnx": layers.module(x),
        "function": run(small, dict_inputs(3) | {"image": x}),
    }
    with np.load(saved / "out.npz") as file:
        found = list(file.values())
    assert_close(found, jax.tree.leaves((expected, expected)))


def test_what_comes_back_without_the_code(saved: Path, layers: Any, narrowed: Any) -> None:
    program, variables, meta = jaxslim.load(saved / "function")
    small = narrowed[1]
    assert list(variables) == ["first", "key", "last"]
    assert_same(variables, {"last": small.last, "first": small.first, "key": small.key})
    out = program(dict_inputs(2))
    assert jax.tree.map(jnp.shape, out) == {"logits": (2, 3), "none": None, "pair": ((2,), (1, 3))}
    assert repr(program) == "Program(float32[batch,6,6,2], float32[batch,3]; for cpu, cuda, tpu)"
    assert (meta["format"], meta["module"]) == (3, {"type": "builtins.function"})
    stored = jaxslim.load(saved / "nnx").variables["dense"][0]["kernel"]["value"]
    np.testing.assert_array_equal(stored, layers.module.dense[0].kernel)  # as trained


def test_a_module_that_can_be_resized(tmp_path: Path) -> None:
    module = VGG((4, "M", 6), 3)
    variables = jax.jit(module.init)(jax.random.key(0), images())
    pruned = jaxslim.prune(module, variables, 0.5, images())
    assert isinstance(pruned.module, VGG)
    path = jaxslim.save(tmp_path / "vgg", pruned, inputs=(images(),))
    expected = pruned.module.apply(pruned.variables, images())
    program, stored, _ = jaxslim.load(path)
    assert_same(stored, pruned.variables)
    assert_close(program.apply(stored, images()), expected)
    loaded = jaxslim.load(path, module=module)
    assert_close(loaded.module.apply(loaded.variables, images()), expected)


def test_trained_variables_take_the_place_of_the_cut_ones(tmp_path: Path, linen: Any) -> None:
    pruned = linen[1]
    trained = jax.tree.map(lambda leaf: leaf + 1, pruned.variables)
    path = jaxslim.save(tmp_path / "trained", pruned, trained, inputs=(images(),))
    assert_same(jaxslim.load(path).variables, trained)
    with pytest.raises(InputError, match=r"of shape \(3, 3, 2, 4\), and the variables have shape \(3, 3, 2, 8\)"):
        jaxslim.save(tmp_path / "full", pruned, linen[0], inputs=(images(),))
    assert_same(jaxslim.load(jaxslim.save(tmp_path / "small", pruned)).variables, pruned.variables)


def test_equinox(tmp_path: Path) -> None:
    eqx = pytest.importorskip("equinox", reason=REASON)

    class Net(eqx.Module):
        conv: Any
        norm: Any
        head: Any

        def __init__(self, key: Any) -> None:
            self.conv = eqx.nn.Conv2d(2, 8, 3, use_bias=False, key=key)
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="ema")
            self.head = eqx.nn.Linear(8, 3, key=key)

        def __call__(self, x: Any, state: Any) -> Any:
            x, state = self.norm(self.conv(x), state)
            return self.head(jax.nn.relu(x).mean((1, 2))), state

    with jax.numpy_rank_promotion("allow"):
        net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
        x = jnp.ones((2, 6, 6))
        pruned = jaxslim.prune(net, state, 0.5, x)
        trained = eqx.tree_at(lambda cut: cut.small.head.bias, pruned.module, jnp.arange(3.0))
        path = jaxslim.save(tmp_path / "eqx", dataclasses.replace(pruned, module=trained), inputs=(x,))
        expected = eqx.nn.inference_mode(trained)(x, pruned.variables.state)[0]
        assert_close(jaxslim.load(path).module(x), expected)
        other, fresh = eqx.nn.make_with_state(Net)(jax.random.key(1))
        cut, variables, _ = jaxslim.load(path, module=other, variables=fresh)
        assert_close(eqx.nn.inference_mode(cut)(x, variables.state)[0], expected)


def test_haiku(tmp_path: Path) -> None:
    """Its names of layers hold slashes."""
    hk = pytest.importorskip("haiku", reason=REASON)

    def forward(x: Any, is_training: bool) -> Any:
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3, with_bias=False)(x), is_training))
        return hk.Linear(3)(x.mean((1, 2)))

    with jax.numpy_rank_promotion("allow"):
        net = hk.transform_with_state(forward)
        pruned = jaxslim.prune(net, net.init(jax.random.key(0), images(), True), 0.5, images())
        path = jaxslim.save(tmp_path / "haiku", pruned, inputs=(images(),))
        expected = pruned.module.apply(*pruned.variables, None, images(), is_training=False)[0]
        assert_close(jaxslim.load(path).module(images()), expected)
        cut, variables, _ = jaxslim.load(path, module=net)
        assert_close(cut.apply(*variables, None, images(), is_training=False)[0], expected)


def test_keras(tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason=REASON)
    layers = keras.layers

    def model() -> Any:
        parts = [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(), layers.GlobalAveragePooling2D()]
        return keras.Sequential([keras.Input((6, 6, 2)), *parts, layers.Dense(3)], name="net")

    with jax.numpy_rank_promotion("allow"):
        net = model()
        pruned = jaxslim.prune(net, None, 0.5, images())
        path = jaxslim.save(tmp_path / "keras", pruned, inputs=(images(),))
        expected = pruned.module.stateless_call(*pruned.variables, images(), training=False)[0]
        assert_close(jaxslim.load(path).module(images()), expected)
        cut, variables, _ = jaxslim.load(path, module=net)
        assert_close(cut.stateless_call(*variables, images(), training=False)[0], expected)


# ---------------------------------------------------------------------------------------------------------------------
# Trees and programs


def trees() -> st.SearchStrategy[Any]:
    dtypes = st.sampled_from(["float32", "bfloat16", "int8", "bool", "complex64"])
    arrays = st.builds(lambda dtype, shape: jnp.ones(shape, dtype), dtypes, st.lists(st.integers(0, 3), max_size=3))
    keys = st.integers(0, 9).map(jax.random.key)
    names = st.text("ab/~.é", max_size=4) | st.integers(0, 9).map(str)
    inner = st.none() | arrays | keys | st.builds(jax.random.key, st.just(0), impl=st.just("rbg"))
    return st.recursive(
        inner,
        lambda part: st.lists(part) | st.lists(part).map(tuple) | st.dictionaries(names, part)
        | st.dictionaries(st.integers(0, 9), part),
    )  # fmt: skip


@FEW
@given(trees())
def test_layouts_are_json_and_bring_trees_back(tree: Any) -> None:
    layout = json.loads(json.dumps(layout_of(tree)))
    assert layout == layout_of(tree)
    assert_same(build(layout, jax.tree.leaves(tree)), tree)


@settings(max_examples=5)
@given(trees())
def test_any_tree_of_arrays_comes_back(tmp_path_factory: Any, tree: Any) -> None:
    variables = {"rest": tree, "a": jnp.ones((2, 5)), "b": jnp.ones((5, 1))}

    def apply(variables: Any, x: Any) -> Any:
        return jnp.tanh(x @ variables["a"]) @ variables["b"]

    x = jnp.ones((3, 2))
    graph = jaxslim.trace(apply, variables, x)
    plan = by_hand(graph, random_keep(graph, 0, 0.4))
    small = jaxslim.cut(graph, variables, plan)
    path = tmp_path_factory.mktemp("tree") / "net"
    jaxslim.save(path, jaxslim.narrow(apply, graph, plan), small, graph=graph, plan=plan, inputs=(x,))
    program, stored, _ = jaxslim.load(path)
    assert_same(stored, small)
    assert_close(program(x[:1]), apply(small, x[:1]))


def cut_function(apply: Any, *inputs: Any) -> dict[str, Any]:
    variables = {"a": jnp.ones((2, 5)), "b": jnp.ones((5, 1))}
    graph = jaxslim.trace(apply, variables, *inputs)
    plan = by_hand(graph, random_keep(graph, 0, 0.4))
    small = jaxslim.cut(graph, variables, plan)
    return {
        "module": jaxslim.narrow(apply, graph, plan),
        "variables": small,
        "graph": graph,
        "plan": plan,
        "inputs": inputs,
    }


def test_code_that_knows_its_batch_size_keeps_it(tmp_path: Path) -> None:
    def apply(variables: Any, x: Any) -> Any:
        return jnp.tanh(x @ variables["a"]) @ variables["b"] + np.arange(3, dtype=np.float32)[:, None]

    program = jaxslim.load(jaxslim.save(tmp_path / "three", **cut_function(apply, jnp.ones((3, 2))))).module
    assert program.inputs == ("float32[3,2]",)
    assert program(np.ones((3, 2))).shape == (3, 1)
    with pytest.raises(InputError, match=r"takes an input of float32\[3,2\] and was given float32\[4,2\]; give what"):
        program(np.ones((4, 2)))


def test_an_old_key_is_no_batch(tmp_path: Path) -> None:
    def apply(variables: Any, key: Any, x: Any) -> Any:
        return jnp.tanh(x @ variables["a"]) @ variables["b"] + 0 * key[0].astype(jnp.float32)

    made = cut_function(apply, jax.random.PRNGKey(0), jnp.ones((2, 2)))
    program = jaxslim.load(jaxslim.save(tmp_path / "old", **made)).module
    assert program.inputs == ("uint32[2]", "float32[batch,2]")


def test_keys_are_inputs_too(tmp_path: Path) -> None:
    def apply(variables: Any, key: Any, x: Any) -> Any:
        return jnp.tanh(x @ variables["a"]) @ variables["b"] + jax.random.normal(key), jax.random.split(key)

    key, made = jax.random.key(3), cut_function(apply, jax.random.key(3), jnp.ones((3, 2)))
    program = jaxslim.load(jaxslim.save(tmp_path / "keyed", **made)).module
    assert_same(program(key, jnp.ones((5, 2)))[1], jax.random.split(key))
    assert_close(program(key, jnp.ones((5, 2)))[0], made["module"](made["variables"], key, jnp.ones((5, 2)))[0])


def test_what_cannot_be_exported_is_saved_without_a_program(tmp_path: Path) -> None:
    def apply(variables: Any, x: Any) -> Any:
        y = jnp.tanh(x @ variables["a"]) @ variables["b"]
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(y.shape, y.dtype), y)

    made = cut_function(apply, jnp.ones((3, 2)))
    path = jaxslim.save(tmp_path / "callback", **made)
    with pytest.raises(InputError, match=r"holds no program, since the network could not be exported \(.*callback.*\)"):
        jaxslim.load(path)
    net, variables, _ = jaxslim.load(path, module=apply)
    assert_close(net(variables, jnp.ones((2, 2))), made["module"](made["variables"], jnp.ones((2, 2))))


def test_a_program_names_what_does_not_fit(saved: Path) -> None:
    program, variables, _ = jaxslim.load(saved / "linen")
    with pytest.raises(InputError, match=r"takes inputs of another structure; give float32\[batch,6,6,2\] in"):
        program(images(), images())
    with pytest.raises(InputError, match=r"takes an input of float32\[batch,6,6,2\] and was given float32\[4,6,2\]"):
        program(images()[:, 0])
    inputs = dict_inputs(2) | {"image": images(3)}
    with pytest.raises(InputError, match=r"The inputs have batches of \[2, 3\]; the program takes batches of one size"):
        jaxslim.load(saved / "function").module(inputs)
    with pytest.raises(InputError, match="takes variables of another structure"):
        program.apply(variables["params"], images())
    with pytest.raises(InputError, match=r"takes a variable of float32\[4\] and was given float32\[\]"):
        program.apply(jax.tree.map(jnp.sum, variables), images())


def test_a_program_needs_flatbuffers(saved: Path, tmp_path: Path, monkeypatch: Any, linen: Any) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError("No module named 'flatbuffers'")

    monkeypatch.setattr(jax.export.Exported, "serialize", missing)
    monkeypatch.setattr(jax.export, "deserialize", missing)
    for use in (
        lambda: jaxslim.save(tmp_path / "net", linen[1], inputs=(images(),)),
        lambda: jaxslim.load(saved / "nnx"),
    ):
        with pytest.raises(InputError, match="the package flatbuffers, which is missing; pip install flatbuffers"):
            use()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Damage and other networks


def test_no_damage_goes_unseen(saved: Path, tmp_path: Path) -> None:
    for name in ("plan/plan.npz", "program/program.bin", "meta/metadata"):
        raw = (saved / "linen" / name).read_bytes()
        for content in (raw[: len(raw) // 2], raw[:-1] + bytes([raw[-1] ^ 1]), None):
            copy = Path(shutil.copytree(saved / "linen", tmp_path / "copy"))
            (copy / name).unlink()
            if content is not None:
                (copy / name).write_bytes(content)
            with pytest.raises(
                InputError, match=f"^{re.escape(f'{copy} is damaged: its file {name} is missing or ch')}"
            ):
                jaxslim.load(copy)
            shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("plan/plan.npz", b"PK", r"is damaged: its plan cannot be read \(.*\); take another checkpoint\.$"),
        ("program/program.bin", b"x" * 99, r"is damaged: its program cannot be read by jax \S+ \(.*\); take another"),
        (
            "meta/metadata",
            {"cut": {"keys": [None]}},
            r"is damaged: its meta describes no cut network \('empty'\);",
        ),
        ("meta/metadata", {"format": 4}, r"was written by a newer jaxslim \(format 4\); update jaxslim\.$"),
    ],
)
def test_files_that_were_edited_and_sealed_again(
    saved: Path, tmp_path: Path, file: str, content: Any, message: str
) -> None:
    copy = Path(shutil.copytree(saved / "linen", tmp_path / "copy"))
    if isinstance(content, dict):
        content = json.dumps(json.loads((copy / file).read_text()) | content).encode()
    (copy / file).write_bytes(content)
    seal(copy)
    with pytest.raises(InputError, match=message):
        jaxslim.load(copy, module=Linen() if "plan" in file else None)


def test_a_model_of_another_network(saved: Path) -> None:
    with pytest.raises(
        InputError, match=r"network than the model: bias/value has none in the checkpoint and shape \(2,\)"
    ):
        jaxslim.load(saved / "nnx", module=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    other = Layers(0)
    other.dense[0] = nnx.Linear(8, 9, rngs=nnx.Rngs(0))
    message = r"dense/0/bias/value has shape \(6,\) in the checkpoint and shape \(9,\) in the model; pass the model"
    with pytest.raises(InputError, match=message):
        jaxslim.load(saved / "nnx", module=other)
    with pytest.raises(InputError, match="7 is no model; pass a Flax Linen or NNX module"):
        jaxslim.load(saved / "linen", module=7)


# ---------------------------------------------------------------------------------------------------------------------
# Plans


def same_graph(one: Any, other: Any) -> bool:
    fields = [field.name for field in dataclasses.fields(one) if field.name != "work"]  # which is not kept
    return all(jax.tree.all(jax.tree.map(np.array_equal, getattr(one, f), getattr(other, f))) for f in fields)


@FEW
@given(programs(), st.integers(0, 999), st.sampled_from([0.2, 0.5]))
def test_plans_and_graphs_come_back(program: Program, seed: int, share: float) -> None:
    with jax.enable_x64(True):
        graph = jaxslim.trace(program, program.init(), program.key(), program.inputs())
    plan = by_hand(graph, random_keep(graph, seed, share))
    again, same = plans.unpack(plans.pack(graph, plan))
    assert same_graph(graph, again)
    np.testing.assert_array_equal(plan.keep, same.keep)


def test_a_plan_is_replayed_on_other_weights(tmp_path: Path, linen: Any, saved: Path) -> None:
    _, pruned = linen
    path = jaxslim.save_plan(tmp_path / "plans" / "half.npz", pruned.graph, pruned.plan)
    other = jax.jit(Linen().init)(jax.random.key(9), images())
    expected = jaxslim.cut(pruned.graph, other, pruned.plan)
    for source in (path, saved / "linen"):
        graph, plan = jaxslim.load_plan(source, other)
        assert_same(jaxslim.cut(graph, other, plan), expected)
        assert (str(plan), str(graph), graph.stops) == (str(pruned.plan), str(pruned.graph), pruned.graph.stops)
    with pytest.raises(InputError, match="exists already and plans are never overwritten; choose another file"):
        jaxslim.save_plan(path, pruned.graph, pruned.plan)


def test_what_is_no_plan_for_a_network(tmp_path: Path, linen: Any, narrowed: Any) -> None:
    variables, pruned = linen
    path = jaxslim.save_plan(tmp_path / "half.npz", pruned.graph, pruned.plan)
    other = Linen(more={"hidden": 7}).init(jax.random.key(0), images())
    message = r"is for another network: there params/Dense_1/kernel has shape \(8, 6\), here shape \(8, 7\); pass"
    with pytest.raises(InputError, match=message):
        jaxslim.load_plan(path, other)
    with pytest.raises(InputError, match=r"there \S+ has shape .*, here none; pass variables of the network that"):
        jaxslim.load_plan(path, {"params": variables["params"]})
    (tmp_path / "text").write_text("{}")
    with pytest.raises(InputError, match=r"text is no plan; give a file that jaxslim\.save_plan wrote"):
        jaxslim.load_plan(tmp_path / "text")
    with pytest.raises(InputError, match=r"There is no plan .*absent; check the path\."):
        jaxslim.load_plan(tmp_path / "absent")
    module = VGG((2,), 3)
    dense = jaxslim.save(tmp_path / "dense", module, jax.jit(module.init)(jax.random.key(0), images()))
    with pytest.raises(InputError, match=r"dense holds no plan; give a checkpoint that jaxslim\.save made of a cut"):
        jaxslim.load_plan(dense)
    with pytest.raises(InputError, match="The plan is for 14 units and the graph has"):
        jaxslim.save_plan(tmp_path / "mixed", narrowed[2], pruned.plan)


def test_a_damaged_plan_is_named_or_does_no_harm(linen: Any, tmp_path: Path) -> None:
    """Each byte flipped; a few bytes of the archive, such as dates, say nothing of the plan."""
    pruned = linen[1]
    content, harmless = plans.pack(pruned.graph, pruned.plan), 0
    for place in range(2, len(content), 3):
        broken = bytearray(content)
        broken[place] ^= 1 << place % 8
        (tmp_path / "broken").write_bytes(broken)
        message = ""
        try:
            graph, plan = jaxslim.load_plan(tmp_path / "broken")
        except InputError as error:
            message = str(error)
        if message:
            assert "broken is damaged: its plan cannot be read (" in message
        else:
            harmless += 1
            assert same_graph(graph, pruned.graph)
            np.testing.assert_array_equal(plan.keep, pruned.plan.keep)
    assert harmless < len(content) / 10


# ---------------------------------------------------------------------------------------------------------------------
# Two cuts


@FEW
@given(programs(), st.integers(0, 999))
def test_cutting_twice_is_cutting_once_by_the_composed_plan(program: Program, seed: int) -> None:
    with jax.enable_x64(True):
        variables, inputs = program.init(), (program.key(), program.inputs())
        graph = jaxslim.trace(program, variables, *inputs)
        plan = by_hand(graph, random_keep(graph, seed, 0.3))
        small = jaxslim.cut(graph, variables, plan)
        again = jaxslim.trace(jaxslim.narrow(program, graph, plan), small, *inputs)
        second = by_hand(again, random_keep(again, seed + 1, 0.3))
        try:
            both = jaxslim.compose(graph, plan, again, second)
        except InputError as error:  # the cut program holds less together, where a single head is left, for example
            if "that the first graph holds together" not in str(error):
                raise
            reject()
        assert_same(jaxslim.cut(graph, variables, both), jaxslim.cut(again, small, second))


def test_layers_and_shares_of_composed_plans(linen: Any) -> None:
    _, first = linen
    second = jaxslim.prune(first.module, first.variables, 0.25, images())
    both = jaxslim.compose(first.graph, first.plan, second.graph, second.plan)
    assert [layer[:3] for layer in both.layers] == [("BatchNorm_0", 8, 3)]
    assert both.achieved == 0.625
    nothing = jaxslim.compose(first.graph, first.plan, second.graph, dataclasses.replace(second.plan, keep=np.ones(
        second.graph.num_units + 1, bool)))  # fmt: skip
    np.testing.assert_array_equal(nothing.keep, first.plan.keep)


def test_plans_that_cannot_be_composed(linen: Any, narrowed: Any) -> None:
    _, first = linen
    with pytest.raises(InputError, match=r"leaves .* of shape .*, and the second graph has nothing there; trace"):
        jaxslim.compose(first.graph, first.plan, narrowed[2], narrowed[3])
    with pytest.raises(InputError, match=r"second graph has shape \(3, 3, 2, 8\) there; trace the network that"):
        jaxslim.compose(first.graph, first.plan, first.graph, first.plan)

    tied = {"a": np.ones((3, 4)), "b": np.ones((3, 4)), "c": np.ones((4, 2))}
    x = np.ones((1, 3))
    graph = jaxslim.trace(lambda w, x: (x @ w["a"] + x @ w["b"]) @ w["c"], tied, x)
    looser = jaxslim.trace(lambda w, x: jnp.concatenate([x @ w["a"], x @ w["b"] @ w["c"]], -1), tied, x)
    everything = jaxslim.Plan(keep=np.ones(graph.num_units + 1, bool))
    one_of_b = looser.units[looser.find(("b",))][1][0]
    other = jaxslim.Plan(keep=np.arange(looser.num_units + 1) != one_of_b)
    with pytest.raises(InputError, match=r"cuts a part of (a|b|c) that the first graph holds together; make it with"):
        jaxslim.compose(graph, everything, looser, other)


def test_programs_say_where_they_run(saved: Path) -> None:
    program = jaxslim.load(saved / "linen").module
    assert isinstance(program, jaxslim.Program)
    assert program.platforms == ("cpu", "cuda", "tpu")
