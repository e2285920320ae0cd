"""A network's program as a model of ONNX, and its comparison with what JAX computes."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.export import symbolic_shape
from onnx import helper

from jaxslim.core.flat import flatten
from jaxslim.core.paths import leaf_paths
from jaxslim.core.programs import program
from jaxslim.errors import InputError, first_line
from jaxslim.interop.evaluation import closed_batch
from jaxslim.interop.onnx.emitter import Held, Tensor, write
from jaxslim.interop.onnx.graph import LEAST_OPSET, Graph, onnx_type, reads, stored_dtype, used
from jaxslim.interop.onnx.rules import RULES
from jaxslim.slim.check import difference

_PRODUCER = "jaxslim"


class Port(NamedTuple):
    """An input or an output of a model."""

    name: str
    shape: tuple[int | str, ...]
    """Sizes; an open one has a name."""
    dtype: Any


def convert(
    run: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
    *,
    opset: int,
    open_batch: bool | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Write `run(variables, *inputs)` as an `onnx.ModelProto`.

    What depends on the variables alone is computed now, so that norms in evaluation become part of the layers before
    them. Convolutions and pooling keep channels first, as ONNX has them, between the program's inputs and outputs,
    which stay as they are.

    Args:
      run: evaluation of a network.
      variables: its arrays.
      inputs: pytrees of arrays or `ShapeDtypeStruct`s. First axes of the first array's length are the batch.
      opset: version of ONNX's operators.
      open_batch: whether the batch may have any size; by default, if the network's code allows that.
      metadata: texts to keep in the model.

    Raises:
      InputError: a primitive has no rule, or the opset lacks an operator.
    """
    newest = onnx.defs.onnx_opset_version()
    if type(opset) is not int or not LEAST_OPSET <= opset <= newest:
        raise InputError(
            f"opset is {opset!r:.60}; it must be from {LEAST_OPSET} to {newest}, which this onnx package knows."
        )
    given, structure = jax.tree.flatten(jax.eval_shape(lambda tree: tree, tuple(inputs)))
    opened = _opened(given) if open_batch is not False else None
    if opened is not None:
        try:
            return _converted(run, variables, jax.tree.unflatten(structure, opened), opset, metadata or {})
        except InputError as error:  # the network's code, or what it needs in ONNX, may ask for the size of the batch
            if open_batch:
                _converted(run, variables, jax.tree.unflatten(structure, given), opset, {})  # no other mistake
                raise closed_batch(first_line(error.__cause__ or error)) from error
    return _converted(run, variables, jax.tree.unflatten(structure, given), opset, metadata or {})


def _opened(given: Sequence[Any]) -> list[Any] | None:
    """The inputs with an open batch; None if the first has no axes."""
    if not given or not given[0].shape:
        return None
    (size,), batch = symbolic_shape("batch"), given[0].shape[:1]
    return [
        jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) if leaf.shape[:1] == batch else leaf for leaf in given
    ]


def _converted(
    run: Callable[..., Any], variables: Any, inputs: Sequence[Any], opset: int, metadata: Mapping[str, str]
) -> Any:
    leaves, paths = jax.tree.leaves(variables), [path for path, _ in leaf_paths(variables)]
    closed, out = program(run, variables, *inputs)
    graph, avals = Graph(opset), closed.in_avals[len(leaves) :]
    ports = [_port(graph, name, aval) for name, aval in zip(_input_names(len(avals)), avals, strict=True)]
    for port in ports:
        if "batch" in port.shape and "batch" not in graph.sizes:
            axis = graph.constant(np.int64(port.shape.index("batch")))
            graph.sizes["batch"] = graph.one("Gather", graph.one("Shape", port.name), axis, axis=0)
    args: list[Held] = [*leaves, *(Tensor(port.name, tuple(range(len(port.shape)))) for port in ports)]
    emitter, outputs = write(graph, RULES, flatten(closed), args, paths)
    results = [_port(graph, name, aval) for name, aval in zip(_output_names(out), closed.out_avals, strict=True)]
    for port, number in zip(results, outputs, strict=True):
        graph.nodes.append(helper.make_node("Identity", [emitter.tensor(number)], [port.name], name=port.name))
    return _model(graph, ports, results, metadata)


def _port(graph: Graph, name: str, aval: Any) -> Port:
    return Port(graph.unique(name), tuple(n if isinstance(n, int) else str(n) for n in aval.shape), aval.dtype)


def _input_names(count: int) -> list[str]:
    return ["input"] if count == 1 else [f"input_{number}" for number in range(count)]


def _output_names(out: Any) -> list[str]:
    paths = [path for path, _ in leaf_paths(out)]
    return ["output"] if len(paths) == 1 else ["/".join(("output", *path)) for path in paths]


def _model(graph: Graph, inputs: Sequence[Port], outputs: Sequence[Port], metadata: Mapping[str, str]) -> Any:
    nodes = used(graph.nodes, {port.name for port in outputs})
    needed = set[str]().union(*map(reads, nodes))
    ends = [
        [helper.make_tensor_value_info(port.name, onnx_type(port.dtype), list(port.shape)) for port in side]
        for side in (inputs, outputs)
    ]
    stored = [tensor for name, tensor in graph.stored().items() if name in needed]
    form = helper.make_graph(nodes, _PRODUCER, ends[0], ends[1], stored)
    opsets = [helper.make_opsetid("", graph.opset)]
    version = max(helper.find_min_ir_version_for(opsets), 8)
    model = helper.make_model(form, opset_imports=opsets, ir_version=version, producer_name=_PRODUCER)
    helper.set_model_props(model, dict(metadata))
    return model


def start(file: Path, threads: int = 0) -> Any:
    """onnxruntime's session of a file, on the CPU, with as many threads as it likes unless told."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads that wait for the next call would take the cores from what runs before it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def compare(file: Path, expected: Sequence[Any], inputs: Sequence[Any]) -> float | None:
    """How far onnxruntime's outputs of a file are from `expected`, as a share of the largest; None without onnxruntime.

    Raises:
      InputError: onnxruntime cannot run the model.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    try:
        session = start(file)
        ports = zip(session.get_inputs(), map(np.asarray, inputs), strict=True)
        fed = {port.name: np.asarray(array, stored_dtype(array.dtype)) for port, array in ports}
        found = session.run(None, fed)
    except Exception as error:  # of many types of its own
        reason = first_line(error)
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} cannot run the network ({reason}); half precision and rare types "
            "are what it lacks most."
        ) from error
    if [np.shape(array) for array in expected] != [np.shape(array) for array in found]:
        return math.inf
    return difference(expected, found)
