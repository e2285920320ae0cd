"""Your own Flax Linen network in your own training loop: pull, cut, fine-tune, save, load in a fresh process.

Command: python scripts/examples/own_linen.py
Cost: 20 seconds on 2 CPU cores. The images are scikit-learn's handwritten digits; nothing is downloaded.
"""

import functools
import subprocess
import sys
import tempfile

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxslim

TRAIN, FINETUNE, BATCH = 25, 10, 64

images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
images, test_images, labels, test_labels = train_test_split(images, labels, test_size=0.2, random_state=0)
STEPS = len(images) // BATCH  # an epoch


class Net(nn.Module):
    widths: tuple[int, ...] = (32, 32, 64, 64)

    @nn.compact
    def __call__(self, x, train=False):
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), strides=2 if i == 2 else 1, use_bias=False, name=f"conv{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"bn{i}")(x))
        return nn.Dense(10)(x.mean((1, 2)))


@functools.partial(jax.jit, static_argnames=("net", "tx"))
def step(net, tx, variables, state, images, labels):
    def loss(params):
        logits, stats = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    gradients, stats = jax.grad(loss, has_aux=True)(variables["params"])
    updates, state = tx.update(gradients, state, variables["params"])
    return {"params": optax.apply_updates(variables["params"], updates), **stats}, state


def fit(net, tx, variables, state, epochs):
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(images))
        for batch in order[: STEPS * BATCH].reshape(STEPS, BATCH):
            variables, state = step(net, tx, variables, state, images[batch], labels[batch])
    return variables, state


def report(what, net, variables):
    predictions = jax.jit(net.apply)(variables, test_images).argmax(-1)
    params, macs = jaxslim.count(net.apply, variables, test_images)
    accuracy, layers = np.mean(predictions == test_labels), variables["params"]
    widths = tuple(layers[f"conv{i}"]["kernel"].shape[-1] for i in range(len(Net.widths)))
    print(f"{what:10} {accuracy:7.2%} right, {params:6,} parameters, {macs:9,} MACs, widths {widths}", flush=True)
    return predictions.tolist()


def main():
    net = Net()
    variables = jax.jit(net.init)(jax.random.key(0), images[:1])
    scales = jaxslim.bn_scale_mask(variables)
    rates = [optax.cosine_decay_schedule(0.1, TRAIN * STEPS), optax.cosine_decay_schedule(0.02, FINETUNE * STEPS)]
    sgd = optax.sgd(optax.join_schedules(rates, [TRAIN * STEPS]), momentum=0.9)
    pulled = optax.chain(jaxslim.l1_subgradient(0.03, scales), sgd)
    trained, state = fit(net, pulled, variables, pulled.init(variables["params"]), TRAIN)
    report("trained", net, trained)

    small = jaxslim.prune(net, trained, 0.75, images[:1], absorb=True)
    state = jaxslim.cut(small.graph, state, small.plan)  # keeps the momentum of the channels that stay
    report("cut", small.module, small.variables)

    free = optax.chain(jaxslim.l1_subgradient(0.0, scales), sgd)  # without the pull, so that the same state fits
    tuned, state = fit(small.module, free, small.variables, state, FINETUNE)
    return trained, small, tuned


def fresh(folder):
    net, variables, meta = jaxslim.load(folder, module=Net())
    same = report("loaded", net, variables) == meta["predictions"]
    print(f"A fresh process predicts {'the same' if same else 'something else'}.")


if __name__ == "__main__":
    if sys.argv[1:]:
        fresh(sys.argv[1])
    else:
        _, small, variables = main()
        predictions = report("fine-tuned", small.module, variables)
        with tempfile.TemporaryDirectory() as folder:
            jaxslim.save(f"{folder}/net", small, variables, {"predictions": predictions})
            subprocess.run([sys.executable, __file__, f"{folder}/net"], check=True)
