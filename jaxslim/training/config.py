"""What a training run is made of. Nothing here imports JAX, so that `--help` and a typing mistake answer at once."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import typeguard

from jaxslim.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. The defaults are the reference's recipe for VGG-19 on CIFAR-10, without sparsity."""

    name: str = "run"
    """Name of the run; its files go to `runs/NAME`, with `init_from` beside that checkpoint, unless `workdir` says
    otherwise."""
    workdir: str | None = None
    """Folder of the run: checkpoints, metrics.jsonl, config.json."""

    dataset: str = "cifar10"
    """A TFDS name (cifar10, cifar100, svhn_cropped+extra, mnist, ...), `digits`, or the path of a folder, an .npz or a
    CIFAR binary archive."""
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
    augment: tuple[str, ...] = ("crop", "flip")
    """What is done to training images, in this order: crop (a random crop after padding), flip (mirror half of them
    left to right), resized-crop (a random part of 8 to 100 %, resized; of a stream, it is cut from the whole picture).
    Without a name, images stay as they are."""
    pad: int = 4
    """Zero pixels that crop pads each side with."""
    fit: Literal["stretch", "crop"] = "stretch"
    """How pictures become squares: stretched, or the middle cut out, as networks for ImageNet are tested."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Whether pictures of a folder or of TFDS are decoded while training, by grain; auto is when all of them would take
    more than a quarter of the memory."""
    workers: int | None = None
    """Processes that decode a stream: half of the cores by default, at most 8; 0 decodes in threads of the training
    process."""
    skip_broken: bool = False
    """Leave broken pictures of a folder or a stream out, with a warning that names them, in place of an error."""

    model: str = "vgg19"
    """Which network: vgg11 to vgg19, preresnet20 to preresnet164, densenet40 or resnet18_cifar; vgg_a, vgg11_bn to
    vgg19_bn or resnet18 to resnet152 for large images; mlp; or vgg, preresnet, densenet or resnet with `model_args` of
    your own. A network of your own code is my_package.my_module:build: what builds a Linen or NNX module, from
    `model_args` and, where it takes them, `num_classes`, `dtype` and `rngs`."""
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the network, for example widths=16,16,M,32 for a VGG ("M" is a pooling)."""
    init_from: str | None = None
    """Checkpoint to start from (fine-tuning); its network replaces `model` and `model_args`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters, optimizer, statistics and loss are always float32 (mixed precision)."""

    epochs: int = 160
    """Passes over the training set."""
    batch_size: int = 100
    """Images a step, over all devices together."""
    loss: Literal["cross-entropy", "focal", "squared-error"] = "cross-entropy"
    """Loss of an image: softmax cross-entropy, focal loss (Lin et al. 2017, gamma 2), or the squared distance of the
    logits from the one-hot label."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    distill_from: str | None = None
    """Checkpoint of a teacher, for example the uncut network, whose outputs the network learns too (knowledge
    distillation, Hinton et al. 2015)."""
    distill_temperature: float = 4.0
    """What the logits of both are divided by, with `distill_from`."""
    distill_weight: float = 0.9
    """Share of the teacher in the loss, with `distill_from`; the loss on the labels has the rest."""
    optimizer: str = "sgd"
    """Name of an optax optimizer (sgd, adam, adamw, lion, rmsprop, ...). `momentum` and `weight_decay` go to those that
    take them; for the others, weight decay is an L2 pull in the gradient, as in the reference. Most need another
    learning rate than sgd, adam for example about 1e-3."""
    optimizer_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the optimizer, for example b2=0.95."""
    learning_rate: float = 0.1
    """Learning rate of the first epoch; of one-cycle, the highest."""
    schedule: Literal["step", "cosine", "one-cycle"] = "step"
    """How the rate falls: in steps (`lr_drops`), along half a cosine to 0, or in one cycle, which rises from a 25th
    over the first 30 % of the run and falls to nearly 0."""
    warmup: float = 0.0
    """Share of the run over which the rate rises from nearly 0 to `learning_rate`, with schedule step or cosine."""
    lr_drops: tuple[float, ...] = (0.5, 0.75)
    """Shares of the run after which the learning rate is multiplied by `lr_drop_factor`, with schedule step."""
    lr_drop_factor: float = 0.1
    """What each drop multiplies the learning rate by."""
    accumulate: int = 1
    """Batches whose mean gradient makes one update of the parameters; BatchNorm sees each batch alone."""
    ema: float = 0.0
    """Decay of a moving average of all parameters and statistics, for example 0.999; that average is what is tested,
    saved and cut. In the first steps it follows faster: min(ema, (1 + steps) / (10 + steps)). 0 keeps none."""
    momentum: float = 0.9
    """Momentum of the optimizer, if it has one (not Nesterov's)."""
    weight_decay: float = 1e-4
    """Pull of all parameters towards zero."""
    decay_scales: bool = True
    """Whether weight decay pulls on the BatchNorm scales too, as in the reference."""
    l1: float = 0.0
    """Strength of the L1 pull on the BatchNorm scales (lambda of the paper, equation 1); in a network without
    BatchNorm, on all vectors that multiply channels. 0 is no such pull."""
    l1_method: Literal["subgradient", "proximal"] = "subgradient"
    """How `l1` and `group_lasso` pull: the subgradient in the gradient, as in the reference, or a soft threshold after
    each step of l1 / (1 - momentum) times the rate, which pulls as hard and makes scales exactly zero."""
    group_lasso: float = 0.0
    """Strength of the pull on all parameters of a channel together (group lasso), which needs no BatchNorm; 3e-4 for
    the digits, where `l1` is 1e-2. 0 is no such pull."""
    group_lasso_growth: float = 0.0
    """Share of the run over which the strength of `group_lasso` grows from 0; 0 has it in full from the first step."""

    progressive: float = 0.0
    """Share of the channels to cut while training, in the first half of the epochs; 0 cuts none. `best` is then the
    best epoch of the final size."""
    progressive_steps: int = 5
    """How many cuts `progressive` makes."""
    progressive_schedule: Literal["cubic", "linear"] = "cubic"
    """How much of all that goes each cut takes: most in the first ones (Zhu and Gupta, 2017), or as much in each."""

    save_every: int = 1
    """Epochs from one checkpoint to the next; the last epoch is always saved. `best` is the best of those saved."""
    seed: int = 0
    """Seed of initialisation, data order, augmentation and dropout."""
    eval_batch_size: int | None = None
    """Images a batch of evaluation, over all devices together; by default 500 of 32x32 pixels, fewer of larger ones."""
    compilation_cache: bool = True
    """Whether the command keeps compiled steps in `~/.cache/jaxslim/compiled`, so that a second run starts at once."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the package tensorboardX)."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, hint in hints.items():
            value = _plain(getattr(self, name))  # a config file or JSON may hold lists
            object.__setattr__(self, name, value)
            try:
                typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
            except typeguard.TypeCheckError:
                kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
                raise InputError(f"{name} is {value!r}; it must be of type {kind}.") from None
        for name, interval in _BOUNDS.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(_inside(number, interval) for number in numbers):
                raise InputError(f"{name} is {value}; it must lie in {interval}.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                count = len(getattr(self, name))
                raise InputError(f"{name} has {count} numbers for {self.channels} channels; give one a channel.")
        if self.warmup and self.schedule == "one-cycle":
            raise InputError("warmup is for step and cosine, since one-cycle rises by itself; leave warmup out.")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers is {self.workers}; it must be at least 0.")
        if self.pad > self.image_size:
            raise InputError(f"pad is {self.pad}; it must be at most image_size, {self.image_size}.")
        for name in ("workdir", "data_dir", "init_from", "distill_from"):
            if getattr(self, name) == "":
                raise InputError(f"{name} is empty; give a path, or leave it out.")
        if not self.name or any(part in self.name for part in ("/", "\\", "\0")) or self.name in (".", ".."):
            raise InputError(f"name is {self.name!r}; it must be a plain folder name, for example cifar10-sparse.")

    @property
    def sparse(self) -> bool:
        """Whether anything pulls channels towards zero."""
        return bool(self.l1 or self.group_lasso)

    @property
    def tested_at_once(self) -> int:
        """Images a batch of evaluation."""
        return self.eval_batch_size or max(min(500, 500 * 32**2 // self.image_size**2), min(self.batch_size, 500))

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


_COUNT = "[1, 2147483647]"
_BOUNDS = {
    **dict.fromkeys(
        ("epochs", "batch_size", "eval_batch_size", "image_size", "save_every", "progressive_steps", "accumulate"),
        _COUNT,
    ),
    **dict.fromkeys(
        ("weight_decay", "l1", "group_lasso", "lr_drop_factor"), "[0, 1e+30]"
    ),  # more is infinite in float32
    **dict.fromkeys(("seed", "pad"), "[0, 2147483647]"),
    **dict.fromkeys(("momentum", "holdout", "label_smoothing", "progressive", "warmup", "ema"), "[0, 1)"),
    "group_lasso_growth": "[0, 1]",
    "learning_rate": "(0, 1e+30]",
    "distill_temperature": "[0.01, 1000]",
    "distill_weight": "[0, 1]",
    "lr_drops": "(0, 1)",
    "mean": "[-1e+6, 1e+6]",
    "std": "[1e-6, 1e+6]",
}


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def _plain(value: Any) -> Any:
    """Lists as tuples, so that a config read from JSON equals the one that was written."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def from_json(fields: Mapping[str, Any], source: object) -> TrainConfig:
    """The configuration that `source`, a run or checkpoint of this or an earlier version, keeps as JSON."""
    fields = dict(fields)
    if widths := fields.pop("widths", None):  # version 0.1 knew VGG alone
        fields["model_args"] = {"widths": widths}
    if (flip := fields.pop("flip", None)) is not None:
        fields["augment"] = [*(["crop"] if fields.get("pad") else []), *(["flip"] if flip else [])]
    try:
        return TrainConfig(**fields)
    except (TypeError, InputError) as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"{source} holds a configuration that this jaxslim cannot read ({reason}); take another."
        ) from None


RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of channels that the reference's sweep cuts."""

LAYER_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of its channels that a sensitivity analysis cuts of each layer alone."""

DIGITS = TrainConfig(
    name="digits-sparse",
    dataset="digits",
    image_size=16,
    channels=1,
    mean=(0.5,),
    std=(0.5,),
    augment=("crop",),
    pad=1,
    model="vgg",
    model_args={"widths": (32, 32, "M", 64, 64, "M", 128, 160)},
    epochs=20,
    batch_size=64,
    l1=1e-2,
)
"""What `jaxslim train` does when told nothing: scikit-learn's handwritten digits, trained with sparsity."""
