"""Networks as ONNX files."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper

from jaxslim.errors import InputError, first_line
from jaxslim.files import UNFINISHED, flush, naming, nearest
from jaxslim.interop.evaluation import Evaluation, Exported, check_agreement
from jaxslim.interop.onnx.model import compare, convert
from jaxslim.slim import check
from jaxslim.storage.metadata import origin
from jaxslim.storage.programs import raw


def write_onnx(path: Path, evaluation: Evaluation, opset: int, *, inside: bool, tolerance: float | None) -> Exported:
    """Write a model, compare it with the network where onnxruntime is here, and only then give it its name.

    Without `inside`, the arrays lie in a second file, PATH.data.
    """
    data = path.with_name(f"{path.name}.data")
    if not inside and os.path.lexists(data):
        raise InputError(f"{data} exists already and is not overwritten; choose another name.")
    run, variables, inputs, _, open_batch = evaluation
    model = convert(run, variables, inputs, opset=opset, open_batch=open_batch, metadata=_texts(evaluation))
    place = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=nearest(path.parent)))
    try:
        with naming(path):
            _save(model, place / path.name, None if inside else data.name)
        examples = check.examples(inputs)
        expected = check.outputs(run, variables, examples)
        fed = list(map(raw, jax.tree.leaves(examples)))  # numbers as JAX takes them, of 32 bits
        gap = compare(place / path.name, expected, fed)
        if gap is not None:
            check_agreement(gap, evaluation, tolerance, "onnxruntime")
        files = [file for file in (data, path) if (place / file.name).exists()]
        flush(*(place / file.name for file in files))
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.replace(place / file.name, file)
        flush(path.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Exported(path, tuple(map(_described, model.graph.input)), gap, sum(map(os.path.getsize, files)))


def _texts(evaluation: Evaluation) -> dict[str, str]:
    """What ONNX keeps along: texts by name."""
    arrays = {str(number): raw(leaf) for number, leaf in enumerate(jax.tree.leaves(evaluation.variables))}
    known = {**evaluation.meta, **origin(arrays)}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}


def _save(model: Any, file: Path, data: str | None) -> None:
    try:
        if data is None:
            onnx.save_model(model, file)
        else:
            (file.parent / data).touch()  # onnx would make it readable for its owner alone
            onnx.save_model(model, file, save_as_external_data=True, location=data)
    except (ValueError, MemoryError) as error:  # protobuf holds two gigabytes
        raise InputError(
            f'The model does not fit into one file ({first_line(error)}); use weights="beside".'
        ) from error


def _described(port: Any) -> str:
    kind = port.type.tensor_type
    sizes = ",".join(size.dim_param or str(size.dim_value) for size in kind.shape.dim)
    return f"{np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name}[{sizes}]"
