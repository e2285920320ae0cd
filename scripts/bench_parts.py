"""What `bench.py` measures in its own process.

Contestants take turns, so that slow moments of the machine hit all of them alike. A turn is some calls that are not
counted, in which the threads of the contestant before come to rest, and one that is counted.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxslim
from jaxslim import VGG, count
from jaxslim.data import Dataset
from jaxslim.slim.criteria.scales import bn_scale_mask
from jaxslim.storage.checkpoint import Loaded
from jaxslim.training.config import RATIOS, TrainConfig
from jaxslim.training.evaluation import evaluator
from jaxslim.training.feed import Batch, InMemory, device_mesh, place, shardings
from jaxslim.training.loop import Sums, TrainState, train_step
from jaxslim.training.optimizer import learning_rates, optimizer

Contestants = dict[str, Callable[[], object]]
REST = 0.01  # seconds after which the idle threads of a contestant sleep; many layers take less
AUGMENT = ("crop", "flip")
IMAGE = np.zeros((1, 32, 32, 3), np.float32)


def network(widths: Any, dtype: str, batch: int, rounds: int, peer: Any, size: int) -> Iterator[dict[str, Any]]:
    """Measure inference and a bare training step (forward, gradients, SGD) of a VGG on `batch` images.

    `peer` is the module `bench_torch` or None; `size` is that of the square matrices whose product is the ceiling.
    Yields the kind, infer or train, with the MACs of one image, the seconds of each contestant in each round, and the
    ceiling, by medians.
    """
    module, variables = build(widths, dtype)
    images, labels = _noise(batch)
    macs = count(module.apply, variables, IMAGE).macs
    floats = jnp.asarray(images, dtype)
    apply = jax.jit(module.apply)
    peers = peer.calls(widths, dtype, images, labels) if peer else {}
    feed = list(InMemory(_one_device(), images, labels, batch).batches(1))
    own: Contestants = {
        "infer": lambda: jax.block_until_ready(apply(variables, floats)),
        "train": trainer((module, variables), _one_device(), lambda: feed),
    }
    for number, (kind, call) in enumerate(own.items()):
        others = {name: calls[number] for name, calls in peers.items()}
        seconds = take_turns({"jaxslim": call} | others | _matmul(size, dtype), rounds)
        rate, ours = 2 * size**3 / median(seconds.pop("matmul")), median(seconds["jaxslim"])
        flop = 2 * macs * batch * (3 if kind == "train" else 1)
        ceiling = {"matmul_flop_per_second": rate, "share_of_matmul_rate": flop / ours / rate}
        yield {"kind": kind, "macs": macs, "seconds": seconds, **ceiling}


def epoch(widths: Any, quick: bool, rounds: int, peer: Any, size: int) -> dict[str, Any]:
    """Measure training with augmentation, as `jaxslim train` does it, on 50,000 images; on CPUs on three batches.

    The contestants are bare steps, two loops of PyTorch, and the time that the arithmetic takes at the rate of the
    matrix product. Arguments are those of `network`.
    """
    accelerated, mesh = jax.default_backend() != "cpu", _one_device()
    batch, number = (8, 2) if quick else (100, 500 if accelerated else 3)
    dtype = "bfloat16" if accelerated else "float32"
    images, labels = _noise(batch * number)
    module, variables = build(widths, dtype)
    feed = InMemory(mesh, images, labels, batch)
    placed = list(feed.batches(1))
    contestants: Contestants = {
        "jaxslim": trainer((module, variables), mesh, lambda: feed.batches(1), AUGMENT),
        "jaxslim, bare steps": trainer((module, variables), mesh, lambda: placed),
        **(peer.loops(widths, dtype, images, labels, batch) if peer else {}),
    }
    seconds = take_turns(contestants | _matmul(size, dtype), rounds)
    products = 3 * count(module.apply, variables, IMAGE).macs * len(images) / size**3  # with the arithmetic of an epoch
    seconds["arithmetic alone"] = [products * one for one in seconds.pop("matmul")]
    return {"images": len(images), "batch": batch, "dtype": dtype, "seconds": seconds}


def trainer(network: Any, mesh: Any, batches: Callable[[], Iterable[Batch]], augment: Any = ()) -> Callable[[], object]:
    """A call that trains `network`, a module and its variables, on `batches()`; the next call goes on from there."""
    config, (module, variables) = TrainConfig(augment=augment, l1=1e-4), network
    variables = jax.tree.map(jnp.copy, variables)  # the step takes over what it is given
    tx = optimizer(config, learning_rates(config, 1), bn_scale_mask(variables))
    sums = Sums(jnp.float32(0), jnp.int32(0), jnp.int32(0))
    state = TrainState(jnp.int32(0), variables, jax.jit(tx.init)(variables["params"]), sums)
    state, key = place((state, jax.random.key(0)), shardings(mesh)[0])
    step = train_step(config, module, tx, mesh)

    def call() -> None:
        nonlocal state
        for batch in batches():
            state = step(state, batch, key)
        jax.block_until_ready(state)

    return call


def first_step(widths: Any, started: float) -> dict[str, float]:
    """Seconds of the parts of a new process, started at `started`, up to a step of training on one batch a device.

    On accelerators the step is taken twice, which takes the loop over steps.
    """
    imported = time.perf_counter()
    network = jax.block_until_ready(build(widths, "float32"))
    initialised, mesh = time.perf_counter(), device_mesh()
    batch, number = 8 * mesh.size, 1 if jax.default_backend() == "cpu" else 2
    feed = InMemory(mesh, *_noise(batch * number), batch)
    trainer(network, mesh, lambda: feed.batches(1), AUGMENT)()
    done = time.perf_counter()
    return {"imports": imported - started, "init": initialised - imported, "first step": done - initialised}


def cutting(widths: Any, rounds: int) -> dict[str, float]:
    """Seconds of trace, plan and cut."""
    module, variables = build(widths, "float32")

    def cut_half() -> Any:
        graph = jaxslim.trace(module.apply, variables, IMAGE)
        return jaxslim.cut(graph, variables, jaxslim.plan(graph, jaxslim.bn_scales(variables), 0.5))

    return {"trace + plan + cut (s)": median(take_turns({"cut": cut_half}, rounds)["cut"])}


def sweeping(widths: Any, quick: bool) -> dict[str, float]:
    """Seconds of a sweep of eight ratios and of one evaluation, each with its compilation."""
    from jaxslim.experiments.sweep import sweep  # not needed for a first step, whose imports are measured

    module, variables = build(widths, "float32")
    number = 40 if quick else 1000 if jax.default_backend() == "cpu" else 10000
    images, labels = _noise(number)
    noise = Dataset("noise", images, labels, images, labels, tuple("0123456789"))
    config, started = TrainConfig(eval_batch_size=min(500, number)), time.perf_counter()
    evaluator(config, module, device_mesh(), images, labels)(variables)
    evaluated = time.perf_counter()
    list(sweep(Loaded(module, variables, {}), config, noise, RATIOS))
    one, swept = evaluated - started, time.perf_counter() - evaluated
    return {f"one evaluation of {number} (s)": one, "sweep of 8 ratios (s)": swept, "ratio": swept / one}


def _noise(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (number, 32, 32, 3), np.uint8), rng.integers(0, 10, number).astype(np.int32)


@functools.cache
def build(widths: Any, dtype: str) -> tuple[Any, Any]:
    """A VGG and its first variables; compiling that takes seconds and is no part of what is measured."""
    module = VGG(widths, 10, jnp.dtype(dtype))
    return module, jax.jit(module.init)(jax.random.key(0), IMAGE)


def _one_device() -> Any:
    return jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",))


def take_turns(contestants: Contestants, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()  # compiles
    for _ in range(rounds):
        for name, call in contestants.items():
            turn = time.perf_counter()
            while time.perf_counter() - turn < REST:
                call()
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return times


def _matmul(size: int, dtype: str) -> Contestants:
    """The ceiling: a product of two large square matrices."""
    square, product = jnp.ones((size, size), dtype), jax.jit(jnp.matmul)
    return {"matmul": lambda: jax.block_until_ready(product(square, square))}
