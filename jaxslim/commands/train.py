"""Train a network: `python -m jaxslim.train [CONFIG] [--overrides]`."""

import dataclasses
from pathlib import Path

from jaxslim.commands.cli import load_config
from jaxslim.errors import InputError
from jaxslim.training.config import DIGITS, TrainConfig

DESCRIPTION = """Train a network, with sparsity when --l1 is above 0; the same command continues a run that was stopped.

Before the options a config file may stand, for example configs/cifar10_sparse.py; its values are then the defaults
shown here. Without one, the handwritten digits that come with scikit-learn are trained with sparsity."""
CIFAR_CONFIGS = "configs/cifar10_baseline.py, configs/cifar10_sparse.py, configs/cifar10_finetune.py"


def main(argv: list[str]) -> None:
    """The command: parse, then train."""
    import tyro

    named = bool(argv) and not argv[0].startswith("-")
    if not named and any(word.endswith(".py") for word in argv):
        raise InputError("The config comes before the options: python -m jaxslim.train CONFIG [--overrides].")
    default = load_config(argv[0]) if named else DIGITS
    if not named and any(word.split("=")[0] == "--init-from" for word in argv):
        default = dataclasses.replace(DIGITS, name="digits-finetuned", l1=0.0)
    config = tyro.cli(
        TrainConfig,
        default=default,
        args=argv[1:] if named else argv,
        prog="python -m jaxslim.train [CONFIG]",
        description=DESCRIPTION,
    )
    if not named:
        images = "the built-in digits" if config.dataset == "digits" else config.dataset
        how = "with" if config.l1 else "without"
        print(f"No CONFIG given: training on {images} {how} sparsity. For CIFAR-10: {CIFAR_CONFIGS}", flush=True)

    import jax

    from jaxslim.training.distributed import joined
    from jaxslim.training.loop import train
    from jaxslim.training.run import check_folder

    if not config.compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    folder = Path(config.folder).absolute()
    check_folder(folder, config)
    with joined(folder):
        train(config)
