"""A network as one file that runs without its code: StableHLO for JAX and XLA, ONNX for everything else."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxslim.data.augmentation import normalise
from jaxslim.errors import InputError, first_line, quoted
from jaxslim.files import check_out, check_path
from jaxslim.interop.evaluation import Evaluation, Exported
from jaxslim.interop.stablehlo import write_stablehlo
from jaxslim.slim.kinds import Network, beside, network
from jaxslim.slim.prune import Pruned
from jaxslim.storage.programs import PLATFORMS

OPSET = 18
"""The opset of ONNX that is written unless another is asked for: that of 2022, which today's runtimes read."""


def export(
    path: str | Path,
    model: Any,
    variables: Any = None,
    *inputs: Any,
    format: Literal["stablehlo", "onnx"] | None = None,
    weights: Literal["inside", "beside"] = "inside",
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    argmax: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    derivative: bool = False,
    opset: int = OPSET,
    open_batch: bool = True,
    tolerance: float | None = None,
    meta: Mapping[str, Any] | None = None,
    **call: Any,
) -> Exported:
    """Write the evaluation of a network to a new file that needs no code of it, whole or not at all.

    What was written is run on the inputs, and compared with the model.

    Args:
      path: of the file.
      model: what `prune` takes or returned, cut or not.
      variables: as `prune` takes them; left out, those of the `Pruned`, and where its module holds variables, these.
      *inputs: what the model is called with: pytrees of arrays or `ShapeDtypeStruct`s; of a `Pruned`, they may be left
        out.
      format: "stablehlo", which `jaxslim.load` reads (without the network's code) and JAX runs, or "onnx". By default
        the suffix of `path` decides: ONNX for `.onnx`. An ONNX file computes in float32 what the network computes in
        bfloat16, since runtimes on a CPU lack it.
      weights: "inside" makes the parameters constants of the program. "beside" keeps them apart: in StableHLO `apply`
        takes them, in ONNX they lie in a second file, PATH.data.
      normalisation: mean and deviation by channel of pixels in [0, 1]. The file then takes uint8 images.
      argmax: whether the file gives the class (int32) in place of the logits.
      platforms: of StableHLO: "cpu", "cuda", "tpu".
      derivative: of StableHLO: whether the program can be differentiated, so that what was shipped can be fine-tuned;
        this needs `weights="beside"`.
      opset: of ONNX, 13 or newer.
      open_batch: whether the batch, the first axis that the inputs share, may have any size in the file. Models that
        take one example, such as Equinox modules, have no batch.
      tolerance: largest difference from the model's outputs, as a share of the largest; by default 1e-4, and 0.02 for
        networks in half precision.
      meta: JSON values to keep in the file, for example `{"class_names": [...]}`.
      **call: keyword arguments of the model's call.

    Raises:
      InputError: the file exists; the model does not run with the inputs; ONNX has no form for a primitive, or the
        opset lacks an operator; the network's code needs a batch of one size; the outputs differ by more than the
        tolerance.
      OSError: the file cannot be written.
    """
    target, kind = _checked(path, format, derivative, weights, tolerance)
    if isinstance(model, Pruned):
        variables = beside(model.variables) if variables is None else variables
        inputs, call = inputs or model.inputs or (), {**model.call, **call}
        model = model.module
    if not inputs:
        raise InputError("There are no inputs to trace the model with; pass what it is called with, such as images.")
    found = network(model, variables, inputs, call)
    run, given = _wrapped(found, inputs, normalisation, argmax)
    known = {**(meta or {}), "argmax": argmax}
    if normalisation is not None:
        mean, std = ([float(n) for n in part] for part in normalisation)
        known["pixels"] = {"mean": mean, "std": std, "inside": True}
    _check_json(known)
    evaluation = Evaluation(run, found.variables, given, known, open_batch and found.batched)
    if kind == "onnx":
        return _onnx(target, evaluation, opset, inside=weights == "inside", tolerance=tolerance)
    how: dict[str, Any] = {"derivative": derivative, "inside": weights == "inside", "tolerance": tolerance}
    return write_stablehlo(target, evaluation, platforms, **how)


def _onnx(path: Path, evaluation: Evaluation, opset: int, **how: Any) -> Exported:
    try:
        from jaxslim.interop.onnx.file import write_onnx
    except ImportError as error:
        raise InputError(f"ONNX files need the package {error.name}; pip install 'jaxslim[onnx]'.") from error
    return write_onnx(path, evaluation, opset, **how)


def _checked(
    path: str | Path, format: str | None, derivative: bool, weights: str, tolerance: float | None
) -> tuple[Path, str]:
    check_path(path)
    target = Path(path).absolute()
    kind = format or ("onnx" if target.suffix == ".onnx" else "stablehlo")
    if kind not in ("stablehlo", "onnx"):
        raise InputError(f'format is {format!r:.60}; it must be "stablehlo" or "onnx".')
    if weights not in ("inside", "beside"):
        raise InputError(f'weights is {weights!r:.60}; it must be "inside" or "beside".')
    if derivative and (kind == "onnx" or weights == "inside"):
        raise InputError(
            'derivative is for StableHLO, and the weights that it trains lie beside the program; add weights="beside" '
            "(--weights beside), or leave derivative out."
        )
    if tolerance is not None and not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance}; it must be at least 0.")
    if os.path.lexists(target):
        raise InputError(f"{target} exists already and is not overwritten; choose another name.")
    check_out(target.parent)
    return target, kind


def _check_json(meta: Mapping[str, Any]) -> None:
    for name, value in meta.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"meta holds no JSON at {quoted(name)} ({first_line(error)}); use lists and dicts."
            ) from None


def _wrapped(
    found: Network, inputs: Sequence[Any], normalisation: Any, argmax: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function to export, and its inputs: with normalisation before it and argmax behind it, if asked."""
    images: Any = next(iter(inputs))
    if normalisation is not None:
        shape: tuple[int, ...] = getattr(images, "shape", ())
        pair = normalisation if isinstance(normalisation, tuple | list) and len(normalisation) == 2 else ((), ())
        if len(shape) != 4 or any(np.shape(part) not in ((1,), shape[-1:]) for part in pair):
            raise InputError(
                f"normalisation has a mean and a deviation for each channel, and the first input has shape {shape}; "
                "pass images (n, height, width, channels), and as many numbers as channels."
            )
        images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)

    def run(variables: Any, *inputs: Any) -> Any:
        first, *rest = inputs
        if normalisation is not None:
            first = normalise(first, *normalisation)
        out = found.modes[0](variables, first, *rest)
        if not argmax:
            return out
        if not hasattr(out, "shape") or not out.shape:
            raise InputError("argmax is for a network that returns one array of logits; leave it out.")
        return jnp.argmax(out, -1).astype(jnp.int32)

    return run, (images, *inputs[1:])
