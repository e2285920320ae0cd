"""Speed of VGG-19, dense and cut, side by side with PyTorch and the machine's own ceiling, in one run.

Contestants take turns, so that a machine's moods hit all alike. A turn is one call that is not counted, which lets the
threads of the one before come to rest, and one that is; figures are medians.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from jaxslim.commands.cli import run
from jaxslim.errors import InputError
from jaxslim.files import check_path, write_whole
from jaxslim.training.config import RATIOS, TrainConfig

PRUNED = (49, 64, "M", 128, 128, "M", 256, 256, 249, 208, "M", 116, 38, 18, 8, "M", 14, 9, 16, 94)  # ratio 0.7
ROUNDED = tuple(-(-width // 8) * 8 if isinstance(width, int) else width for width in PRUNED)
QUICK = {"dense": (8, 16, "M", 16, "M", 16), "pruned": (3, 9, "M", 5, "M", 7), "rounded": (8, 16, "M", 8, "M", 8)}

Timed = dict[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training and inference of VGG-19, start-up, cutting and sweeping on this machine."""

    peer: Literal["torch"] | None = None
    """Also measure PyTorch, with the same widths, batches, device and threads."""
    json: str | None = None
    """File for all figures, with hardware and versions; it grows as they come in."""
    batches: tuple[int, ...] = (1, 64, 256)
    """Images a batch."""
    rounds: int = 7
    """Turns of each contestant."""
    quick: bool = False
    """Rehearse everything with a tiny network in place of VGG-19; the figures mean nothing."""


def main(argv: list[str]) -> None:
    """The command."""
    if argv[:1] == ["--first-step"]:  # this script, started by itself
        _first_step("--quick" in argv)
        return
    options = tyro.cli(Options, args=argv, prog="python scripts/bench.py")
    options = dataclasses.replace(options, batches=tuple(dict.fromkeys(options.batches)))
    if options.rounds < 1 or not options.batches or min(options.batches) < 1:
        raise InputError("--rounds and --batches must be at least 1, for example --rounds 7 --batches 1 64.")
    if options.json is not None:
        check_path(options.json)
        if Path(options.json).is_dir():
            raise InputError(f"{options.json} is a folder; give a file, for example bench.json.")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # where compilation is measured, it takes place
    import jax

    from jaxslim.models import WIDTHS

    vgg19 = {"dense": WIDTHS["vgg19"], "pruned": PRUNED, "rounded": ROUNDED}
    networks = QUICK if options.quick else vgg19
    peer = _peer() if options.peer else None
    accelerated = jax.default_backend() != "cpu"
    dtypes = ("float32", "bfloat16") if accelerated else ("float32",)
    result: dict[str, Any] = {"machine": _machine(peer), "networks": {k: list(v) for k, v in networks.items()}}
    _say(f"machine: {result['machine']}")

    size = 256 if options.quick else 8192 if accelerated else 2048
    rows: list[dict[str, Any]] = []
    result["rows"] = rows
    _keep(result, options)
    for name, widths in networks.items():
        for dtype in dtypes:
            for batch in options.batches:
                for kind, seconds, macs in _network(widths, dtype, batch, options.rounds, peer, size):
                    flop = 2 * macs * batch * (3 if kind == "train" else 1)
                    rate = 2 * size**3 / seconds.pop("matmul")
                    ratios = {who: value / seconds["jaxslim"] for who, value in seconds.items() if who != "jaxslim"}
                    share = flop / seconds["jaxslim"] / rate
                    rows.append(
                        {"network": name, "dtype": dtype, "batch": batch, "kind": kind, "macs": macs}
                        | {"seconds": seconds, "times_as_fast_as": ratios}
                        | {"matmul_flop_per_second": rate, "share_of_matmul_rate": share}
                    )
                    against = ", ".join(f"{ratio:.2f} times {who}" for who, ratio in ratios.items())
                    speed = batch / seconds["jaxslim"]
                    _say(f"{name} {dtype} batch {batch} {kind}: {speed:.1f} images/s {against}")
                    _keep(result, options)
    result["against_dense"] = _speedups(rows)
    sections: dict[str, Callable[[], object]] = {
        "epoch": lambda: _epoch(networks["dense"], options, peer, size),
        "cutting": lambda: _cutting(networks["dense"], options),
        "sweep": lambda: _sweep(networks["dense"], options),
        "first_step": lambda: _cold_start(options),
    }
    for name, section in sections.items():
        result[name] = section()
        _say(f"{name}: {result[name]}")
        _keep(result, options)
    _show(result)


def _keep(result: dict[str, Any], options: Options) -> None:
    if options.json is not None:
        write_whole(Path(options.json), json.dumps(result, indent=2) + "\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _peer() -> Any:
    try:
        import bench_torch
    except ImportError:
        _say("PyTorch is not installed, so it is left out; to compare with it: pip install torch")
        return None
    if not bench_torch.ready():
        _say("This PyTorch sees no GPU, where JAX has one, so it is left out; install a build with CUDA")
        return None
    return bench_torch


def _machine(peer: Any) -> dict[str, Any]:
    import jax

    from jaxslim.experiments.sweep import machine

    devices = [device.device_kind for device in jax.local_devices()]
    return {"devices": devices, **machine(), **(peer.machine() if peer else {})}


def _medians(contestants: Timed, rounds: int) -> dict[str, float]:
    """Seconds of each, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            call()
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _matmul(size: int, dtype: str) -> Timed:
    """The ceiling: a product of two large square matrices, which takes turns with the contestants."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return {"matmul": lambda: jax.block_until_ready(product(square, square))}


def _training(config: TrainConfig, module: Any, variables: Any, mesh: Any) -> tuple[Any, Any, Any]:
    """The step, the state before it, which takes over `variables`, and the key of the augmentation."""
    import jax
    import jax.numpy as jnp

    from jaxslim.slim.criteria import bn_scale_mask
    from jaxslim.training import steps

    tx = steps.optimizer(config, steps.learning_rates(config, 1), bn_scale_mask(variables))
    state = steps.TrainState(jnp.zeros((), jnp.int32), variables, jax.jit(tx.init)(variables["params"]))
    state, key = jax.device_put((state, jax.random.key(0)), steps.shardings(mesh)[0])
    return steps.train_step(config, module, tx, mesh), state, key


def _network(
    widths: Any, dtype: str, batch: int, rounds: int, peer: Any, size: int
) -> Iterator[tuple[str, dict[str, float], int]]:
    """Seconds of a bare training step (forward, gradients, SGD) and of inference, of jaxslim and its peers."""
    import jax
    import jax.numpy as jnp

    from jaxslim import VGG, count, ops
    from jaxslim.training import steps

    config = TrainConfig(batch_size=batch, pad=0, flip=False, l1=1e-4)
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",))
    module = VGG(widths, 10, jnp.dtype(dtype))
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    labels = np.arange(batch, dtype=np.int32) % 10
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    macs = count(module.apply, variables, jnp.zeros((1, 32, 32, 3))).macs
    floats = jnp.asarray(images, dtype)
    apply = jax.jit(module.apply, compiler_options=ops.compiler_options())
    infer: Timed = {"jaxslim": lambda: jax.block_until_ready(apply(variables, floats))}
    peers = peer.calls(widths, dtype, images, labels) if peer else {}
    ceiling = _matmul(size, dtype)
    yield "infer", _medians(infer | {name: calls[1] for name, calls in peers.items()} | ceiling, rounds), macs

    step, state, key = _training(config, module, jax.tree.map(jnp.copy, variables), mesh)
    (call,) = steps.feed(mesh, images, labels)(np.arange(batch, dtype=np.int32)[None])

    def train() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, *call, key))

    training: Timed = {"jaxslim": train} | {name: calls[0] for name, calls in peers.items()}
    yield "train", _medians(training | ceiling, rounds), macs


def _speedups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the smaller networks against the dense one: ratio of MACs, and of seconds, for each contestant."""
    found = []
    for cut in (row for row in rows if row["network"] != "dense"):
        same = ("dtype", "batch", "kind")
        (dense,) = (row for row in rows if row["network"] == "dense" and all(row[k] == cut[k] for k in same))
        speedups = {
            who: dense["seconds"][who] / cut["seconds"][who] for who in cut["seconds"] if who in dense["seconds"]
        }
        named = {k: cut[k] for k in ("network", *same)}
        found.append(named | {"macs": dense["macs"] / cut["macs"], "times_as_fast": speedups})
    return found


def _epoch(widths: Any, options: Options, peer: Any, size: int) -> dict[str, Any]:
    """Training with augmentation as `jaxslim.train` does it (an epoch of 50,000 images, on CPUs three steps of one),
    against bare steps, the time that its arithmetic takes at the matrix product's rate, and two loops of PyTorch."""
    import jax
    import jax.numpy as jnp

    from jaxslim import VGG, count
    from jaxslim.training import steps

    looped = jax.default_backend() != "cpu"
    batch, number = (8, 2) if options.quick else (100, 500 if looped else 3)
    dtype = "bfloat16" if looped else "float32"
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",))
    module = VGG(widths, 10, jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (batch * number, 32, 32, 3), np.uint8), rng.integers(0, 10, batch * number)
    calls: Timed = {}
    for name, pad in (("jaxslim", 4), ("jaxslim, bare steps", 0)):
        config = TrainConfig(batch_size=batch, pad=pad, flip=bool(pad), l1=1e-4)
        variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        macs = count(module.apply, variables, jnp.zeros((1, 32, 32, 3))).macs
        step, state, key = _training(config, module, variables, mesh)
        feed = steps.feed(mesh, images, labels.astype(np.int32))
        states, order = [state], np.arange(len(images), dtype=np.int32).reshape(number, batch)
        fixed = list(feed(order))

        def epoch(step=step, feed=feed, states=states, key=key, fixed=fixed, bare=not pad) -> None:
            order = steps.order(0, 1, number * batch, batch)
            for call in fixed if bare else feed(order):
                states[0], _ = step(states[0], *call, key)
            jax.block_until_ready(states[0])

        calls[name] = epoch
    if peer:
        calls |= peer.loops(widths, dtype, images, labels, batch)
    seconds = _medians(calls | _matmul(size, dtype), min(options.rounds, 3))
    floor = 6 * macs * len(images) * seconds.pop("matmul") / (2 * size**3)
    return {
        "images": len(images),
        "batch": batch,
        "dtype": dtype,
        "seconds": seconds,
        "arithmetic_floor_seconds": floor,
        "times_the_floor": seconds["jaxslim"] / floor,
        "times_as_fast_as": {name: value / seconds["jaxslim"] for name, value in seconds.items() if name != "jaxslim"},
    }


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

    from jaxslim import VGG
    from jaxslim.data import Dataset
    from jaxslim.experiments import sweep
    from jaxslim.storage.checkpoint import Loaded
    from jaxslim.training import steps

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


def _first_step(quick: bool) -> None:
    """In a process of its own: imports, initialisation and the first step; prints the seconds of each."""
    started = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from jaxslim import VGG
    from jaxslim.models import WIDTHS
    from jaxslim.training import steps

    imported = time.perf_counter()
    widths = QUICK["dense"] if quick else WIDTHS["vgg19"]
    config, mesh, module = TrainConfig(batch_size=8, l1=1e-4), steps.device_mesh(), VGG(widths, 10)
    variables = jax.block_until_ready(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    made = time.perf_counter()
    step, state, key = _training(config, module, variables, mesh)
    batch = 8 * mesh.size
    feed = steps.feed(mesh, np.zeros((batch, 32, 32, 3), np.uint8), np.zeros(batch, np.int32))
    number = 1 if jax.default_backend() == "cpu" else 2  # several take the loop over steps, as an epoch does
    for call in feed(np.tile(np.arange(batch, dtype=np.int32), (number, 1))):
        jax.block_until_ready(step(state, *call, key))
    done = time.perf_counter()
    print(json.dumps({"imports": imported - started, "init": made - imported, "first step": done - made}))


def _cold_start(options: Options) -> dict[str, dict[str, float]]:
    """Seconds to the first step, without and with what an earlier process has compiled."""
    command = [sys.executable, __file__, "--first-step", *(["--quick"] if options.quick else [])]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "true"
        runs = {}
        for name in ("cold", "with the cache"):
            started = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            runs[name] = {**json.loads(done.stdout), "whole process": time.perf_counter() - started}
    return runs


def _show(result: dict[str, Any]) -> None:
    """Print the figures as Markdown."""
    machine, epoch, steps = result["machine"], result["epoch"], result["first_step"]
    print(f"\n{machine['hardware']} ({', '.join(sorted(set(machine['devices'])))}), {machine['versions']}")
    peers = list(dict.fromkeys(peer for row in result["rows"] for peer in row["times_as_fast_as"]))
    _print_table(
        ["Network, dtype, batch", "images/s", *(f"/ {peer}" for peer in peers), "of matmul rate"],
        (
            [_title(row), f"{row['batch'] / row['seconds']['jaxslim']:.1f}"]
            + [_number(row["times_as_fast_as"].get(peer)) for peer in peers]
            + [f"{row['share_of_matmul_rate']:.0%}"]
            for row in result["rows"]
        ),
    )
    who = ["jaxslim", *peers]
    _print_table(
        ["Times as fast as dense", "fewer MACs", *who],
        (
            [_title(row), _number(row["macs"])] + [_number(row["times_as_fast"].get(name)) for name in who]
            for row in result["against_dense"]
        ),
    )
    images = f"Training on {epoch['images']} images, {epoch['dtype']}, batch {epoch['batch']}"
    against = epoch["times_as_fast_as"]
    _print_table(
        [images, "seconds", "jaxslim is times as fast"],
        ([name, f"{value:.3f}", _number(against.get(name))] for name, value in epoch["seconds"].items()),
    )
    print(f"\nThe arithmetic alone would take {epoch['arithmetic_floor_seconds']:.3f} s at the matmul rate.")
    parts = list(steps["cold"])
    _print_table(
        ["Seconds to the first step", *parts],
        ([name, *(f"{seconds[part]:.2f}" for part in parts)] for name, seconds in steps.items()),
    )
    for figures in (result["cutting"], result["sweep"]):
        print(", ".join(f"{name}: {value:.3g}" for name, value in figures.items()))


def _title(row: dict[str, Any]) -> str:
    return f"{row['network']} {row['dtype']} {row['batch']} {row['kind']}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _print_table(header: list[str], rows: Iterable[list[str]]) -> None:
    print()
    for cells in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    run(main, sys.argv[1:])
