"""How long a cut network takes beside the dense one, in turns, and which layers keep it slow."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.cost import count
from jaxslim.core.isolate import Isolated, isolated, repeated, sample
from jaxslim.data.sources import track
from jaxslim.errors import InputError
from jaxslim.interop.export import export
from jaxslim.machine import cores
from jaxslim.reporting.latency import Latency, Layer, Size, Timing, is_slow, macs_ratio
from jaxslim.slim.latency import ROUNDS, compare
from jaxslim.storage import checkpoint
from jaxslim.storage.checkpoint import Loaded
from jaxslim.storage.programs import Program
from jaxslim.training.network import in_precision

LONG = 1e-3
"""Seconds of a call beside which the call itself, up to 0.1 ms on CPUs, does not matter."""
MOST_REPEATS = 8
"""How often a call runs a layer that takes less."""


class Runtime(NamedTuple):
    """What runs networks."""

    prepare: Callable[[Loaded, jax.Array], Callable[[], object]]
    """`prepare(loaded, images)` -> a call that takes the images through the network and returns when it is done. It
    raises `InputError` for a network that the runtime lacks something for."""
    note: str
    """Version, and where it runs."""


def in_jax(apply: Callable[..., Any], variables: Any, *inputs: Any) -> Callable[[], object]:
    """A call of `apply(variables, *inputs)`, compiled as README says."""
    call = jax.jit(apply)
    return lambda: jax.block_until_ready(call(variables, *inputs))


def in_onnxruntime(loaded: Loaded, images: jax.Array) -> Callable[[], object]:
    """A call of the network's ONNX file, in float32, on the CPU with as many threads as JAX has there.

    Raises:
      InputError: ONNX or onnxruntime lacks what the network needs, or gives other outputs.
    """
    from jaxslim.interop.onnx.model import start

    if isinstance(loaded.module, Program):
        raise InputError("A network that was saved as a program lacks the code that ONNX needs; load it with its code.")
    module = in_precision(loaded.module, jnp.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export(file, module.apply, loaded.variables, images)
        session = start(file, cores())
    (port,) = session.get_inputs()
    fed = {port.name: np.asarray(images)}
    return lambda: session.run(None, fed)


def runtimes() -> dict[str, Runtime]:
    """What runs networks here, by name: JAX, and onnxruntime where it is installed."""
    note = f"{jax.__version__}, jax.jit, on {jax.devices()[0].device_kind}"
    found = {"JAX": Runtime(lambda loaded, images: in_jax(loaded.module.apply, loaded.variables, images), note)}
    if all(map(find_spec, ("onnx", "onnxruntime"))):
        note = (
            f"{metadata.version('onnxruntime')}, float32, on the CPU with as many threads as JAX has there: {cores()}"
        )
        found["onnxruntime"] = Runtime(in_onnxruntime, note)
    return found


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
      runtimes: what runs the networks, by name. One that cannot run both is left out, and a note says why. Layers are
        timed in JAX alone.
    """
    networks = {"dense": dense[1], "cut": cut[1]}
    sizes = [size(path, loaded, image_shape) for path, loaded in (dense, cut)]
    ratio, timings = macs_ratio(*sizes), []
    notes = {name: runtime.note for name, runtime in runtimes.items()} | {"runs": f"{rounds} calls of each"}
    for batch in dict.fromkeys(batches):
        images = jax.random.normal(jax.random.key(0), (batch, *image_shape))
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for runtime, (prepare, note) in runtimes.items():
            try:
                calls |= {(runtime, name): prepare(loaded, images) for name, loaded in networks.items()}
            except InputError as error:
                notes[runtime] = f"{note}; left out: {str(error).partition(';')[0]}."
        found = compare(calls, track(range(rounds), f"Timing both networks on batches of {batch}"))
        for runtime in dict.fromkeys(runtime for runtime, _ in calls):
            before, after = (found[runtime, name] for name in networks)
            timing = Timing(runtime=runtime, batch=batch, dense=before, cut=after)
            if runtime == "JAX" and is_slow(timing.speedup, ratio):
                layers = time_layers(dense[1], cut[1], images, rounds=rounds)
                timing = dataclasses.replace(timing, layers=layers)
            timings.append(timing)
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
        weights=sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.variables)),
        disk=sum(file.stat().st_size for file in files),
    )
