"""The peer of `bench.py`: the same training and inference in PyTorch, on the kind of device that JAX runs on."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch.nn.functional import conv2d, conv_transpose2d, cross_entropy, pad

USUAL, LAST = torch.contiguous_format, torch.channels_last


def machine() -> dict[str, Any]:
    """Set PyTorch up for speed; its version, threads and device. An ImportError if it lacks JAX's kind of device."""
    from jaxslim.machine import cores

    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(cores())
    if device() == "cuda" and not torch.cuda.is_available():
        raise ImportError("it sees no GPU")
    return {"torch": torch.__version__, "torch_threads": torch.get_num_threads(), "torch_device": device()}


def device() -> str:
    """Not a constant, since the loader's process, which imports this file, must not take hold of JAX's device."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def _model(widths: Any, layout: Any, compiled: bool = False) -> tuple[Any, Any]:
    """The same VGG, as it is and as it is called."""
    nn, layers, channels = torch.nn, [], 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    model = model.to(device(), memory_format=layout)
    return model, torch.compile(model) if compiled else model


def _step(widths: Any, layout: Any, dtype: str, compiled: bool = False) -> Callable[[Any, Any], None]:
    """One step of network slimming's training: cross-entropy, the L1 pull, SGD with momentum and weight decay."""
    model, called = _model(widths, layout, compiled)
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scales = [layer.weight for layer in model if isinstance(layer, torch.nn.BatchNorm2d)]

    def step(x: Any, y: Any) -> None:
        sgd.zero_grad()
        with _precision(dtype):
            loss = cross_entropy(called(x), y)
        loss.backward()
        for scale in scales:
            scale.grad.add_(torch.sign(scale.detach()), alpha=1e-4)
        sgd.step()

    return step


def _precision(dtype: str) -> Any:
    return torch.autocast(device(), torch.bfloat16, enabled=dtype == "bfloat16")


def _wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def _compiles(*calls: Callable[[], object]) -> bool:
    try:
        for call in calls:
            call()
    except Exception as error:  # torch.compile needs a C++ compiler and fails in many ways
        reason = str(error).partition("\n")[0][:120]
        print(f"torch.compile does not work here, so it is left out: {reason}", file=sys.stderr, flush=True)
        return False
    return True


def calls(widths: Any, dtype: str, images: Any, labels: Any) -> dict[str, tuple[Any, Any]]:
    """(inference, training step) of PyTorch: eager, with channels last, and those compiled where that works."""
    y = torch.tensor(labels).long().to(device())

    def pair(layout: Any, compiled: bool = False) -> tuple[Any, Any]:
        x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).to(device()).contiguous(memory_format=layout)
        step = _step(widths, layout, dtype, compiled)
        model, called = _model(widths, layout, compiled)
        model.eval()

        def infer() -> None:
            with torch.inference_mode(), _precision(dtype):
                called(x)
            _wait()

        def train() -> None:
            step(x, y)
            _wait()

        return infer, train

    torch.compiler.reset()  # else it gives up on the eighth network
    found, compiled = {"torch eager": pair(USUAL), "torch channels_last": pair(LAST)}, pair(LAST, True)
    return found | ({"torch.compile": compiled} if _compiles(*compiled) else {})


def layer_calls(layer: Any, images: Any, kernel: Any, cotangent: Any) -> dict[str, tuple[Any, Any]]:
    """(forward pass, forward pass with the gradients of images and kernel) of a `bench_layers.Layer`, in both layouts.

    Args:
      images, cotangent: (batch, height, width, channels) and those of the layer's outputs.
      kernel: (window, window, channels of a group, features), rotated by 180 degrees for a transposed layer.
    """
    function = conv_transpose2d if layer.transposed else conv2d
    how = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    weight = kernel[::-1, ::-1].transpose(2, 3, 0, 1) if layer.transposed else kernel.transpose(3, 2, 0, 1)
    arrays = [images.transpose(0, 3, 1, 2), weight, cotangent.transpose(0, 3, 1, 2)]

    def pair(layout: Any) -> tuple[Any, Any]:
        x, w, gradient = (torch.tensor(one.copy()).to(device()).contiguous(memory_format=layout) for one in arrays)
        inputs = (x.requires_grad_(), w.requires_grad_())

        def infer() -> Any:
            with torch.inference_mode():
                output = function(*inputs, **how)
            _wait()
            return output

        def train() -> None:
            torch.autograd.grad(function(*inputs, **how), inputs, gradient)
            _wait()

        return infer, train

    return {"torch eager": pair(USUAL), "torch channels_last": pair(LAST)}


def channels_last(output: Any) -> np.ndarray:
    """An output of PyTorch, (batch, channels, height, width), as JAX has it."""
    return output.permute(0, 2, 3, 1).cpu().numpy()


class _Augmented:
    """Images one by one, as scripts of PyTorch augment them. Not local, since the loader's process imports it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = pad(torch.from_numpy(self.images[index]).permute(2, 0, 1), (4, 4, 4, 4))
        row, column = torch.randint(0, 9, (2,)).tolist()
        image = image[:, row : row + 32, column : column + 32]
        image = image.flip(2) if torch.rand(()) < 0.5 else image
        return image.float().div(255).sub(0.5).div(0.5), int(self.labels[index])


def loops(widths: Any, dtype: str, images: Any, labels: Any, batch: int) -> dict[str, Callable[[], object]]:
    """An epoch as scripts of PyTorch write it (DataLoader, float32), and one written for speed: data on the device,
    channels last, the dtype given, compiled where that works."""
    place = device()
    workers = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}
    batches = {"batch_size": batch, "shuffle": True, "pin_memory": place == "cuda"}
    loader: Any = torch.utils.data.DataLoader(_Augmented(images, labels), **batches, **workers)
    usual = _step(widths, USUAL, "float32")
    all_images, all_labels = torch.from_numpy(images).to(place), torch.from_numpy(labels).long().to(place)
    grid, positions = torch.arange(32, device=place), torch.arange(batch, device=place)[:, None, None]

    def with_loader() -> None:
        for x, y in loader:
            usual(x.to(place), y.to(place))
        _wait()

    def tuned(step: Callable[[Any, Any], None]) -> None:
        for chosen in torch.randperm(len(images), device=place).split(batch):
            padded = pad(all_images[chosen], (0, 0, 4, 4, 4, 4))
            at = torch.randint(0, 9, (2, batch, 1), device=place)
            rows, columns = at[0] + grid, at[1] + grid
            columns = torch.where(torch.rand(batch, 1, device=place) < 0.5, columns.flip(1), columns)
            x = padded[positions, rows[:, :, None], columns[:, None, :]]
            step(x.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5), all_labels[chosen])
        _wait()

    eager, compiled = (functools.partial(tuned, _step(widths, LAST, dtype, how)) for how in (False, True))
    found: dict[str, Callable[[], object]] = {"torch with DataLoader, 1 worker": with_loader, "torch tuned": eager}
    return found | ({"torch tuned, compiled": compiled} if _compiles(compiled) else {})
