"""Speed of VGG-19, dense and cut, side by side with PyTorch and the machine's own ceiling, in one run.

Contestants take turns, so that a machine's moods hit all alike; figures are medians after a warm-up.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from jaxslim.cli import run
from jaxslim.errors import InputError
from jaxslim.files import check_path, write_whole

DENSE = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4)
PRUNED = (49, 64, "M", 128, 128, "M", 256, 256, 249, 208, "M", 116, 38, 18, 8, "M", 14, 9, 16, 94)  # ratio 0.7
QUICK = {"dense": (8, 16, "M", 16, "M", 16), "pruned": (3, 9, "M", 5, "M", 7)}
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)

Timed = dict[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training and inference of VGG-19, start-up, cutting and sweeping on this machine."""

    peer: Literal["torch"] | None = None
    """Also measure PyTorch, with the same widths, batches and threads."""
    json: str | None = None
    """File for all figures, with hardware and versions."""
    batches: tuple[int, ...] = (1, 64, 256)
    """Images a batch."""
    rounds: int = 7
    """Runs of each contestant, after one that is not counted."""
    quick: bool = False
    """Rehearse everything with a tiny network in place of VGG-19; the figures mean nothing."""


def main(argv: list[str]) -> None:
    """The command."""
    if argv[:1] == ["--first-step"]:  # this script, started by itself
        _first_step(QUICK["dense"] if "--quick" in argv else DENSE)
        return
    options = tyro.cli(Options, args=argv, prog="python scripts/bench.py")
    if options.rounds < 1 or not options.batches or min(options.batches) < 1:
        raise InputError("--rounds and --batches must be at least 1, for example --rounds 7 --batches 1 64.")
    networks = QUICK if options.quick else {"dense": DENSE, "pruned": PRUNED}
    if options.json is not None:
        check_path(options.json)
        if Path(options.json).is_dir():
            raise InputError(f"{options.json} is a folder; give a file, for example bench.json.")
    import jax

    torch = _torch() if options.peer else None
    accelerated = jax.default_backend() != "cpu"
    dtypes = ("float32", "bfloat16") if accelerated else ("float32",)
    result: dict[str, Any] = {"machine": _machine(torch), "networks": {k: list(v) for k, v in networks.items()}}
    _say(f"machine: {result['machine']}")

    rates = {dtype: _matmul_rate(256 if options.quick else 8192 if accelerated else 2048, dtype) for dtype in dtypes}
    result["matmul_flop_per_second"] = rates
    rows: list[dict[str, Any]] = []
    for name, widths in networks.items():
        for dtype in dtypes:
            for batch in options.batches:
                for kind, seconds, macs in _network(widths, dtype, batch, options.rounds, torch):
                    flop = 2 * macs * batch * (3 if kind == "train" else 1)
                    ratios = {peer: value / seconds["jaxslim"] for peer, value in seconds.items() if peer != "jaxslim"}
                    share = flop / seconds["jaxslim"] / rates[dtype]
                    rows.append(
                        {"network": name, "dtype": dtype, "batch": batch, "kind": kind, "macs": macs}
                        | {"seconds": seconds, "times_as_fast_as": ratios, "share_of_matmul_rate": share}
                    )
                    rate = batch / seconds["jaxslim"]
                    against = ", ".join(f"{ratio:.2f} times {peer}" for peer, ratio in ratios.items())
                    _say(f"{name} {dtype} batch {batch} {kind}: {rate:.1f} images/s {against}")
    result["rows"] = rows
    result["pruned_over_dense"] = _speedups(rows)
    for name, section in (("epoch", _epoch), ("cutting", _cutting), ("sweep", _sweep)):
        result[name] = section(networks["dense"], options)
        _say(f"{name}: {result[name]}")
    result["first_step"] = _cold_start(options)
    _say(f"first step: {result['first_step']}")
    _show(result)
    if options.json is not None:
        write_whole(Path(options.json), json.dumps(result, indent=2) + "\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        _say("PyTorch is not installed, so it is left out; to compare with it: pip install torch")
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return torch


def _machine(torch: Any) -> dict[str, Any]:
    import jax

    from jaxslim.sweep import machine

    return {"devices": [device.device_kind for device in jax.local_devices()], **dict(machine())} | (
        {"torch": torch.__version__, "torch_threads": torch.get_num_threads()} if torch else {}
    )


def _medians(contestants: Timed, rounds: int) -> dict[str, float]:
    """Seconds of each, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, call in contestants.items():
            started = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _matmul_rate(size: int, dtype: str) -> float:
    import jax
    import jax.numpy as jnp

    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = _medians({"product": lambda: jax.block_until_ready(product(square, square))}, 7)["product"]
    return 2 * size**3 / seconds


def _network(
    widths: Any, dtype: str, batch: int, rounds: int, torch: Any
) -> Iterator[tuple[str, dict[str, float], int]]:
    """Seconds of a bare training step (forward, gradients, SGD) and of inference, of jaxslim and its peers."""
    import jax
    import jax.numpy as jnp

    from jaxslim import VGG, count, lowering, steps
    from jaxslim.config import TrainConfig
    from jaxslim.sparsity import bn_scale_mask

    config = TrainConfig(batch_size=batch, pad=0, flip=False, l1=1e-4)
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",))
    module = VGG(widths, 10, jnp.dtype(dtype))
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    labels = np.arange(batch, dtype=np.int32) % 10
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    macs = count(module.apply, variables, jnp.zeros((1, 32, 32, 3))).macs
    tx = steps.optimizer(config, steps.learning_rates(config, 1), bn_scale_mask(variables))
    floats = jnp.asarray(images, dtype)
    apply = jax.jit(module.apply, compiler_options=lowering.compiler_options())
    infer: Timed = {"jaxslim": lambda: jax.block_until_ready(apply(variables, floats))}
    peers = _torch_calls(torch, widths, dtype, images, labels) if torch else {}
    yield "infer", _medians(infer | {name: calls[1] for name, calls in peers.items()}, rounds), macs

    copied = jax.tree.map(jnp.copy, variables)
    state = steps.TrainState(jnp.zeros((), jnp.int32), copied, tx.init(copied["params"]))
    state, key = jax.device_put((state, jax.random.key(0)), steps.shardings(mesh)[0])
    step = steps.train_step(config, module, tx, mesh)
    (call,) = steps.feed(mesh, images, labels)(np.arange(batch, dtype=np.int32)[None])

    def train() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, *call, key))

    yield "train", _medians({"jaxslim": train} | {name: calls[0] for name, calls in peers.items()}, rounds), macs


def _torch_calls(torch: Any, widths: Any, dtype: str, images: Any, labels: Any) -> dict[str, tuple[Any, Any]]:
    """(training step, inference) of PyTorch: eager, with channels last, and compiled where that works."""
    nn, device = torch.nn, "cuda" if torch.cuda.is_available() else "cpu"

    def build(last: bool) -> tuple[Any, Any]:
        layers, channels = [], 3
        for width in widths:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
            channels = width
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).to(device)
        x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).contiguous().to(device)
        form = torch.channels_last if last else torch.contiguous_format
        return model.to(memory_format=form), x.contiguous(memory_format=form)

    y = torch.tensor(labels).long().to(device)

    def calls(last: bool, compile_it: bool) -> tuple[Any, Any]:
        half = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
        (trained, x), (evaluated, _) = build(last), build(last)
        evaluated.eval()
        sgd = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        scales = [layer.weight for layer in trained if isinstance(layer, nn.BatchNorm2d)]
        run_trained, run_evaluated = (torch.compile(m) if compile_it else m for m in (trained, evaluated))
        wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

        def train() -> None:
            sgd.zero_grad()
            with half:
                loss = nn.functional.cross_entropy(run_trained(x), y)
            loss.backward()
            for scale in scales:
                scale.grad.add_(torch.sign(scale.detach()), alpha=1e-4)
            sgd.step()
            wait()

        def infer() -> None:
            with torch.inference_mode(), half:
                run_evaluated(x)
            wait()

        return train, infer

    found = {"torch eager": calls(False, False), "torch channels_last": calls(True, False)}
    compiled = calls(False, True)
    try:
        for call in compiled:
            call()
    except Exception as error:  # torch.compile needs a C++ compiler and fails in many ways
        _say(f"torch.compile does not work here, so it is left out: {str(error).partition(chr(10))[0][:120]}")
    else:
        found["torch.compile"] = compiled
    return found


def _speedups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for dense in (row for row in rows if row["network"] == "dense"):
        same = ("dtype", "batch", "kind")
        (cut,) = (row for row in rows if row["network"] == "pruned" and all(row[k] == dense[k] for k in same))
        speedups = {
            who: dense["seconds"][who] / cut["seconds"][who] for who in cut["seconds"] if who in dense["seconds"]
        }
        found.append({k: dense[k] for k in same} | {"macs": dense["macs"] / cut["macs"], "times_as_fast": speedups})
    return found


def _epoch(widths: Any, options: Options) -> dict[str, float]:
    """Part of an epoch as `jaxslim.train` runs it, with augmentation, against as many bare steps."""
    import jax
    import jax.numpy as jnp

    from jaxslim import VGG, steps
    from jaxslim.config import TrainConfig
    from jaxslim.sparsity import bn_scale_mask

    looped = jax.default_backend() != "cpu"
    batch, number = (8 if options.quick else 64), (100 if looped else 3)
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",))
    module = VGG(widths, 10, jnp.bfloat16 if looped else jnp.float32)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (batch * number, 32, 32, 3), np.uint8), rng.integers(0, 10, batch * number)
    calls: Timed = {}
    for name, pad in (("augmented epoch", 4), ("bare steps", 0)):
        config = TrainConfig(batch_size=batch, pad=pad, flip=bool(pad), l1=1e-4)
        variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        tx = steps.optimizer(config, steps.learning_rates(config, number), bn_scale_mask(variables))
        state = steps.TrainState(jnp.zeros((), jnp.int32), variables, tx.init(variables["params"]))
        state, key = jax.device_put((state, jax.random.key(0)), steps.shardings(mesh)[0])
        step, feed = steps.train_step(config, module, tx, mesh), steps.feed(mesh, images, labels.astype(np.int32))
        states, order = [state], np.arange(len(images), dtype=np.int32).reshape(number, batch)
        fixed = list(feed(order))

        def epoch(step=step, feed=feed, states=states, key=key, fixed=fixed, bare=not pad) -> None:
            order = steps.order(0, 1, number * batch, batch)
            for call in fixed if bare else feed(order):
                states[0], _ = step(states[0], *call, key)
            jax.block_until_ready(states[0])

        calls[name] = epoch
    seconds = _medians(calls, min(options.rounds, 3))
    return {f"{name} of {number} steps of {batch} (s)": value for name, value in seconds.items()}


def _cutting(widths: Any, options: Options) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    import jaxslim

    module, image = jaxslim.VGG(widths, 10), jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(module.init)(jax.random.key(0), image)
    calls: Timed = {"trace + plan + cut (s)": lambda: jaxslim.prune(module, variables, 0.5, image)}
    return _medians(calls, options.rounds)


def _sweep(widths: Any, options: Options) -> dict[str, float]:
    """A sweep of eight ratios, with its compilation, against one evaluation with its own."""
    import jax
    import jax.numpy as jnp

    from jaxslim import VGG, steps, sweep
    from jaxslim.checkpoint import Loaded
    from jaxslim.config import TrainConfig
    from jaxslim.data import Dataset

    module = VGG(widths, 10)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    count = 40 if options.quick else 1000 if jax.default_backend() == "cpu" else 10000
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count).astype(np.int32)
    data = Dataset("noise", images, labels, images, labels, tuple(map(str, range(10))))
    config = TrainConfig(eval_batch_size=min(500, count))
    times = []
    for work in (
        lambda: steps.evaluator(config, module, steps.device_mesh(), images, labels)(variables),
        lambda: list(sweep.sweep(Loaded(module, variables, {}), config, data, RATIOS)),
    ):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return {f"one evaluation of {count} (s)": times[0], "sweep of 8 ratios (s)": times[1], "ratio": times[1] / times[0]}


def _first_step(widths: Any) -> None:
    """In a process of its own: imports, initialisation and the first step; prints the seconds of each."""
    started = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from jaxslim import VGG, steps
    from jaxslim.config import TrainConfig
    from jaxslim.sparsity import bn_scale_mask

    imported = time.perf_counter()
    config, mesh, module = TrainConfig(batch_size=8, l1=1e-4), steps.device_mesh(), VGG(widths, 10)
    variables = jax.block_until_ready(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    made = time.perf_counter()
    tx = steps.optimizer(config, steps.learning_rates(config, 1), bn_scale_mask(variables))
    state = steps.TrainState(jnp.zeros((), jnp.int32), variables, jax.jit(tx.init)(variables["params"]))
    batch = 8 * mesh.size
    feed = steps.feed(mesh, np.zeros((batch, 32, 32, 3), np.uint8), np.zeros(batch, np.int32))
    state, key = jax.device_put((state, jax.random.key(0)), steps.shardings(mesh)[0])
    step = steps.train_step(config, module, tx, mesh)
    for call in feed(np.arange(batch, dtype=np.int32)[None]):
        jax.block_until_ready(step(state, *call, key))
    done = time.perf_counter()
    print(json.dumps({"imports": imported - started, "init": made - imported, "first step": done - made}))


def _cold_start(options: Options) -> dict[str, dict[str, float]]:
    """Seconds to the first step, without and with what an earlier process has compiled."""
    command = [sys.executable, __file__, "--first-step", *(["--quick"] if options.quick else [])]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        runs = {}
        for name in ("cold", "with the cache"):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            runs[name] = json.loads(done.stdout)
            runs[name]["in all"] = sum(runs[name].values())
    return runs


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    peers = list(dict.fromkeys(peer for row in result["rows"] for peer in row["times_as_fast_as"]))
    table = Table("network", "dtype", "batch", "", "images/s", *(f"/ {p}" for p in peers), "of matmul rate")
    for row in result["rows"]:
        ratios = row["times_as_fast_as"]
        table.add_row(
            *(row["network"], row["dtype"], str(row["batch"]), row["kind"]),
            f"{row['batch'] / row['seconds']['jaxslim']:.1f}",
            *(f"{ratios[peer]:.2f}" if peer in ratios else "" for peer in peers),
            f"{row['share_of_matmul_rate']:.0%}",
        )
    console.print(table)
    who = list(dict.fromkeys(name for row in result["pruned_over_dense"] for name in row["times_as_fast"]))
    table = Table("pruned over dense", "dtype", "batch", "MACs", *who)
    for row in result["pruned_over_dense"]:
        cells = (f"{row['times_as_fast'][name]:.2f}" if name in row["times_as_fast"] else "" for name in who)
        table.add_row(row["kind"], row["dtype"], str(row["batch"]), f"{row['macs']:.2f}", *cells)
    console.print(table)


if __name__ == "__main__":
    run(main, sys.argv[1:])
