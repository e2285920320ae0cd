"""Your own Flax NNX network in your own training loop: pull, cut, fine-tune, save, load in a fresh process.

Command: python scripts/examples/own_nnx.py
Cost: 20 seconds on 2 CPU cores. The images are scikit-learn's handwritten digits; nothing is downloaded.
"""

import subprocess
import sys
import tempfile

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxslim

TRAIN, FINETUNE, BATCH = 20, 10, 64

images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
images, test_images, labels, test_labels = train_test_split(images, labels, test_size=0.2, random_state=0)
STEPS = len(images) // BATCH  # an epoch


class Net(nnx.Module):
    """A stem and a residual block. The sum ties the channels of `stem` to those of `conv2`: they go together."""

    def __init__(self, outer=48, inner=64):
        self.widths, rngs = (outer, inner), nnx.Rngs(0)
        self.stem = nnx.Conv(1, outer, (3, 3), use_bias=False, rngs=rngs)
        self.bn0 = nnx.BatchNorm(outer, momentum=0.9, rngs=rngs)
        self.conv1 = nnx.Conv(outer, inner, (3, 3), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(inner, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(inner, outer, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(outer, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(outer, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.bn0(self.stem(x))), (2, 2), (2, 2))
        x = nnx.relu(x + self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((1, 2)))


def shapes(*widths):
    """The network without numbers, into which a state goes."""
    return nnx.eval_shape(lambda: Net(*widths))


def is_scale(path, _):
    return "scale" in jax.tree_util.keystr(path)


def optimizer(net, pull):
    rates = [optax.cosine_decay_schedule(0.1, TRAIN * STEPS), optax.cosine_decay_schedule(0.02, FINETUNE * STEPS)]
    sgd = optax.sgd(optax.join_schedules(rates, [TRAIN * STEPS]), momentum=0.9)
    l1 = jaxslim.l1_subgradient(pull, lambda params: jax.tree.map_with_path(is_scale, params))
    return nnx.Optimizer(net, optax.chain(l1, sgd), wrt=nnx.Param)


@nnx.jit
def step(net, tx, images, labels):
    def loss(net):
        return optax.softmax_cross_entropy_with_integer_labels(net(images), labels).mean()

    tx.update(net, nnx.grad(loss)(net))


def fit(net, tx, epochs):
    net.train()
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(images))
        for batch in order[: STEPS * BATCH].reshape(STEPS, BATCH):
            step(net, tx, images[batch], labels[batch])
    net.eval()


def report(what, net):
    graphdef, params, *rest = nnx.split(net, nnx.Param, ...)
    cost = jaxslim.count(lambda params, x: nnx.merge(graphdef, params, *rest)(x), params, test_images)
    predictions = nnx.jit(net)(test_images).argmax(-1)
    accuracy = np.mean(predictions == test_labels)
    size = f"{cost.params:6,} parameters, {cost.macs:9,} MACs, widths {net.widths}"
    print(f"{what:10} {accuracy:7.2%} right, {size}", flush=True)
    return predictions.tolist()


def main(folder):
    net = Net()
    tx = optimizer(net, pull=0.03)
    fit(net, tx, TRAIN)
    report("trained", net)

    graphdef, state = nnx.split(net)
    graph = jaxslim.trace(lambda state, x: nnx.merge(graphdef, state)(x), state, images[:1])
    scores = jax.tree.map_with_path(lambda path, leaf: abs(leaf) if is_scale(path, leaf) else None, state)
    plan = jaxslim.plan(graph, scores, 0.6)
    state, tx_state = (jaxslim.cut(graph, tree, plan) for tree in (state, nnx.state(tx)))

    net = shapes(state["stem"]["kernel"].shape[-1], state["conv1"]["kernel"].shape[-1])
    nnx.update(net, state)
    net.eval()
    tx = optimizer(net, pull=0.0)
    nnx.update(tx, tx_state)  # keeps the momentum of the channels that stay
    report("cut", net)

    fit(net, tx, FINETUNE)
    about = {"widths": net.widths, "predictions": report("fine-tuned", net)}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(state=ocp.args.StandardSave(nnx.state(net)), about=ocp.args.JsonSave(about))
        checkpointer.save(f"{folder}/net", items)


def fresh(folder):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        about = checkpointer.restore(f"{folder}/net", ocp.args.Composite(about=ocp.args.JsonRestore())).about
        net = shapes(*about["widths"])
        items = ocp.args.Composite(state=ocp.args.StandardRestore(nnx.state(net)))
        nnx.update(net, checkpointer.restore(f"{folder}/net", items).state)
    net.eval()
    same = report("loaded", net) == about["predictions"]
    print(f"A fresh process predicts {'the same' if same else 'something else'}.")


if __name__ == "__main__":
    if sys.argv[1:]:
        fresh(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(folder)
            subprocess.run([sys.executable, __file__, folder], check=True)
