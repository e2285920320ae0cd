"""`python -m jaxslim`, the same as the command `jaxslim`."""

from jaxslim.commands.main import run_command

if __name__ == "__main__":
    run_command()
