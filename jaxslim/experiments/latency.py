"""How long a cut network takes beside the dense one, in turns, and which layers keep it slow."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.cost import count
from jaxslim.core.isolate import Isolated, isolated, repeated, sample
from jaxslim.data.sources import track
from jaxslim.errors import InputError
from jaxslim.ops import compiler_options
from jaxslim.reporting.latency import Latency, Layer, Size, Timing, is_slow, macs_ratio
from jaxslim.slim.latency import ROUNDS, compare
from jaxslim.storage import checkpoint
from jaxslim.storage.checkpoint import Loaded

LONG = 1e-3
"""Seconds of a call beside which the call itself, up to 0.1 ms on CPUs, does not matter."""
MOST_REPEATS = 8
"""How often a call runs a layer that takes less."""
Runtime = Callable[[Callable[..., Any], Any, Any], Callable[[], object]]
"""`prepare(apply, variables, batch)` -> a call that takes the batch through the network and returns when it is done."""


def in_jax(apply: Callable[..., Any], variables: Any, *inputs: Any) -> Callable[[], object]:
    """A call of `apply(variables, *inputs)`, compiled as README says."""
    call = jax.jit(apply, compiler_options=compiler_options())
    return lambda: jax.block_until_ready(call(variables, *inputs))


def runtimes() -> dict[str, Runtime]:
    """What runs networks here, by name."""
    return {"JAX": in_jax}


def uncut(path: str | Path) -> Path:
    """The folder of the network that the one at `path` was cut from, at first, by the parents that checkpoints name.

    Raises:
      InputError: no ancestor was cut, or the folder of one is gone.
    """
    advice = "give the dense network with --against CHECKPOINT."
    found, seen = None, set()
    place = checkpoint.find(path)
    while place not in seen:
        seen.add(place)
        meta = checkpoint.read_meta(place)
        parent = meta.get("parent")
        if not (isinstance(parent, dict) and isinstance(parent.get("path"), str)):
            break
        above = Path(parent["path"])
        try:
            above = checkpoint.find(above)
        except InputError:
            raise InputError(f"{place} was made from {above}, which is no checkpoint any more; {advice}") from None
        if meta.get("kind") == "pruned":
            found = above
        place = above
    if found is None:
        raise InputError(f"{checkpoint.find(path)} names no network that it was cut from; {advice}")
    return found


def measure(
    dense: tuple[Path, Loaded],
    cut: tuple[Path, Loaded],
    image_shape: Sequence[int],
    batches: Sequence[int],
    *,
    rounds: int = ROUNDS,
    runtimes: Mapping[str, Runtime],
) -> Latency:
    """Time two networks in turns on random images, and the layers of both where the cut one is smaller and not faster.

    Args:
      dense, cut: folder of a checkpoint, and what it holds.
      image_shape: (height, width, channels).
      batches: numbers of images in a call.
      rounds: timed calls of each network at each batch size.
      runtimes: what runs the networks, by name. Layers are timed in JAX alone.
    """
    networks = {"dense": dense[1], "cut": cut[1]}
    sizes = [size(path, loaded, image_shape) for path, loaded in (dense, cut)]
    ratio, timings = macs_ratio(*sizes), []
    for batch in dict.fromkeys(batches):
        images = jax.random.normal(jax.random.key(0), (batch, *image_shape))
        calls = {
            (runtime, name): prepare(loaded.module.apply, loaded.variables, images)
            for runtime, prepare in runtimes.items()
            for name, loaded in networks.items()
        }
        found = compare(calls, track(range(rounds), f"Timing both networks on batches of {batch}"))
        for runtime in runtimes:
            before, after = (found[runtime, name] for name in networks)
            timing = Timing(runtime=runtime, batch=batch, dense=before, cut=after)
            if runtime == "JAX" and is_slow(timing.speedup, ratio):
                layers = time_layers(dense[1], cut[1], images, rounds=rounds)
                timing = dataclasses.replace(timing, layers=layers)
            timings.append(timing)
    options = compiler_options()
    how = "jax.jit" + (", compiler_options=jaxslim.ops.compiler_options()" if options else "")
    notes = {"JAX": f"{jax.__version__}, {how}, on {jax.devices()[0].device_kind}", "runs": f"{rounds} calls of each"}
    return Latency(dense=sizes[0], cut=sizes[1], timings=tuple(timings), notes=notes)


def time_layers(dense: Loaded, cut: Loaded, images: jax.Array, *, rounds: int = ROUNDS) -> tuple[Layer, ...]:
    """Time each convolution and product of two networks alone, on random arrays, the two networks in turns.

    Args:
      dense, cut: networks whose layers have the same names; a layer that one of them lacks is left out.
      images: (n, height, width, channels).
      rounds: timed calls of each layer.
    """
    parts = [isolated(loaded.module.apply, loaded.variables, images) for loaded in (dense, cut)]
    names = [name for name in parts[0] if name in parts[1]]
    layers = []
    for name in track(names, f"Timing {len(names)} layers alone on batches of {len(images)}"):
        pair = [part[name] for part in parts]
        calls, times = zip(*map(_alone, pair), strict=True)
        found = compare(dict(enumerate(calls)), range(rounds))
        before, after = (found[which].median / times[which] for which in (0, 1))
        macs = {"dense_macs": pair[0].macs, "cut_macs": pair[1].macs}
        layers.append(Layer(name=name, dense_seconds=before, cut_seconds=after, **macs))
    return tuple(layers)


def _alone(layer: Isolated) -> tuple[Callable[[], object], int]:
    """A call that runs a layer, and how often: as often as hides what the call itself takes."""
    arrays = [sample(shape) for shape in layer.inputs]
    once = in_jax(repeated(layer, 1), arrays)
    seconds = compare({"once": once}, range(3))["once"].low
    times = min(math.ceil(LONG / seconds), MOST_REPEATS)
    return (once, 1) if times == 1 else (in_jax(repeated(layer, times), arrays), times)


def size(path: Path, loaded: Loaded, image_shape: Sequence[int]) -> Size:
    """What the network of the checkpoint in the folder `path` takes, for images (height, width, channels)."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    cost = count(loaded.module.apply, loaded.variables, image)
    files = (file for file in path.rglob("*") if file.is_file() and file.relative_to(path).parts[0] != "training")
    said = loaded.meta.get("cost")  # a program keeps its products to itself
    return Size(
        params=cost.params,
        macs=cost.macs or (said.get("macs") or 0 if isinstance(said, dict) else 0),
        weights=sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(loaded.variables)),
        disk=sum(file.stat().st_size for file in files),
    )
