"""ONNX files from traced programs, run by onnxruntime."""

import collections
import importlib
import json
import sys

import jax
import jax.numpy as jnp
import networks
import numpy as np
import onnx_programs
import pytest
import zoo
from flax import linen as nn
from hypothesis import assume, given, settings
from jax import lax
from test_models import SMALL

import jaxslim
from jaxslim.slim.check import difference

onnx = pytest.importorskip("onnx", reason="ONNX files need the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX files are checked by onnxruntime")
from jaxslim.interop.onnx.model import convert  # noqa: E402
from jaxslim.interop.onnx.rules import RULES  # noqa: E402


def session(model):
    """What runs a model, or the model in a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def outputs(model, *arrays):
    run = session(model)
    return run.run(None, {port.name: np.asarray(array) for port, array in zip(run.get_inputs(), arrays, strict=True)})


def kinds(model):
    """How many nodes of each operator there are, those of loops left out."""
    return collections.Counter(node.op_type for node in model.graph.node)


def metadata(model):
    return {prop.key: prop.value for prop in model.metadata_props}


# ---------------------------------------------------------------------------------------------------------------------
# Values


@settings(max_examples=30)
@given(onnx_programs.steps())
def test_random_programs(steps):
    """Operations in any order, on axes in any order; at another batch size than the traced one."""
    run = jax.jit(onnx_programs.program(steps))
    images, more = zoo.normal(2, 6, 4, 3), zoo.normal(3, 6, 4, 3, seed=2)
    wanted = [np.asarray(run({}, batch)) for batch in (images, more)]
    assume(all(np.isfinite(one).all() for one in wanted))
    model = convert(run, {}, (images,), opset=18)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch, expected in zip((images, more), wanted, strict=True):
        assert difference([expected], outputs(model, batch)) < 1e-4


@pytest.mark.parametrize("name", sorted(onnx_programs.OPERATIONS))
def test_each_operation(name):
    """On each opset that is offered, as far as its operators go."""
    run = onnx_programs.program((("transpose", 1), (name, 3), (name, 4)))
    model = convert(run, {}, (images := zoo.normal(2, 6, 4, 3),), opset=onnx.defs.onnx_opset_version())
    onnx.checker.check_model(model, full_check=True)
    assert difference([np.asarray(run({}, images))], outputs(convert(run, {}, (images,), opset=18), images)) < 1e-4


@settings(max_examples=10)
@given(networks.networks())
def test_random_networks(network):
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network.init())
    images = network.images().astype(np.float32)
    model = convert(network, variables, (images,), opset=18)
    assert difference([jax.jit(network)(variables, images)], outputs(model, images)) < 1e-4


NETWORKS = {
    "resnet": "resnet_bottleneck",
    "mobilenet": "mobilenet_v3",
    "vit": "vit_plain",
    "gpt": "gpt_scanned",
    "bert": "distilbert",
    "recurrent": "lstm_bidirectional",
    "shufflenet": "shufflenet",
    "swin": "swin",
    "unet": "unet",
    "stylegan": "stylegan_mapped",
    "graph_network": "graph_attention",
    "encoder_decoder": "t5",
}


@pytest.mark.parametrize("family", NETWORKS)
def test_networks_of_the_zoo(family):
    found = {network.name: network for network in importlib.import_module(f"zoo.{family}").NETWORKS}
    network = found[NETWORKS[family]]
    model = convert(network.apply, network.variables, network.inputs, opset=18)
    onnx.checker.check_model(model)
    wanted = jax.device_get(jax.tree.leaves(jax.jit(network.apply)(network.variables, *network.inputs)))
    assert difference(wanted, outputs(model, *jax.tree.leaves(network.inputs))) < 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_the_networks_of_jaxslim(name):
    module, images = SMALL[name], zoo.normal(2, 14, 14, 3)
    variables = zoo.filled(jax.eval_shape(module.init, jax.random.key(0), images))
    model = convert(module.apply, variables, (images,), opset=18)
    assert difference([jax.jit(module.apply)(variables, images)], outputs(model, images)) < 1e-4


def test_a_resnet_50():
    module, images = jaxslim.resnet50(num_classes=1000), zoo.normal(1, 64, 64, 3)
    variables = zoo.filled(jax.eval_shape(module.init, jax.random.key(0), images))
    model = convert(module.apply, variables, (images,), opset=18)
    found = kinds(model)
    assert (found["Conv"], found["Transpose"], found["Gemm"], found["MaxPool"]) == (53, 1, 1, 1)
    assert found.keys() <= {"Conv", "Transpose", "Gemm", "MaxPool", "Relu", "Add", "ReduceMean", "Identity"}
    assert difference([jax.jit(module.apply)(variables, images)], outputs(model, images)) < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# The form of the graph


def test_the_graph_of_vgg():
    """One transposition at the start; no norm is left; pooling and the dense layer are what they are."""
    module, images = jaxslim.VGG((8, "M", 12, "M", "M", 16)), zoo.normal(4, 32, 32, 3)
    variables = zoo.filled(jax.eval_shape(module.init, jax.random.key(0), images))
    model = convert(module.apply, variables, (images,), opset=13)
    found = kinds(model)
    assert found.pop("Identity") == 1
    assert found == {"Transpose": 1, "Conv": 3, "Relu": 3, "MaxPool": 3, "ReduceMean": 1, "Gemm": 1}
    assert [node.op_type for node in model.graph.node][:4] == ["Transpose", "Conv", "Relu", "MaxPool"]
    stored = {array.name for array in model.graph.initializer}
    assert {"params/conv0/kernel", "params/conv2/bias", "params/classifier/kernel"} <= stored
    assert difference([module.apply(variables, images)], outputs(model, images)) < 1e-5


@pytest.mark.parametrize(
    ("family", "name", "transposes"),
    [("resnet", "se_resnet", 1), ("mobilenet", "mobilenet_v2", 1), ("densenet", "densenet_bc", 1), ("unet", "unet", 2)],
)
def test_convolutions_do_not_transpose(family, name, transposes):
    network = next(one for one in importlib.import_module(f"zoo.{family}").NETWORKS if one.name == name)
    found = kinds(convert(network.apply, network.variables, network.inputs, opset=18))
    assert found["Transpose"] == transposes
    assert not {"Sqrt", "Reciprocal", "Sub", "Expand"} & found.keys()


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("counted", [True, False])
def test_average_pooling(padding, counted):
    def apply(variables, x):
        return nn.avg_pool(x, (3, 3), (2, 2), padding, count_include_pad=counted)

    model = convert(apply, {}, (x := zoo.normal(2, 7, 7, 3),), opset=13)
    found = kinds(model)
    assert (found["AveragePool"], found["Mul"], found["Div"]) == (1, 0, 0)
    assert difference([np.asarray(apply({}, x))], outputs(model, x)) < 1e-6


def test_pooling_over_many_axes():
    """A runtime pools three axes beside image and channel; those of a batch inside a batch are merged."""

    def apply(variables, x):
        return nn.avg_pool(x, (2, 2, 2), (2, 2, 2))

    model = convert(apply, {}, (x := zoo.normal(2, 3, 4, 4, 4, 3),), opset=18)
    more = zoo.normal(5, 3, 4, 4, 4, 3)
    assert difference([np.asarray(apply({}, more))], outputs(model, more)) < 1e-6
    assert kinds(model)["AveragePool"] == 1
    assert x.shape[0] != more.shape[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("stored", [True, False])
def test_half_precision(tmp_path, dtype, stored):
    """Whether the parameters are kept in it or the layers compute in it; bfloat16 is float32 in the file."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True, dtype=dtype)(nn.Conv(4, (3, 3), dtype=dtype)(x))
            return nn.Dense(3, dtype=dtype)(nn.max_pool(nn.softplus(x), (2, 2), (2, 2)).mean((1, 2)))

    variables = zoo.filled(jax.eval_shape(Net().init, jax.random.key(0), x := zoo.normal(2, 6, 6, 3)))
    if stored:
        variables, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (variables, jnp.asarray(x)))
    done = jaxslim.export(tmp_path / "net.onnx", Net(), variables, x)
    given = "float16" if stored and dtype == jnp.float16 else "float32"
    assert done.inputs == (f"{given}[batch,6,6,3]",)
    assert done.difference < 1e-2


def test_noise_of_a_stored_key_is_a_constant():
    def apply(variables, x):
        return x + jax.random.normal(variables["key"], (1, *x.shape[1:]))

    model = convert(apply, variables := {"key": jax.random.key(3)}, (x := zoo.normal(2, 3, 4),), opset=13)
    assert kinds(model) == {"Add": 1, "Identity": 1}
    assert difference([np.asarray(apply(variables, x))], outputs(model, x)) < 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_short_integers(dtype):
    """Arithmetic of which wraps around; the oldest opset has none of them."""

    def apply(variables, x):
        return (x * 3 - 5, x + x, x // 2)

    x = np.array([[0, 100, 7], [1, 127, 90]], dtype)
    model = convert(apply, {}, (x,), opset=13)
    onnx.checker.check_model(model, full_check=True)
    for wanted, got in zip(apply({}, jnp.asarray(x)), outputs(model, x), strict=True):
        np.testing.assert_array_equal(wanted, got)


def test_softmax_and_clips_are_recognised():
    def apply(variables, x):
        return jax.nn.softmax(jax.nn.relu6(x), axis=1)

    model = convert(apply, {}, (x := 5 * zoo.normal(2, 7, 3),), opset=13)
    assert kinds(model).keys() == {"Clip", "Softmax", "Identity"}
    assert difference([np.asarray(apply({}, x))], outputs(model, x)) < 1e-6


def test_a_transposed_convolution_is_one_node():
    def apply(kernel, x):
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    kernel, x = zoo.normal(3, 3, 4, 5), zoo.normal(2, 4, 4, 4, seed=2)
    model = convert(apply, kernel, (x,), opset=18)
    assert kinds(model) == {"Transpose": 2, "ConvTranspose": 1, "Identity": 1}
    assert difference([np.asarray(apply(kernel, x))], outputs(model, x)) < 1e-6


def test_several_inputs_and_outputs():
    def apply(variables, inputs, scale):
        return {"sum": (inputs["a"] + inputs["b"]) * scale, "counts": inputs["b"].astype(jnp.int32)}

    inputs = {"a": zoo.normal(4, 3), "b": zoo.normal(4, 3, seed=2)}
    model = convert(apply, {}, (inputs, np.float32(2)), opset=18)
    assert [port.name for port in model.graph.input] == ["input_0", "input_1", "input_2"]
    assert [port.name for port in model.graph.output] == ["output/counts", "output/sum"]
    counts, total = outputs(model, inputs["a"], inputs["b"], np.float32(2))
    np.testing.assert_allclose(total, 2 * (inputs["a"] + inputs["b"]), rtol=1e-6)
    np.testing.assert_array_equal(counts, np.asarray(inputs["b"]).astype(np.int32))


def test_a_batch_that_the_code_asks_for(tmp_path):
    def apply(variables, x):
        return x.reshape(len(x), -1) * 2

    x = zoo.normal(4, 3, 2)
    for name in ("net.onnx", "net"):
        refused(tmp_path / name, apply, {}, x, match=r"no open batch \(.*\); let its code use x.shape\[0\] .*--batch 1")
        assert jaxslim.export(tmp_path / name, apply, {}, x, open_batch=False).inputs == ("float32[4,3,2]",)
    assert difference([np.asarray(apply({}, x))], outputs(str(tmp_path / "net.onnx"), x)) < 1e-6


def test_random_keys_among_the_variables(tmp_path):
    """As in the state of an NNX module with dropout, which evaluation does not read."""

    def apply(variables, x):
        return x * variables["scale"]

    variables = {"key": jax.random.key(0), "scale": jnp.float32(2)}
    assert jaxslim.export(tmp_path / "net.onnx", apply, variables, zoo.normal(2, 3)).difference == 0


# ---------------------------------------------------------------------------------------------------------------------
# The file


@pytest.fixture(scope="module")
def cut():
    module, images = jaxslim.VGG((16, "M", 32)), zoo.normal(4, 8, 8, 3)
    variables = zoo.filled(jax.eval_shape(module.init, jax.random.key(0), images))
    return jaxslim.prune(module, variables, 0.5, images)


@pytest.mark.parametrize("weights", ["inside", "beside"])
def test_a_cut_network_in_a_file(cut, tmp_path, weights):
    file = tmp_path / "deep" / "net.onnx"
    done = jaxslim.export(file, cut, weights=weights, meta={"class_names": ["a", "b"]})
    assert done.inputs == ("float32[batch,8,8,3]",)
    assert done.difference < 1e-5
    assert (
        sorted(path.name for path in file.parent.iterdir())
        == ["net.onnx", "net.onnx.data"][: 1 + (weights == "beside")]
    )
    assert done.size == sum(path.stat().st_size for path in file.parent.iterdir())
    found = metadata(onnx.load(file))
    assert json.loads(found["class_names"]) == ["a", "b"]
    assert json.loads(found["versions"]).keys() >= {"jax", "jaxslim"}
    assert len(found["digest"]) == 64
    images = zoo.normal(3, 8, 8, 3, seed=5)
    assert difference([cut.module.apply(cut.variables, images)], outputs(str(file), images)) < 1e-5


def test_pixels_in_and_classes_out(cut, tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.2)
    done = jaxslim.export(tmp_path / "net.onnx", cut, normalisation=(mean, std), argmax=True)
    assert done.inputs == ("uint8[batch,8,8,3]",)
    pixels = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
    images = ((pixels / 255 - np.array(mean)) / np.array(std)).astype(np.float32)
    (classes,) = outputs(str(tmp_path / "net.onnx"), pixels)
    np.testing.assert_array_equal(classes, np.argmax(cut.module.apply(cut.variables, images), -1))
    assert json.loads(metadata(onnx.load(tmp_path / "net.onnx"))["pixels"])["inside"] is True


def refused(path, *args, match, **options):
    """An export that fails with this message and leaves nothing."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(jaxslim.InputError, match=match):
        jaxslim.export(path, *args, **options)
    assert sorted(path.parent.iterdir()) == before


def test_what_has_no_rule_is_named_with_its_layer(tmp_path):
    class Spectral(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.abs(jnp.fft.fft(x))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Spectral(name="mixer")(nn.Dense(4)(x))

    variables = Net().init(jax.random.key(0), x := jnp.ones((2, 3)))
    match = r'no rule for fft \(Net/mixer\); export with format="stablehlo"'
    refused(tmp_path / "net.onnx", Net(), variables, x, match=match)

    def apply(variables, x):
        return jnp.abs(jnp.fft.fft(x))

    refused(tmp_path / "net.onnx", apply, {}, x, match=r"no rule for fft \(\S+test_onnx.py:\d+ \(apply\)\)")


def test_an_opset_that_lacks_an_operator(tmp_path):
    def apply(variables, x):
        return x ^ 3

    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    match = r"ONNX opset 13 lacks the operator BitwiseXor, which the network needs.*; use opset 18 or newer"
    refused(tmp_path / "net.onnx", apply, {}, x, opset=13, match=match)
    refused(tmp_path / "net.onnx", apply, {}, x, opset=7, match=r"opset is 7; it must be from 13 to \d+")
    assert jaxslim.export(tmp_path / "net.onnx", apply, {}, x, opset=18).difference == 0


def test_outputs_that_differ_are_refused(cut, tmp_path, monkeypatch):
    """As after a mistake in a rule: here the larger of two numbers is the smaller one."""
    refused(tmp_path / "net.onnx", cut, tolerance=1e-12, match="onnxruntime differ from the model's by .* nothing is")
    monkeypatch.setitem(RULES, "max", RULES["min"])
    refused(tmp_path / "net.onnx", cut, match="onnxruntime differ from the model's by .* where 0.0001 is allowed")


def test_without_the_packages(cut, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert jaxslim.export(tmp_path / "net.onnx", cut).difference is None
    for name in [name for name in sys.modules if name.startswith("jaxslim.interop.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(tmp_path / "other.onnx", cut, match=r"ONNX files need the package onnx; pip install 'jaxslim\[onnx\]'")
