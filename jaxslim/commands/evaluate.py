"""Measure a checkpoint: `jaxslim evaluate CHECKPOINT`."""

import contextlib
import dataclasses

from jaxslim.commands.arguments import OfCheckpoint, parse
from jaxslim.commands.cli import folder_beside, start_jax
from jaxslim.errors import InputError
from jaxslim.files import locked

EXAMPLES = (
    "jaxslim evaluate runs/digits-sparse",
    "jaxslim evaluate runs/digits-pruned --dataset ~/photos",
    "jaxslim evaluate runs/digits-pruned --latency --out runs/digits-pruned-evaluation",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OfCheckpoint):
    """Print accuracy, loss, digest, parameters, MACs and latency of a checkpoint's network, and accuracy by class."""

    batch_size: int | None = None
    """Images a batch; by default as in training."""
    latency: bool = False
    """Time the network and the dense one that it was cut from in turns, with one image and with the batch size of its
    training, and name the layers that keep it slow if it got smaller and not faster. Where onnxruntime is installed, it
    takes turns too."""
    against: str | None = None
    """The dense network for --latency; by default the one that the checkpoint was cut from."""
    out: str | None = None
    """Folder for a report: tables in Markdown, JSON, and a plot of the confusion matrix."""


def main(argv: list[str]) -> None:
    """The command: measure, print, and write the report."""
    options = parse(Options, argv, prog="jaxslim evaluate", examples=EXAMPLES)
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}; it must be at least 1.")
    if options.against is not None and not options.latency:
        raise InputError("--against names the network that --latency compares with; give --latency too.")
    if options.out == "":
        raise InputError("--out is empty; give a folder for the report.")
    from jaxslim.experiments.evaluation import study
    from jaxslim.reporting.confusion import per_class
    from jaxslim.reporting.evaluation import write
    from jaxslim.reporting.latency import slow, tables
    from jaxslim.reporting.terminal import show_table, show_text
    from jaxslim.storage.checkpoint import find

    start_jax(options)
    path = find(options.checkpoint)
    changes = {"dataset": options.dataset, "data_dir": options.data_dir, "eval_batch_size": options.batch_size}
    with contextlib.ExitStack() as stack:
        if options.out:
            out = folder_beside(path, options.out, "evaluation")
            stack.enter_context(locked(out, "--out"))
        found = study(path, beside=options.latency, against=options.against, **changes)
        for name, value in found.facts:
            print(f"{name:11} {value}")
        print()
        show_table(per_class(found.confusion, found.class_names))
        if found.latency:
            for table in tables(found.latency):
                print()
                show_table(table)
            print()
            for name, note in found.latency.notes.items():
                show_text(f"{name}: {note}")
            for sentence, layers in slow(found.latency):
                print()
                show_text(sentence)
                if layers:
                    print()
                    show_table(layers)
        if options.out:
            print(f"\nReport: {write(found, out)}")
