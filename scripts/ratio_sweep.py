"""`python scripts/ratio_sweep.py`, the same as `jaxslim sweep`."""

from jaxslim.commands.cli import run
from jaxslim.commands.sweep import main

if __name__ == "__main__":
    run(main)
