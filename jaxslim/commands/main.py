"""`jaxslim COMMAND ...`: finds the command and runs it."""

import importlib

from jaxslim.commands.cli import run
from jaxslim.errors import InputError

COMMANDS = {
    "train": "train a network, with sparsity or without, or fine-tune a cut one",
    "sweep": "cut a trained network at several ratios, and report accuracy and size",
    "prune": "cut the channels out, and save the smaller network",
    "evaluate": "measure accuracy, size and latency of a saved network",
}


def run_command() -> None:
    """The console script: exits as `cli.run` says."""
    run(main)


def main(argv: list[str]) -> None:
    """Run the command that the first word names."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: jaxslim COMMAND [OPTIONS]\n")
        print("\n".join(f"  {command:10}{what}" for command, what in COMMANDS.items()))
        print("\n`jaxslim COMMAND --help` explains each one.")
        return
    if name not in COMMANDS:
        raise InputError(f"There is no command {name!r}; the commands are {', '.join(COMMANDS)}.")
    importlib.import_module(f"jaxslim.commands.{name}").main(argv[1:])
