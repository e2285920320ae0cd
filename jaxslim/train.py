"""Train a network: `python -m jaxslim.train [CONFIG] [--overrides]`."""

from jaxslim.cli import load_config, run
from jaxslim.config import DIGITS, TrainConfig

DESCRIPTION = """Train a network, with sparsity when --l1 is above 0; the same command continues a run that was stopped.

Before the options a config file may stand, for example configs/cifar10_sparse.py; its values are then the defaults
shown here. Without one, the handwritten digits that come with scikit-learn are trained with sparsity."""
CIFAR_CONFIGS = "configs/cifar10_baseline.py, configs/cifar10_sparse.py, configs/cifar10_finetune.py"


def main(argv: list[str]) -> None:
    """The command: parse, then train."""
    import tyro

    named = bool(argv) and not argv[0].startswith("-")
    default = load_config(argv[0]) if named else DIGITS
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

    from jaxslim.loop import train

    train(config)


if __name__ == "__main__":
    run(main)
