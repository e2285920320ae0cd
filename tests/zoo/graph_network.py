"""Networks on graphs, in plain JAX: nodes are gathered along edges and summed over the edges that reach them."""

from typing import Any

import jax
import jax.numpy as jnp

from . import Network, normal, plain, tokens

NODES, EDGES, CLASSES = 10, 24, 4


def dense(layer: Any, x: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"][None]


def dense_shapes(inputs: int, outputs: int) -> Any:
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def mlp(layers: Any, x: Any) -> Any:
    """Two layers and a norm, as in the encoders, processors and decoders of the paper."""
    y = dense(layers["second"], jax.nn.relu(dense(layers["first"], x)))
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    normed = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    return normed * layers["norm"]["scale"][None] + layers["norm"]["bias"][None]


def mlp_shapes(inputs: int, hidden: int, outputs: int) -> Any:
    norm = {"scale": (outputs,), "bias": (outputs,)}
    return {"first": dense_shapes(inputs, hidden), "second": dense_shapes(hidden, outputs), "norm": norm}


def graph_network(params: Any, graph: Any) -> Any:
    """Battaglia et al. (2018), Relational inductive biases, deep learning, and graph networks: encode, process, decode.

    Edges look at their ends, nodes at the sum of their edges, and the whole at the means of both (section 3.2.2).
    """
    senders, receivers = graph["senders"], graph["receivers"]
    nodes, edges = mlp(params["encode_nodes"], graph["nodes"]), mlp(params["encode_edges"], graph["edges"])
    whole = jnp.zeros((1, params["steps"][0]["whole"]["second"]["kernel"].shape[1]))
    for step in params["steps"]:
        context = jnp.broadcast_to(whole, (edges.shape[0], whole.shape[1]))
        edges = edges + mlp(step["edges"], jnp.concatenate([edges, nodes[senders], nodes[receivers], context], axis=-1))
        arrived = jax.ops.segment_sum(edges, receivers, nodes.shape[0])
        context = jnp.broadcast_to(whole, (nodes.shape[0], whole.shape[1]))
        nodes = nodes + mlp(step["nodes"], jnp.concatenate([nodes, arrived, context], axis=-1))
        means = [jnp.mean(values, axis=0, keepdims=True) for values in (nodes, edges)]
        whole = whole + mlp(step["whole"], jnp.concatenate([*means, whole], axis=-1))
    return {"nodes": dense(params["decode_nodes"], nodes), "graph": dense(params["decode_graph"], whole)}


def graph_network_shapes(width: int = 24, context: int = 8, steps: int = 2) -> Any:
    step = {
        "edges": mlp_shapes(3 * width + context, 32, width),
        "nodes": mlp_shapes(2 * width + context, 32, width),
        "whole": mlp_shapes(2 * width + context, 16, context),
    }
    return {
        "encode_nodes": mlp_shapes(6, 16, width),
        "encode_edges": mlp_shapes(3, 16, width),
        "steps": [step] * steps,
        "decode_nodes": dense_shapes(width, CLASSES),
        "decode_graph": dense_shapes(context, 2),
    }


def convolution_network(params: Any, graph: Any) -> Any:
    """Kipf and Welling (2016), Semi-Supervised Classification with Graph Convolutional Networks."""
    nodes, senders, receivers = graph["nodes"], graph["senders"], graph["receivers"]
    degree = 1 + jax.ops.segment_sum(jnp.ones(senders.shape), receivers, nodes.shape[0])
    factor = jax.lax.rsqrt(degree)[:, None]
    for number, layer in enumerate(params["layers"]):
        messages = dense(layer, nodes) * factor
        messages = messages + jax.ops.segment_sum(messages[senders], receivers, nodes.shape[0])
        nodes = messages * factor
        if number + 1 < len(params["layers"]):
            nodes = jax.nn.relu(nodes)
    return nodes


def attention_network(params: Any, graph: Any, key: Any = None) -> Any:
    """Velickovic et al. (2017), Graph Attention Networks: a softmax over the edges that reach a node, for each head.

    With a key, features are dropped as in training (section 3.3).
    """
    nodes, senders, receivers = graph["nodes"], graph["senders"], graph["receivers"]
    for number, layer in enumerate(params["layers"]):
        if key is not None:
            nodes = dropped(jax.random.fold_in(key, number), nodes)
        heads, width = layer["source"].shape
        values = (nodes @ layer["kernel"]).reshape(-1, heads, width)
        source, target = (jnp.sum(values * layer[name][None], axis=-1) for name in ("source", "target"))
        scores = jax.nn.leaky_relu(source[senders] + target[receivers], 0.2)
        largest = jax.ops.segment_max(scores, receivers, nodes.shape[0])
        weights = jnp.exp(scores - largest[receivers])
        total = jax.ops.segment_sum(weights, receivers, nodes.shape[0])
        messages = values[senders] * (weights / total[receivers])[..., None]
        nodes = jax.ops.segment_sum(messages, receivers, nodes.shape[0])
        last = number + 1 == len(params["layers"])
        nodes = jnp.mean(nodes, axis=1) if last else jax.nn.elu(nodes.reshape(-1, heads * width))
    return nodes


def attention_training(params: Any, key: Any, graph: Any) -> Any:
    return attention_network(params, graph, key), {}


def dropped(key: Any, x: Any, rate: float = 0.4) -> Any:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def attention_shapes(heads: int = 4, width: int = 8) -> Any:
    ends = dict.fromkeys(("source", "target"), (heads, width))
    first = {"kernel": (6, heads * width), **ends}
    second = {"kernel": (heads * width, heads * CLASSES), **dict.fromkeys(ends, (heads, CLASSES))}
    return {"layers": [first, second]}


_LOOPS = jnp.arange(NODES, dtype=jnp.int32)
_GRAPH = {
    "nodes": normal(NODES, 6),
    "edges": normal(EDGES, 3, seed=2),
    "senders": tokens(NODES, EDGES, seed=3),
    "receivers": tokens(NODES, EDGES, seed=4),
}
_WITH_LOOPS = {
    "nodes": _GRAPH["nodes"],
    "senders": jnp.concatenate([_GRAPH["senders"], _LOOPS]),
    "receivers": jnp.concatenate([_GRAPH["receivers"], _LOOPS]),
}
_CONVOLUTIONS = {"layers": [dense_shapes(6, 24), dense_shapes(24, 24), dense_shapes(24, CLASSES)]}
NETWORKS: tuple[Network, ...] = (
    plain("graph_network", graph_network, graph_network_shapes(), _GRAPH),
    plain("graph_convolution", convolution_network, _CONVOLUTIONS, _GRAPH),
    plain("graph_attention", attention_network, attention_shapes(), _WITH_LOOPS, train=attention_training),
)
