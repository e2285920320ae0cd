"""`jaxslim COMMAND ...`: finds the command and runs it."""

import difflib
import importlib
import sys

from jaxslim.commands.cli import run
from jaxslim.errors import InputError

COMMANDS = {
    "train": "train a network, with sparsity or without, or fine-tune a cut one",
    "sweep": "cut a trained network at several ratios, and report accuracy and size",
    "sensitivity": "cut each layer of a trained network alone, and report what each can lose",
    "prune": "cut channels out of a trained network, and save the smaller one",
    "multipass": "cut and train a network in turns, as the paper does in several passes",
    "evaluate": "measure accuracy, size and latency of a saved network",
    "predict": "name the classes of images, with probabilities",
    "export": "write a saved network as ONNX or StableHLO, to run without its code",
    "import": "read a network that was trained or pruned with PyTorch",
}
FILES = {"import": "importing"}
"""Files of commands whose names are no names of modules."""
HELP = f"""usage: jaxslim COMMAND [OPTIONS]

Makes trained JAX networks smaller and faster by cutting channels out for real.

Commands:
{chr(10).join(f"  {name:13}{what}" for name, what in COMMANDS.items())}

Examples:
  jaxslim train                        train on the digits built in, with sparsity
  jaxslim sweep runs/digits-sparse     see what each share of channels cut costs
  jaxslim train --list                 list the configs for CIFAR and the digits

`jaxslim COMMAND --help` explains a command. Those that make a network print the next one to run."""


def run_command() -> None:
    """The console script: exits as `cli.run` says."""
    run(main)


def main(argv: list[str]) -> None:
    """Run the command that the first word names."""
    name = argv[0] if argv else ""
    if not name:
        print(HELP, file=sys.stderr)
        raise SystemExit(2)
    if name in ("-h", "--help", "help"):
        print(HELP)
    elif name in ("-V", "--version"):
        from jaxslim import __version__

        print(f"jaxslim {__version__}")
    elif name in COMMANDS:
        importlib.import_module(f"jaxslim.commands.{FILES.get(name, name)}").main(argv[1:])
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}."
        raise InputError(f"There is no command {name!r}; {meant} `jaxslim --help` explains them.")
