"""What a training run is made of. Nothing here imports JAX, so that `--help` and a typing mistake answer at once."""

import dataclasses
import math
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from jaxslim.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. The defaults are the reference's recipe for VGG-19 on CIFAR-10, without sparsity."""

    name: str = "run"
    """Name of the run; its files go to `runs/NAME` unless `workdir` says otherwise."""
    workdir: str | None = None
    """Folder of the run: checkpoints, metrics.jsonl, config.json."""

    dataset: str = "cifar10"
    """A TFDS name (cifar10, cifar100, svhn_cropped, mnist, ...), `digits`, or the path of a folder, an .npz or a CIFAR
    binary archive."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets; without it the variable TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    image_size: int = 32
    """Height and width in pixels that images are resized to."""
    channels: Literal[1, 3] = 3
    """Colour channels that the network sees; grey images are repeated, colour ones are averaged by luminance."""
    holdout: float = 0.0
    """Share of the training set kept aside to choose `best` on; 0 chooses on the test set, as the reference does."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean per channel, of pixels in [0, 1], subtracted from the images."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation per channel that the images are divided by."""
    pad: int = 4
    """Zero pixels padded on each side before the random crop of training images; 0 crops nothing."""
    flip: bool = True
    """Mirror half of the training images left to right."""

    model: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = "vgg19"
    """Which VGG with batch normalisation."""
    widths: tuple[int | Literal["M"], ...] | None = None
    """Channels of each convolution and "M" for each pooling; replaces those of `model`."""
    init_from: str | None = None
    """Checkpoint to start from (fine-tuning); its network and widths replace `model` and `widths`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters are always float32."""

    epochs: int = 160
    """Passes over the training set."""
    batch_size: int = 100
    """Images a step, over all devices together."""
    learning_rate: float = 0.1
    """Learning rate of the first epoch; of one-cycle, the highest."""
    schedule: Literal["step", "cosine", "one-cycle"] = "step"
    """How the rate falls: in steps (`lr_drops`), along half a cosine to 0, or in one cycle, which rises from a 25th
    over the first 30 % of the run and falls to nearly 0."""
    lr_drops: tuple[float, ...] = (0.5, 0.75)
    """Shares of the run after which the learning rate is multiplied by `lr_drop_factor`, with schedule step."""
    lr_drop_factor: float = 0.1
    """What each drop multiplies the learning rate by."""
    momentum: float = 0.9
    """Momentum of SGD (not Nesterov's)."""
    weight_decay: float = 1e-4
    """L2 pull on all parameters."""
    decay_scales: bool = True
    """Whether weight decay pulls on the BatchNorm scales too, as in the reference."""
    l1: float = 0.0
    """Strength of the L1 pull on the BatchNorm scales (lambda of the paper, equation 1); 0 trains without sparsity."""
    l1_method: Literal["subgradient", "proximal"] = "subgradient"
    """How it pulls: the subgradient in the gradient, as in the reference, or a soft threshold after each step of
    l1 / (1 - momentum) times the rate, which pulls as hard and makes scales exactly zero."""

    save_every: int = 1
    """Epochs from one checkpoint to the next; the last epoch is always saved. `best` is the best of those saved."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    eval_batch_size: int = 500
    """Images a batch of evaluation, over all devices together."""
    compilation_cache: bool = True
    """Whether the command keeps compiled steps in `~/.cache/jaxslim/compiled`, so that a second run starts at once."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs `pip install "jaxslim[tensorboard]"`)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # a config file may hold lists, or anything at all
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, value := tuple(value))
            if not _fits(value, field.type):
                kind = field.type.__name__ if isinstance(field.type, type) else str(field.type).replace("typing.", "")
                raise InputError(f"{field.name} is {value!r}; it must be of type {kind}.")
        at_least_one = ("epochs", "batch_size", "eval_batch_size", "image_size", "save_every")
        not_negative = ("pad", "momentum", "weight_decay", "l1", "seed", "lr_drop_factor")
        for names, least in ((at_least_one, 1), (not_negative, 0)):
            for name in names:
                value = getattr(self, name)
                if not least <= value < math.inf:
                    raise InputError(f"{name} is {value}; it must be a number of at least {least}.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be a number above 0.")
        for name in ("learning_rate", "lr_drop_factor", "weight_decay", "l1"):
            if (value := getattr(self, name)) > _LARGEST:
                raise InputError(f"{name} is {value}; it must be at most {_LARGEST:g}.")
        if self.pad > self.image_size:
            raise InputError(f"pad is {self.pad}; it must be at most image_size, {self.image_size}.")
        if self.momentum >= 1:
            raise InputError(f"momentum is {self.momentum}; it must lie in [0, 1).")
        if self.seed >= 2**31:
            raise InputError(f"seed is {self.seed}; it must be below 2147483648.")
        if not 0 <= self.holdout < 1:
            raise InputError(f"holdout is {self.holdout}; it must be a share in [0, 1), for example 0.1.")
        if not all(0 < drop < 1 for drop in self.lr_drops):
            raise InputError(
                f"lr_drops is {self.lr_drops}; each must be a share of the run in (0, 1), for example 0.5 0.75."
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} numbers for {self.channels} channels; give one a channel."
                )
        if not all(abs(value) < math.inf for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} must be finite and every std above 0.")
        if max(map(abs, self.mean)) > 1e6 or not 1e-6 <= min(self.std) <= max(self.std) <= 1e6:
            raise InputError(
                f"mean {self.mean} and std {self.std} are of pixels in [0, 1]; means must be at most 1e6 "
                "and std lie in [1e-6, 1e6]."
            )
        if self.widths is not None:
            check_widths(self.widths, self.image_size)
        for name in ("workdir", "data_dir", "init_from"):
            if getattr(self, name) == "":
                raise InputError(f"{name} is empty; give a path, or leave it out.")
        if not self.name or any(part in self.name for part in ("/", "\\", "\0")) or self.name in (".", ".."):
            raise InputError(f"name is {self.name!r}; it must be a plain folder name, for example cifar10-sparse.")

    @property
    def chosen_on(self) -> str:
        """What `best` is chosen on."""
        if self.holdout:
            return f"the {self.holdout:.0%} of the training images that are held out"
        return "the test set, as in the reference"

    @property
    def folder(self) -> str:
        """Folder that this run writes to."""
        return self.workdir or f"runs/{self.name}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type that a field of `TrainConfig` declares."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in choices)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, choices[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


_LARGEST = 1e30  # larger numbers, or their products, are infinite in float32

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of channels that the reference's sweep cuts."""


def check_widths(widths: tuple[int | str, ...], image_size: int) -> None:
    """Refuse `widths` that describe no VGG for square images of `image_size` pixels.

    Raises:
      InputError: no convolution, a width that is neither a positive integer nor "M", or more poolings than the image
        has halvings.
    """
    if not any(width != "M" for width in widths):
        raise InputError(
            f'widths {widths} hold no convolution; give channel counts and "M" for pooling, for example 64 M 128 M.'
        )
    for width in widths:
        if width != "M" and (not isinstance(width, int) or isinstance(width, bool) or not 1 <= width < 2**31):
            raise InputError(f'widths hold {width!r}; each must be a positive number of channels or "M" for pooling.')
    if image_size >> widths.count("M") < 1:
        raise InputError(
            f"{widths.count('M')} poolings shrink images of {image_size} pixels to nothing; "
            "raise image_size or take an M out of widths."
        )


DIGITS = TrainConfig(
    name="digits-sparse",
    dataset="digits",
    image_size=16,
    channels=1,
    mean=(0.5,),
    std=(0.5,),
    pad=1,
    flip=False,
    widths=(32, 32, "M", 64, 64, "M", 128, 160),
    epochs=20,
    batch_size=64,
    l1=1e-2,
)
"""What `python -m jaxslim.train` does when told nothing: scikit-learn's handwritten digits, trained with sparsity."""
