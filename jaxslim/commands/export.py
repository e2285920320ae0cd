"""Write a checkpoint's network as one file: `jaxslim export CHECKPOINT --out net.onnx`."""

import dataclasses
from typing import Any, Literal

from tyro.conf import Positional

from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import start_jax
from jaxslim.errors import InputError

EXAMPLES = (
    "jaxslim export runs/digits-pruned --out digits.onnx --uint8",
    "jaxslim export runs/digits-pruned --out digits.stablehlo --platforms cpu cuda",
    "jaxslim export runs/cifar10-finetuned/best --out cifar10.stablehlo --weights beside --derivative",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Write the evaluation of a checkpoint's network to a file that needs no code of the network."""

    checkpoint: Positional[str]
    """Folder of a checkpoint, RUN/best, RUN/latest, or a run, which stands for its latest."""
    out: str = dataclasses.field(metadata={"metavar": "FILE"})
    """File to make."""
    format: Literal["stablehlo", "onnx"] | None = dataclasses.field(
        default=None, metadata={"metavar": "stablehlo|onnx"}
    )
    """StableHLO, which jaxslim.load reads and JAX runs, or ONNX; by default ONNX for a file that ends in .onnx."""
    uint8: bool = False
    """Put the normalisation inside, so that the file takes uint8 images."""
    argmax: bool = False
    """Give the number of the class in place of the logits."""
    weights: Literal["inside", "beside"] = dataclasses.field(default="inside", metadata={"metavar": "inside|beside"})
    """Whether the parameters are constants of the program, or apart from it: in ONNX in a second file, FILE.data."""
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = dataclasses.field(
        default=("cpu", "cuda", "tpu"), metadata={"metavar": "cpu|cuda|tpu ..."}
    )
    """Platforms that StableHLO is for."""
    derivative: bool = False
    """Keep the derivative in StableHLO, so that the network can be fine-tuned; with --weights beside."""
    opset: int = 18
    """Version of ONNX's operators."""
    batch: int | None = None
    """Make the file for batches of this many images alone, where the network allows no open batch."""
    tolerance: float | None = None
    """Largest difference from the network's outputs, as a share of the largest; by default 1e-4."""
    model: str | None = None
    """Code of the network, my_package.my_module:build, where it is your own; ONNX needs that code."""


def main(argv: list[str]) -> None:
    """The command."""
    options = parse(Options, argv, prog="jaxslim export", examples=EXAMPLES)
    if not options.out:
        raise InputError("--out is empty; give a file to make.")
    if options.batch is not None and options.batch < 1:
        raise InputError(f"batch is {options.batch}; it must be at least 1.")
    import jax
    import jax.numpy as jnp

    from jaxslim.interop.export import export
    from jaxslim.storage import checkpoint
    from jaxslim.storage.programs import Program
    from jaxslim.training.network import in_precision

    start_jax(options)
    module, variables, meta = checkpoint.load(options.checkpoint)
    chosen = {field: getattr(options, field) for field in ("format", "weights", "platforms", "derivative", "opset")}
    is_onnx = options.format == "onnx" or (options.format is None and options.out.endswith(".onnx"))
    if "exported" in meta:
        raise InputError(f"{options.checkpoint} is a file of jaxslim export; give the checkpoint that it was made of.")
    if isinstance(module, Program):
        if is_onnx:
            raise InputError(
                f"{options.checkpoint} holds a network of your own code, which ONNX needs: add --model, call "
                "jaxslim.export(FILE, module, variables, images) where you have the code, or write StableHLO."
            )
        module = module.apply
    elif is_onnx:
        module = in_precision(module, jnp.float32)  # runtimes of ONNX lack bfloat16
    if "image_shape" not in meta:
        raise InputError(
            f"{options.checkpoint} does not name its images' shape; save it with meta={{'image_shape': [32, 32, 3]}}, "
            "or call jaxslim.export(FILE, module, variables, images)."
        )
    images = jax.ShapeDtypeStruct((options.batch or 2, *meta["image_shape"]), jnp.float32)
    about, pixels = _about(meta), _pixels(meta)
    if options.uint8 and pixels is None:
        raise InputError(f"{options.checkpoint} names no normalisation of its images; leave --uint8 out.")
    if pixels is not None and not options.uint8:
        about["pixels"] = {"mean": pixels[0], "std": pixels[1], "inside": False}
    done = export(
        options.out,
        module,
        variables,
        images,
        normalisation=pixels if options.uint8 else None,
        argmax=options.argmax,
        open_batch=options.batch is None,
        tolerance=options.tolerance,
        meta=about,
        **chosen,
    )
    runtime = "onnxruntime" if is_onnx else "the file"
    missing = "onnxruntime is missing; pip install onnxruntime" if is_onnx else "none of its platforms is here"
    agreed = (
        f"not made: {missing}" if done.difference is None else f"{runtime} within {done.difference:.1e} of the network"
    )
    print(f"inputs      {', '.join(done.inputs)}")
    print(f"outputs     {'classes' if options.argmax else 'logits'}")
    print(f"check       {agreed}")
    print(f"size        {done.size:,} bytes")
    print(f"Saved {done.path}.")


def _about(meta: dict[str, Any]) -> dict[str, Any]:
    """What the file keeps of a checkpoint's meta."""
    about = {name: meta[name] for name in ("kind", "class_names", "image_shape", "metrics") if name in meta}
    config = meta.get("config")
    return about | ({"fit": config["fit"]} if isinstance(config, dict) and "fit" in config else {})


def _pixels(meta: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of pixels, by channel."""
    config = meta.get("config")
    if not isinstance(config, dict) or not {"mean", "std"} <= config.keys():
        return None
    return list(config["mean"]), list(config["std"])
