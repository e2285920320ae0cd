"""Plans as files: what survives, and of the graph what it takes to cut another checkpoint of the network."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxslim.core.graph import ChannelGraph, Stop, check_size
from jaxslim.core.paths import leaf_paths
from jaxslim.core.plan import Layer, Plan, Target
from jaxslim.errors import InputError, first_line
from jaxslim.files import check_path, write_whole
from jaxslim.storage.history import damaged, read_meta
from jaxslim.storage.integrity import DamageError

PLAN_FILE = "plan/plan.npz"
"""Where a checkpoint of a cut network keeps its plan."""
PLAN_FORMAT = 1
BITS = ("keep", "exact", "choosable", "closed")


def save_plan(path: str | Path, graph: ChannelGraph, plan: Plan) -> Path:
    """Write a plan and its graph to a new file, whole or not at all.

    Args:
      path: file to make, for example `half.npz`.
      graph: of the full network.
      plan: for this graph.

    Returns:
      The absolute path.

    Raises:
      InputError: the file exists, or the plan is for another graph.
      OSError: it cannot be written; nothing is left of it.
    """
    check_path(path)
    path = Path(path).absolute()
    if os.path.lexists(path):
        raise InputError(f"{path} exists already and plans are never overwritten; choose another file.")
    return write_whole(path, pack(graph, plan))


def load_plan(path: str | Path, variables: Any = None) -> tuple[ChannelGraph, Plan]:
    """Read a plan and the graph that it is for, to cut another checkpoint of the same network.

    Args:
      path: what `save_plan` wrote, or a checkpoint of a cut network.
      variables: the full variables that the plan is to cut; given, their paths and shapes are compared.

    Returns:
      (graph, plan), for `cut`, `mask`, `restore` and `narrow`.

    Raises:
      InputError: there is no plan, it is damaged, or `variables` are those of another network.

    Example:
      >>> graph, plan = load_plan("half.npz", variables)  # doctest: +SKIP
      >>> small = cut(graph, variables, plan)  # doctest: +SKIP
    """
    check_path(path)
    path = Path(path).absolute()
    if not path.exists():
        raise InputError(f"There is no plan {path}; check the path.")
    if path.is_dir():
        graph, plan = plan_of_checkpoint(path)
    else:
        content = path.read_bytes()
        if not content.startswith(b"PK"):
            raise InputError(f"{path} is no plan; give a file that jaxslim.save_plan wrote.")
        try:
            graph, plan = unpack(content)
        except DamageError as error:
            raise InputError(f"{path} is damaged: {error}; save the plan again.") from None
    if variables is not None:
        check_network(graph, variables)
    return graph, plan


def plan_of_checkpoint(path: Path) -> tuple[ChannelGraph, Plan]:
    """The plan in the folder of a checkpoint."""
    read_meta(path, "plan")
    if not (path / PLAN_FILE).exists():
        raise InputError(f"{path} holds no plan; give a checkpoint that jaxslim.save made of a cut network.")
    try:
        return unpack((path / PLAN_FILE).read_bytes())
    except DamageError as error:
        raise damaged(path, str(error)) from None


def check_network(graph: ChannelGraph, variables: Any) -> None:
    """Refuse variables that are not those of the traced network, by their paths and shapes."""
    shapes = {path: np.shape(leaf) for path, leaf in leaf_paths(variables)}
    for path, shape in zip(graph.paths, graph.shapes, strict=True):
        if shapes.get(path) != shape:
            here = f"shape {shapes[path]}" if path in shapes else "none"
            raise InputError(
                f"The plan is for another network: there {'/'.join(path)} has shape {shape}, here {here}; pass "
                "variables of the network that the plan was made for."
            )


def pack(graph: ChannelGraph, plan: Plan) -> bytes:
    """The content of a plan's file."""
    check_size(graph, plan.keep)
    text = {
        "format": PLAN_FORMAT,
        "units": graph.num_units,
        "paths": graph.paths,
        "shapes": graph.shapes,
        "reads": graph.reads,
        "stops": graph.stops,
        "requested": plan.requested,
        "achieved": float(plan.achieved),
        "layers": plan.layers,
        "target": plan.target,
        "scales": graph.scales,
        "batch_scales": graph.batch_scales,
        "trained": graph.trained,
        "places": graph.places.tolist(),
    }
    vectors = {"keep": plan.keep, "exact": graph.exact, "choosable": graph.choosable, "closed": graph.closed}
    flat = np.concatenate([np.zeros(0, int), *(units for axes in graph.units for units in axes)])
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        text=np.frombuffer(json.dumps(text, default=_number).encode(), np.uint8),
        indices=flat.astype(np.int32),
        below=graph.below.astype(np.int32),
        bits=np.packbits([np.asarray(vectors[name], bool) for name in BITS], axis=1),
    )
    return stream.getvalue()


def unpack(content: bytes) -> tuple[ChannelGraph, Plan]:
    """What `pack` packed; a DamageError if it was changed."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("text", "indices", "below", "bits")}
        text = json.loads(arrays["text"].tobytes())
        if text["format"] != PLAN_FORMAT:
            raise InputError(f"The plan was written by a newer jaxslim (format {text['format']!r}); update jaxslim.")
        return _graph_and_plan(text, arrays)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of many types; the bytes are in memory, so the disk has not failed
        raise DamageError(f"its plan cannot be read ({first_line(error):.80})") from None


def _graph_and_plan(text: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[ChannelGraph, Plan]:
    count = text["units"] + 1
    bits = dict(zip(BITS, np.unpackbits(arrays["bits"], axis=1, count=count).astype(bool), strict=True))
    shapes = tuple(map(tuple, text["shapes"]))
    graph = ChannelGraph(
        paths=tuple(map(tuple, text["paths"])),
        shapes=shapes,
        units=_split(arrays["indices"].astype(np.int64), shapes),
        num_units=text["units"],
        below=arrays["below"].astype(np.int64),
        stops=tuple(Stop(tuple(path), *rest) for path, *rest in text["stops"]),
        reads=tuple(text["reads"]),
        places=np.array(text.get("places", []), np.int64),
        scales=tuple(text.get("scales", ())),
        batch_scales=tuple(text.get("batch_scales", ())),
        trained=tuple(text.get("trained", ())),
        **{name: bits[name] for name in BITS[1:]},
    )
    layers = tuple(Layer(*layer) for layer in text["layers"])
    target = Target(*text["target"]) if text.get("target") else None
    rest = {name: text[name] for name in ("requested", "achieved")}
    return graph, Plan(keep=bits["keep"], layers=layers, target=target, **rest)


def _split(indices: np.ndarray, shapes: Sequence[Sequence[int]]) -> tuple[tuple[np.ndarray, ...], ...]:
    lengths = [n for shape in shapes for n in shape]
    if sum(lengths) != len(indices):
        raise ValueError("its units do not fit its shapes")
    parts = iter(np.split(indices, np.cumsum(lengths)[:-1]) if lengths else [])
    return tuple(tuple(next(parts) for _ in shape) for shape in shapes)


def _number(value: Any) -> Any:
    return value.item()
