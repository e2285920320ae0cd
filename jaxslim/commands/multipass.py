"""Cut and train in turns: `jaxslim multipass CHECKPOINT`."""

import dataclasses

from jaxslim.commands.arguments import OfCheckpoint, absolute, code_of, data_of, parse
from jaxslim.commands.cli import command_line, folder_beside, start_jax
from jaxslim.errors import InputError
from jaxslim.files import locked

EXAMPLES = (
    "jaxslim multipass runs/digits-sparse --passes 3 --epochs 10",
    "jaxslim multipass runs/cifar10-sparse --epochs 40",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OfCheckpoint):
    """Cut a network that was trained with L1, train the rest on with L1, and again: the paper's multi-pass scheme. Each
    pass cuts what lies below the median of all scales. The same command continues where it was stopped."""

    out: str | None = None
    """Folder of the passes; by default RUN-multipass beside the run."""
    passes: int = 4
    """How many times."""
    epochs: int = 40
    """Epochs of training after each cut."""
    max_layer_ratio: float = 0.5
    """Largest share of the channels of one layer that a pass cuts."""


def main(argv: list[str]) -> None:
    """The command."""
    options = parse(Options, argv, prog="jaxslim multipass", examples=EXAMPLES)
    if options.out == "":
        raise InputError("--out is empty; give a folder for the passes.")
    from jaxslim.core.printing import columns
    from jaxslim.experiments.finetuning import home
    from jaxslim.experiments.passes import multipass
    from jaxslim.storage import checkpoint

    start_jax(options)
    chosen = dataclasses.asdict(options)
    code = code_of(chosen)
    data, path, out = data_of(chosen), absolute(chosen.pop("checkpoint")), chosen.pop("out")
    run = home(path)
    out = folder_beside(run, out, "multipass")
    meta = checkpoint.read_meta(checkpoint.find(path))
    rows = [("0", f"{meta['metrics']['accuracy']:.2%}", "", "")] if "metrics" in meta else []
    with locked(out, "--out"):
        for number, found in enumerate(multipass(path, out, data=data, **chosen), start=1):
            rows.append((str(number), f"{found.accuracy:.2%}", f"{found.params:,}", f"{found.macs:,}"))
            last = found.folder
    print(columns(("pass", "accuracy", "parameters", "MACs"), rows))
    print(f"Next: {command_line('evaluate', last, **data, **code)}")
