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
        rngs = nnx.Rngs(0)
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
    widths = net.stem.kernel.shape[-1], net.conv1.kernel.shape[-1]
    size = f"{cost.params:6,} parameters, {cost.macs:9,} MACs, widths {widths}"
    print(f"{what:10} {accuracy:7.2%} right, {size}", flush=True)
    return predictions.tolist()


def main(folder):
    net = Net()
    tx = optimizer(net, pull=0.03)
    fit(net, tx, TRAIN)
    report("trained", net)

    small = jaxslim.prune(net, None, 0.6, images[:1])
    state = jaxslim.cut(small.graph, nnx.state(tx), small.plan)  # keeps the momentum of the channels that stay
    net = small.module
    tx = optimizer(net, pull=0.0)
    nnx.update(tx, state)
    report("cut", net)

    fit(net, tx, FINETUNE)
    meta = {"predictions": report("fine-tuned", net)}
    jaxslim.save(f"{folder}/net", small, meta=meta)


def fresh(folder):
    net, _, meta = jaxslim.load(f"{folder}/net", module=Net())
    net.eval()
    same = report("loaded", net) == meta["predictions"]
    print(f"A fresh process predicts {'the same' if same else 'something else'}.")


if __name__ == "__main__":
    if sys.argv[1:]:
        fresh(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(folder)
            subprocess.run([sys.executable, __file__, folder], check=True)
