"""Measure the speed of VGG-19, dense and cut, or of single layers, beside PyTorch, in one run."""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import run, start_jax
from jaxslim.errors import InputError
from jaxslim.files import write_whole
from jaxslim.reporting.results import Report, Table

PRUNED = (49, 64, "M", 128, 128, "M", 256, 256, 249, 208, "M", 116, 38, 18, 8, "M", 14, 9, 16, 94)  # ratio 0.7
ROUNDED = tuple(-(-width // 8) * 8 if isinstance(width, int) else width for width in PRUNED)
QUICK = {"dense": (8, "M", 16), "pruned": (3, "M", 7), "rounded": (8, "M", 8)}
FIRST_STEP = "import json, time; started = time.perf_counter(); import bench_parts"
EXAMPLES = (
    "python scripts/bench.py --quick --rounds 1 --batches 2",
    "python scripts/bench.py --peer torch --json bench.json",
    "python scripts/bench.py --layers --peer torch --json layers.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training and inference of VGG-19, start-up, cutting and sweeping on this machine, or single layers."""

    layers: bool = False
    """Measure convolutions one by one in place of all else: the forward pass, and both gradients with it."""
    peer: Literal["torch"] | None = None
    """Also measure PyTorch, with the same widths, batches, device and threads."""
    json: str | None = None
    """File for all figures, with hardware and versions. It grows as figures come in."""
    batches: tuple[int, ...] = (1, 64, 256)
    """Images a batch. Single layers have their own."""
    rounds: int = 7
    """Turns of each contestant."""
    quick: bool = False
    """Rehearse everything with a tiny network in place of VGG-19, or tiny layers. The figures mean nothing."""


def main(argv: list[str]) -> None:
    """The command."""
    options = parse(Options, argv, prog="python scripts/bench.py", examples=EXAMPLES)
    if min(options.rounds, *options.batches) < 1:
        raise InputError("--rounds and --batches must be at least 1, for example --rounds 7 --batches 1 64.")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that a compilation that is measured takes place
    import jax

    from jaxslim.experiments.hardware import machine
    from jaxslim.reporting.report import markdown

    start_jax()
    peer = _peer(options)
    about = {"devices": [device.device_kind for device in jax.local_devices()], **machine()}
    result: dict[str, Any] = {"machine": about | (peer.machine() if peer else {})}

    def tell(name: str, figures: object) -> None:
        print(f"{name}: {figures}", file=sys.stderr, flush=True)
        if options.json is not None:
            write_whole(Path(options.json), json.dumps(result, indent=2) + "\n")

    tell("machine", result["machine"])
    report = (_layers if options.layers else _networks)(options, peer, result, tell)
    print(markdown(dataclasses.replace(report, notes={name: str(value) for name, value in result["machine"].items()})))


def _layers(options: Options, peer: Any, result: dict[str, Any], tell: Callable[[str, object], None]) -> Report:
    import bench_accelerate
    import bench_layers

    layers = bench_layers.QUICK if options.quick else bench_layers.LAYERS
    networks = bench_accelerate.QUICK if options.quick else bench_accelerate.NETWORKS
    batch = 2 if options.quick else 64
    measured: dict[str, tuple[dict[str, Any], Iterable[dict[str, Any]]]] = {}
    for layer in layers:
        about = {"layer": layer.name, **dataclasses.asdict(layer)}
        measured[layer.name] = about, bench_layers.measure(layer, options.rounds, peer)
    for name, module in networks.items():
        about = {"network": name, "batch": batch}
        measured[f"{name}, batch {batch}"] = about, bench_accelerate.measure(module, batch, options.rounds)
    result["rows"], table = [], {}
    for name, (about, rows) in measured.items():
        cells: dict[str, str] = {}
        for figures in rows:
            result["rows"].append({**about, **figures})
            kind, seconds = figures["kind"], figures["seconds"]
            cells[f"{kind} (ms)"] = f"{1000 * statistics.median(seconds['jaxslim']):.2f}"
            cells |= {f"{kind} / {who}": ratio for who, ratio in _times_as_fast(seconds).items()}
            tell(f"{name}, {kind}", f"seconds {_medians(seconds)}")
        table[name] = cells
    title = f"Milliseconds of jaxslim, and how many times as fast it is: median of {options.rounds} rounds and extremes"
    return Report(title="Speed of layers and accelerated networks", more_tables=(_table(title, table),))


def _networks(options: Options, peer: Any, result: dict[str, Any], tell: Callable[[str, object], None]) -> Report:
    import bench_parts
    import jax

    from jaxslim.models import WIDTHS

    accelerated = jax.default_backend() != "cpu"
    networks = QUICK if options.quick else {"dense": WIDTHS["vgg19"], "pruned": PRUNED, "rounded": ROUNDED}
    result |= {"networks": networks, "rows": []}
    size = 256 if options.quick else 8192 if accelerated else 2048
    dtypes = ("float32", "bfloat16") if accelerated else ("float32",)
    for name, dtype, batch in itertools.product(networks, dtypes, options.batches):
        for figures in bench_parts.network(networks[name], dtype, batch, options.rounds, peer, size):
            row = {"network": name, "dtype": dtype, "batch": batch, **figures}
            result["rows"].append(row)
            seconds = _medians(row["seconds"])
            tell(_title(row), f"{batch / seconds['jaxslim']:.1f} images/s, seconds {seconds}")
    parts: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
        ("epoch", bench_parts.epoch, (options.quick, min(options.rounds, 3), peer, size)),
        ("cutting", bench_parts.cutting, (options.rounds,)),
        ("sweep", bench_parts.sweeping, (options.quick,)),
        ("first_step", _first_steps, ()),
    ]
    for name, part, how in parts:
        result[name] = part(networks["dense"], *how)
        tell(name, result[name])
    return _report(result)


def _peer(options: Options) -> Any:
    if options.peer:
        try:
            import bench_torch

            bench_torch.machine()
            return bench_torch
        except ImportError as error:
            print(f"PyTorch is left out ({error}); to compare with it: pip install torch", file=sys.stderr)
    return None


def _first_steps(widths: Any) -> dict[str, dict[str, float]]:
    """Seconds to the first step of a new process, without and with what an earlier process compiled."""
    code, runs = f"{FIRST_STEP}; print(json.dumps(bench_parts.first_step({widths}, started)))", {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "true"
        for name in ("cold", "with the cache"):
            started, folder = time.perf_counter(), Path(__file__).parent
            printed = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=folder)
            runs[name] = {**json.loads(printed), "whole process": time.perf_counter() - started}
    return runs


def _report(result: dict[str, Any]) -> Report:
    speeds, times = {}, {_title(row): statistics.median(row["seconds"]["jaxslim"]) for row in result["rows"]}
    for row in result["rows"]:
        ours, dense = times[_title(row)], times[_title(row | {"network": "dense"})]
        others = {f"/ {who}": ratio for who, ratio in _times_as_fast(row["seconds"]).items()}
        speeds[_title(row)] = {"images/s": row["batch"] / ours, **others, "/ dense": dense / ours}
        speeds[_title(row)]["of matmul rate"] = row["share_of_matmul_rate"]
    epoch = result["epoch"]
    ratios = _times_as_fast(epoch["seconds"])
    epochs = {
        who: {"seconds": seconds, "/ jaxslim": ratios.get(who, 1.0)}
        for who, seconds in _medians(epoch["seconds"]).items()
    }
    tables = (
        _table("Speed, and how many times as fast jaxslim is: median and extremes of the rounds", speeds),
        _table(f"Training on {epoch['images']} images, {epoch['dtype']}, batch {epoch['batch']}", epochs),
        _table("Seconds to the first step", result["first_step"]),
        _table("Seconds to cut and to sweep", {"jaxslim": result["cutting"] | result["sweep"]}),
    )
    return Report(title="Speed of VGG", more_tables=tables)


def _times_as_fast(seconds: dict[str, list[float]]) -> dict[str, str]:
    """How many times as fast jaxslim is as each other contestant in the same round: median, lowest and highest."""
    found = {}
    for who, times in seconds.items():
        if who == "jaxslim":
            continue
        ratios = [other / own for other, own in zip(times, seconds["jaxslim"], strict=True)]
        found[who] = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    return found


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {who: statistics.median(times) for who, times in seconds.items()}


def _table(title: str, rows: Mapping[str, Mapping[str, float | str]]) -> Table:
    """A table of texts, and of numbers, which get two decimals."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    texts = {
        name: [one if isinstance(one := cells.get(column, ""), str) else f"{one:.2f}" for column in columns]
        for name, cells in rows.items()
    }
    return Table(title, ["", *columns], [[name, *cells] for name, cells in texts.items()])


def _title(row: dict[str, Any]) -> str:
    return f"{row['network']} {row['dtype']} {row['batch']} {row['kind']}"


if __name__ == "__main__":
    run(main, sys.argv[1:])
