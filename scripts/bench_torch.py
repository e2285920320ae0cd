"""The peer of `bench.py`: the same training and inference in PyTorch, on the kind of device that JAX runs on."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch


def ready() -> bool:
    """Set PyTorch up for speed; whether it sees the kind of device that JAX runs on."""
    from jaxslim.experiments.sweep import cores

    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(cores())
    return device() == "cpu" or torch.cuda.is_available()


def machine() -> dict[str, Any]:
    """Version, threads and device."""
    return {"torch": torch.__version__, "torch_threads": torch.get_num_threads(), "torch_device": device()}


def device() -> str:
    """Not a constant, since the loader's process, which imports this file, must not take hold of JAX's device."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def _model(widths: Any, last: bool) -> Any:
    """The same VGG; `last`: with channels last in memory."""
    nn, layers, channels = torch.nn, [], 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return model.to(device(), memory_format=torch.channels_last if last else torch.contiguous_format)


def _step(model: Any, dtype: str, compiled: bool) -> Callable[[Any, Any], None]:
    """One step of network slimming's training: cross-entropy, the L1 pull, SGD with momentum and weight decay."""
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scales = [layer.weight for layer in model if isinstance(layer, torch.nn.BatchNorm2d)]
    called = torch.compile(model) if compiled else model

    def step(x: Any, y: Any) -> None:
        sgd.zero_grad()
        with _precision(dtype):
            loss = torch.nn.functional.cross_entropy(called(x), y)
        loss.backward()
        for scale in scales:
            scale.grad.add_(torch.sign(scale.detach()), alpha=1e-4)
        sgd.step()

    return step


def _precision(dtype: str) -> Any:
    return torch.autocast(device(), torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def _wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def _if_it_compiles(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception as error:  # torch.compile needs a C++ compiler and fails in many ways
        reason = str(error).partition("\n")[0][:120]
        print(f"torch.compile does not work here, so it is left out: {reason}", file=sys.stderr, flush=True)
        return False
    return True


def calls(widths: Any, dtype: str, images: Any, labels: Any) -> dict[str, tuple[Any, Any]]:
    """(training step, inference) of PyTorch: eager, with channels last, and those compiled where that works."""
    y = torch.tensor(labels).long().to(device())

    def pair(last: bool, compiled: bool) -> tuple[Any, Any]:
        x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).to(device())
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        step = _step(_model(widths, last), dtype, compiled)
        evaluated = _model(widths, last).eval()
        called = torch.compile(evaluated) if compiled else evaluated

        def train() -> None:
            step(x, y)
            _wait()

        def infer() -> None:
            with torch.inference_mode(), _precision(dtype):
                called(x)
            _wait()

        return train, infer

    torch.compiler.reset()  # else it gives up on the eighth network
    found = {"torch eager": pair(False, False), "torch channels_last": pair(True, False)}
    compiled = pair(True, True)
    if _if_it_compiles(lambda: [call() for call in compiled]):
        found["torch.compile"] = compiled
    return found


class _Augmented:
    """Images one by one, as scripts of PyTorch augment them. Not local, since the loader's process imports it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = torch.nn.functional.pad(torch.from_numpy(self.images[index]).permute(2, 0, 1), (4, 4, 4, 4))
        row, column = torch.randint(0, 9, (2,)).tolist()
        image = image[:, row : row + 32, column : column + 32]
        image = image.flip(2) if torch.rand(()) < 0.5 else image
        return image.float().div(255).sub(0.5).div(0.5), int(self.labels[index])


def loops(widths: Any, dtype: str, images: Any, labels: Any, batch: int) -> dict[str, Callable[[], object]]:
    """An epoch as scripts of PyTorch write it (DataLoader, float32), and one written for speed: data on the device,
    channels last, the dtype given, compiled where that works."""
    place = device()
    loader = torch.utils.data.DataLoader(
        _Augmented(images, labels),
        batch_size=batch,
        shuffle=True,
        num_workers=1,
        pin_memory=place == "cuda",
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    usual = _step(_model(widths, False), "float32", False)

    def with_loader() -> None:
        for x, y in loader:
            usual(x.to(place), y.to(place))
        _wait()

    all_images, all_labels = (torch.from_numpy(array).to(place) for array in (images, labels))

    def on_device(step: Callable[[Any, Any], None], order: Any) -> None:
        grid = torch.arange(32, device=place)
        for chosen in order.split(batch):
            padded = torch.nn.functional.pad(all_images[chosen], (0, 0, 4, 4, 4, 4))
            at = torch.randint(0, 9, (2, batch, 1), device=place)
            rows, columns = at[0] + grid, at[1] + grid
            columns = torch.where(torch.rand(batch, 1, device=place) < 0.5, columns.flip(1), columns)
            x = padded[torch.arange(batch, device=place)[:, None, None], rows[:, :, None], columns[:, None, :]]
            step(x.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5), all_labels[chosen])
        _wait()

    def tuned(compiled: bool) -> Callable[[], None]:
        step = _step(_model(widths, True), dtype, compiled)
        return lambda: on_device(step, torch.randperm(len(images), device=place))

    found: dict[str, Callable[[], object]] = {
        "torch with DataLoader, 1 worker": with_loader,
        "torch tuned": tuned(False),
    }
    compiled = tuned(True)
    return found | ({"torch tuned, compiled": compiled} if _if_it_compiles(compiled) else {})
