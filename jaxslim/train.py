"""`python -m jaxslim.train`, the same as `jaxslim train`."""

from jaxslim.commands.cli import run
from jaxslim.commands.train import main

if __name__ == "__main__":
    run(main)
