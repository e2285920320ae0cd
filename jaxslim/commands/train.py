"""Train a network: `jaxslim train [CONFIG] [OPTIONS]`, the same as `python -m jaxslim.train`."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from jaxslim.commands.arguments import absolute, data_of, parse, word_after
from jaxslim.commands.cli import command_line, start_jax
from jaxslim.errors import InputError
from jaxslim.experiments.configs import load_config, packaged, summaries
from jaxslim.training.config import DIGITS, TrainConfig

DESCRIPTION = """Train a network, with sparsity if --l1 or --group-lasso is above 0. The same command continues a run
that was stopped. CONFIG is a name that --list shows, or a Python file; its values are then the defaults below. Without
it, a small VGG learns the digits that come with scikit-learn. With --init-from CHECKPOINT, that network is fine-tuned:
the checkpoint decides the data, and the recipe too if there is no CONFIG. In --model-args, commas make a list:
widths=16,32,M,64 or, for a single number, widths=16, with the comma."""
EXAMPLES = (
    "jaxslim train",
    "jaxslim train --list",
    "jaxslim train cifar10-sparse --epochs 40 --l1 4e-4",
    "jaxslim train --init-from runs/digits-pruned --epochs 10",
    "jaxslim train --init-from runs/digits-pruned --distill-from runs/digits-sparse --epochs 10",
    "jaxslim train --dataset ~/photos --image-size 64",
    "jaxslim train --model vgg --model-args widths=16,16,M,32,32,M,64",
)


def main(argv: list[str]) -> None:
    """The command: parse, train, and name the next command."""
    if "--list" in argv:
        width = max(map(len, packaged()))
        print("\n".join(f"{name:{width}}  {summary}" for name, summary in summaries().items()))
        return
    names = packaged()
    named = bool(argv) and not argv[0].startswith("-")
    for before, word in itertools.pairwise(argv):
        if (word in names or word.endswith(".py")) and not before.startswith("-"):
            problem = "Give one config" if named else "The config comes before the options"
            raise InputError(f"{problem}: jaxslim train {argv[0] if named else word} [OPTIONS].")
    recipe, words = (load_config(argv[0]), argv[1:]) if named else (None, argv)
    source = word_after(words, "--init-from") or (recipe.init_from if recipe else None)
    if not source or {"-h", "--help"} & {*words}:  # answers before JAX is imported
        config = _parse(words, _fit_channels(words, recipe or _without_config(words)))
        if not named:
            images = "the digits of scikit-learn" if config.dataset == "digits" else config.dataset
            how = "with" if config.sparse else "without"
            print(f"No CONFIG given: training on {images} {how} sparsity; --list shows the configs.", flush=True)

    import jax

    from jaxslim.experiments.finetuning import check_unchanged, finetuning
    from jaxslim.training.distributed import is_first, joined, wait
    from jaxslim.training.loop import train
    from jaxslim.training.own import is_own, register_for

    with joined():
        start_jax()
        wait("for the devices of all processes")  # one that ends now would look to the others like a broken device
        if source:
            source, name = absolute(source), word_after(words, "--name")
            tuning = finetuning(source, recipe, **({"name": name} if name else {}))
            config = _parse(words, _fit_channels(words, tuning))
            if is_own(config.model) and word_after(words, "--model"):  # only what was typed is imported
                register_for(config.model, source)
                config = dataclasses.replace(config, model=tuning.model, model_args=tuning.model_args)
            check_unchanged(config, source)
        if not config.compilation_cache:
            jax.config.update("jax_enable_compilation_cache", False)
        folder = train(config).folder
        code = {"model": config.model} if is_own(config.model) else {}
        if is_first() and config.sparse and not config.progressive:
            cut = {"ratio": 0.7, "out": folder.with_name(f"{folder.name}-pruned"), **code}
            print(f"Next: {command_line('sweep', folder, **code)}\nor:   {command_line('prune', folder, **cut)}")
        elif is_first():
            print(f"Next: {command_line('evaluate', folder)}")


def _parse(words: list[str], default: TrainConfig) -> TrainConfig:
    """`default` with the options in `words`; paths become absolute, so that later commands find them from anywhere."""
    shown: Any = {"prog": "jaxslim train [CONFIG]", "description": DESCRIPTION, "examples": EXAMPLES}
    config = parse(TrainConfig, words, **shown, default=default)
    changes: dict[str, Any] = data_of({"dataset": config.dataset, "data_dir": config.data_dir})
    for name in ("init_from", "distill_from"):
        if path := getattr(config, name):
            changes[name] = absolute(path)
    if config.model != default.model and not word_after(words, "--model-args"):
        changes["model_args"] = {}  # those of another network
    return dataclasses.replace(config, **changes)


def _without_config(words: list[str]) -> TrainConfig:
    """The digits' configuration; for other images the same network in colour."""
    dataset = word_after(words, "--dataset")
    if dataset in (None, "digits"):
        return DIGITS
    name = Path(dataset).name.partition(".")[0] or "run"
    grey = dataclasses.replace(DIGITS, name=f"{name}-sparse", image_size=32, pad=4, augment=("crop", "flip"))
    return _fit_channels(["--channels", "3"], grey)


def _fit_channels(words: list[str], config: TrainConfig) -> TrainConfig:
    """`config` with a mean and deviation for each of the `--channels` that `words` ask for."""
    channels = word_after(words, "--channels")
    if channels not in ("1", "3") or len({*config.mean}) > 1 or len({*config.std}) > 1:
        return config
    number = int(channels)
    changes: dict[str, Any] = {"channels": number, "mean": config.mean[:1] * number, "std": config.std[:1] * number}
    return dataclasses.replace(config, **changes)
