"""Measure the speed of VGG-19, dense and cut, beside PyTorch and the machine's own ceiling, in one run."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training and inference of VGG-19, start-up, cutting and sweeping on this machine."""

    peer: Literal["torch"] | None = None
    """Also measure PyTorch, with the same widths, batches, device and threads."""
    json: str | None = None
    """File for all figures, with hardware and versions. It grows as figures come in."""
    batches: tuple[int, ...] = (1, 64, 256)
    """Images a batch."""
    rounds: int = 7
    """Turns of each contestant."""
    quick: bool = False
    """Rehearse everything with a tiny network in place of VGG-19. The figures mean nothing."""


def main(argv: list[str]) -> None:
    """The command."""
    options = parse(Options, argv, prog="python scripts/bench.py", examples=EXAMPLES)
    if min(options.rounds, *options.batches) < 1:
        raise InputError("--rounds and --batches must be at least 1, for example --rounds 7 --batches 1 64.")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that a compilation that is measured takes place
    import bench_parts
    import jax

    from jaxslim.experiments.hardware import machine
    from jaxslim.models import WIDTHS
    from jaxslim.reporting.report import markdown

    start_jax()
    accelerated, peer = jax.default_backend() != "cpu", _peer(options)
    networks = QUICK if options.quick else {"dense": WIDTHS["vgg19"], "pruned": PRUNED, "rounded": ROUNDED}
    about = {"devices": [device.device_kind for device in jax.local_devices()], **machine()}
    result: dict[str, Any] = {"machine": about | (peer.machine() if peer else {}), "networks": networks, "rows": []}

    def tell(name: str, figures: object) -> None:
        print(f"{name}: {figures}", file=sys.stderr, flush=True)
        if options.json is not None:
            write_whole(Path(options.json), json.dumps(result, indent=2) + "\n")

    tell("machine", result["machine"])
    size = 256 if options.quick else 8192 if accelerated else 2048
    dtypes = ("float32", "bfloat16") if accelerated else ("float32",)
    for name, dtype, batch in itertools.product(networks, dtypes, options.batches):
        for figures in bench_parts.network(networks[name], dtype, batch, options.rounds, peer, size):
            row = {"network": name, "dtype": dtype, "batch": batch, **figures}
            result["rows"].append(row)
            tell(_title(row), f"{batch / row['seconds']['jaxslim']:.1f} images/s, seconds {row['seconds']}")
    parts: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
        ("epoch", bench_parts.epoch, (options.quick, min(options.rounds, 3), peer, size)),
        ("cutting", bench_parts.cutting, (options.rounds,)),
        ("sweep", bench_parts.sweeping, (options.quick,)),
        ("first_step", _first_steps, ()),
    ]
    for name, part, how in parts:
        result[name] = part(networks["dense"], *how)
        tell(name, result[name])
    print(markdown(_report(result)))


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
    speeds, times = {}, {_title(row): row["seconds"]["jaxslim"] for row in result["rows"]}
    for row in result["rows"]:
        ours, dense = times[_title(row)], times[_title(row | {"network": "dense"})]
        seconds = {**row["seconds"], "dense": dense}
        others = {f"/ {who}": time / ours for who, time in seconds.items() if who != "jaxslim"}
        ceiling = {"of matmul rate": row["share_of_matmul_rate"]}
        speeds[_title(row)] = {"images/s": row["batch"] / ours} | others | ceiling
    epoch, seconds = result["epoch"], result["epoch"]["seconds"]
    epochs = {who: {"seconds": time, "/ jaxslim": time / seconds["jaxslim"]} for who, time in seconds.items()}
    tables = (
        _table("Speed, and how many times as fast jaxslim is", speeds),
        _table(f"Training on {epoch['images']} images, {epoch['dtype']}, batch {epoch['batch']}", epochs),
        _table("Seconds to the first step", result["first_step"]),
        _table("Seconds to cut and to sweep", {"jaxslim": result["cutting"] | result["sweep"]}),
    )
    notes = {name: str(value) for name, value in result["machine"].items()}
    return Report(title="Speed of VGG", more_tables=tables, notes=notes)


def _table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    texts = {name: [f"{cells[one]:.2f}" if one in cells else "" for one in columns] for name, cells in rows.items()}
    return Table(title, ["", *columns], [[name, *cells] for name, cells in texts.items()])


def _title(row: dict[str, Any]) -> str:
    return f"{row['network']} {row['dtype']} {row['batch']} {row['kind']}"


if __name__ == "__main__":
    run(main, sys.argv[1:])
