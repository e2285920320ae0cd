"""Training steps of network slimming in PyTorch, and the values they give.

`python tests/reference_step.py`, where PyTorch is installed, writes reference_step.npz beside this file. The inputs
need no PyTorch, so that jaxslim starts from the same ones. Names and layouts are those of Flax.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
MEAN, STD = (0.5, 0.25, 0.75), (0.25, 0.5, 0.5)
CLASSES, BATCH = 5, 6
RATES = (0.1, 0.1, 0.01, 0.001)
L1 = (0.0, 0.01)


class Case(NamedTuple):
    """A VGG and the images it sees."""

    widths: tuple[int | str, ...]
    height: int
    width: int


CASES = {
    "even": Case((6, "M", 8, "M", 10), 8, 8),
    "odd": Case((5, "M", 6, "M", 4), 9, 7),
}


class Inputs(NamedTuple):
    """A training set, the indices of each step's batch, and `layer/array` -> weights and running statistics."""

    images: np.ndarray
    labels: np.ndarray
    batches: np.ndarray
    weights: dict[str, np.ndarray]


def inputs(case: Case) -> Inputs:
    rng = np.random.RandomState(0)  # unlike that of default_rng, its stream never changes
    count = BATCH * len(RATES)
    images = rng.randint(0, 256, (count, case.height, case.width, 3)).astype(np.uint8)
    labels = rng.randint(0, CLASSES, count)
    weights: dict[str, np.ndarray] = {}
    fan_in = 3
    for layer, width in enumerate(convolutions(case)):
        weights[f"conv{layer}/kernel"] = rng.normal(0, (2 / 9 / fan_in) ** 0.5, (3, 3, fan_in, width))
        weights[f"bn{layer}/scale"] = rng.uniform(0.5, 1.5, width) * rng.choice([-1, 1], width)
        weights[f"bn{layer}/bias"] = rng.normal(0, 0.3, width)
        weights[f"bn{layer}/mean"] = rng.normal(0, 0.3, width)
        weights[f"bn{layer}/var"] = rng.uniform(0.5, 2, width)
        fan_in = width
    weights[f"bn{layer}/scale"][0] = 0  # not pulled by the L1 term
    weights["classifier/kernel"] = rng.normal(0, 0.5, (fan_in, CLASSES))
    weights["classifier/bias"] = rng.normal(0, 0.3, CLASSES)
    return Inputs(images, labels, rng.permutation(count).reshape(-1, BATCH), weights)


def convolutions(case: Case) -> list[int]:
    return [width for width in case.widths if width != "M"]


def variables(case: Case, dtype: str) -> dict[str, Any]:
    """The weights of `inputs` as Flax has them."""
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in inputs(case).weights.items():
        layer, array = name.split("/")
        home = "batch_stats" if array in ("mean", "var") else "params"
        tree[home].setdefault(layer, {})[array] = value.astype(dtype)
    return tree


def normalised(images: np.ndarray) -> np.ndarray:
    """As float64 (n, height, width, channels)."""
    return (images / 255 - MEAN) / STD


def torch_images(images: np.ndarray, dtype: str) -> Any:
    import torch

    return torch.from_numpy(normalised(images).transpose(0, 3, 1, 2)).to(getattr(torch, dtype))


def network(case: Case, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The network with the weights of `inputs`, and its tensors by name, seen in the layouts of Flax."""
    import torch
    from torch import nn

    precise = {"dtype": getattr(torch, dtype)}
    layers: list[nn.Module] = []
    named: dict[str, torch.Tensor] = {}
    fan_in = 3
    for part in case.widths:
        if part == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layer = len(named) // 5
        conv = nn.Conv2d(fan_in, part, 3, padding=1, bias=False, **precise)
        norm = nn.BatchNorm2d(part, eps=1e-5, **precise)
        layers += [conv, norm, nn.ReLU()]
        named[f"conv{layer}/kernel"] = conv.weight.data.permute(2, 3, 1, 0)
        named |= {f"bn{layer}/scale": norm.weight.data, f"bn{layer}/bias": norm.bias.data}
        named |= {f"bn{layer}/mean": norm.running_mean, f"bn{layer}/var": norm.running_var}
        fan_in = part
    dense = nn.Linear(fan_in, CLASSES, **precise)
    named |= {"classifier/kernel": dense.weight.data.T, "classifier/bias": dense.bias.data}
    for name, value in inputs(case).weights.items():
        named[name].copy_(torch.from_numpy(value))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense), named


def forward(case: Case, dtype: str) -> np.ndarray:
    """Logits (n, CLASSES) of all images, from the running statistics."""
    import torch

    net, _ = network(case, dtype)
    with torch.no_grad():
        return net.eval()(torch_images(inputs(case).images, dtype)).numpy()


def train(case: Case, l1: float, dtype: str) -> dict[str, np.ndarray]:
    """`layer/array` -> (steps, ...) after each step, and `loss` and `correct` (steps,) before it."""
    import torch

    net, named = network(case, dtype)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels, batches, _ = inputs(case)
    history: dict[str, list[Any]] = {name: [] for name in (*named, "loss", "correct")}
    for rate, chosen in zip(RATES, batches, strict=True):
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        logits = net(torch_images(images[chosen], dtype))
        truth = torch.from_numpy(labels[chosen])
        loss = torch.nn.functional.cross_entropy(logits, truth)
        loss.backward()
        for module in net:
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.grad += l1 * module.weight.data.sign()
        sgd.step()
        history["loss"].append(loss.item())
        history["correct"].append((logits.argmax(1) == truth).sum().item())
        for name, tensor in named.items():
            history[name].append(tensor.numpy().copy())
    return {name: np.stack(values) for name, values in history.items()}


def everything(dtype: str) -> dict[str, np.ndarray]:
    """What reference_step.npz holds, there in float64."""
    found = {f"{name}/logits": forward(case, dtype) for name, case in CASES.items()}
    for name, case in CASES.items():
        for l1 in L1:
            found |= {f"{name}/{l1}/{array}": value for array, value in train(case, l1, dtype).items()}
    return found


if __name__ == "__main__":
    np.savez_compressed(FILE, **everything("float64"))
    print(f"Wrote {FILE}, {FILE.stat().st_size // 1000} kB.")
