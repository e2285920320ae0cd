"""Read a network of PyTorch: `jaxslim import FILE --model NAME --out FOLDER`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from jaxslim.commands.arguments import data_of, parse
from jaxslim.commands.cli import command_line, start_jax
from jaxslim.errors import InputError

EXAMPLES = (
    "jaxslim import pruned.pth.tar --model vgg19 --out runs/vgg19",
    "jaxslim import model_best.safetensors --model resnet164 --out runs/resnet164",
    "jaxslim import pruned.pth.tar --model preresnet --model-args depth=56 --out runs/resnet56",
    "jaxslim import resnet50.pth --model resnet50 --dataset ~/photos --out runs/resnet50",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Read a trained network of PyTorch, dense or pruned, and save it as a checkpoint.

    Known are the state dicts of pytorch-slimming, of the authors of network slimming, and of torchvision's VGG with
    BatchNorm and ResNet.
    """

    file: Positional[str] = dataclasses.field(metadata={"metavar": "FILE"})
    """File with the state dict: .safetensors, or what torch.save wrote, which needs PyTorch. No code in it is run."""
    model: str
    """The full network: vgg11 to vgg19, preresnet20 to preresnet164 and densenet40 of the authors, vgg11_bn to vgg19_bn
    and resnet18 to resnet152 of torchvision, or resnet18_cifar."""
    out: str
    """Folder to make for the checkpoint."""
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the network, for example depth=56 for preresnet."""
    dataset: str | None = None
    """Data set that the network was trained on; by default cifar10, cifar100 or imagenet2012, by the network and its
    classes."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets."""
    image_size: int | None = None
    """Height and width in pixels of the images; by default 32 or 224, by the network."""
    mean: tuple[float, ...] = ()
    """Mean per channel that was subtracted from pixels in [0, 1]; by default what the repository of the network takes,
    and for VGG pytorch-slimming's 0.5. The authors' is 0.4914 0.4822 0.4465."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel that they were divided by. The authors' is 0.2023 0.1994 0.2010."""


def main(argv: list[str]) -> None:
    """The command: read, check, save."""
    options = parse(Options, argv, prog="jaxslim import", examples=EXAMPLES)
    if not options.out:
        raise InputError("--out is empty; give a folder to make.")
    from jaxslim import models
    from jaxslim.experiments.importing import import_network

    start_jax()
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if value not in (None, ())}
    file, model, out = map(chosen.pop, ("file", "model", "out"))
    chosen |= data_of({"dataset": None, "data_dir": None} | chosen)
    module, _, meta = import_network(file, model, out, **chosen)
    config, cost = meta["config"], meta["cost"]
    mean, std = (" ".join(map(str, config[name])) for name in ("mean", "std"))
    print(f"network     {models.kind(module)} {models.architecture(module) or ''}".rstrip() + f" ({meta['kind']})")
    print(f"images      {'x'.join(map(str, meta['image_shape']))} of {config['dataset']}, mean {mean}, deviation {std}")
    print(f"parameters  {cost['params']:,}")
    print(f"MACs        {cost['macs']:,} multiply-accumulates an image")
    out = Path(out).absolute()
    print(f"Saved {out}.")
    print(f"Next: {command_line('evaluate', out)}")
