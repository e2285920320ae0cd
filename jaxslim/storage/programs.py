"""Programs as bytes: the evaluation of a network, run without the code that it came from."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.errors import InputError, first_line
from jaxslim.storage.integrity import DamageError
from jaxslim.storage.trees import build, layout_of

PLATFORMS = ("cpu", "cuda", "tpu")


def platform_here() -> str:
    """The one of `PLATFORMS` that JAX runs on, or another name."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


class Program:
    """The evaluation of a saved network. It needs no code of the network, and has no training mode."""

    def __init__(self, content: bytes, described: Mapping[str, Any], layout: Any, variables: Any) -> None:
        self.variables = variables
        """The saved arrays: dicts, lists and tuples."""
        self.inputs = tuple(_shape_text(shape, dtype) for shape, dtype in described["inputs"])
        """Shape and type of each array that it takes, in the order of the leaves of its inputs."""
        self.platforms = tuple(described["platforms"])
        self._layout, self._outputs, self._specs = layout, described["outputs"], described["inputs"]
        self._keys, self._taken = described["keys"], described["takes"]
        self._call = jax.jit(_deserialized(content).call)

    def __call__(self, *inputs: Any) -> Any:
        """Run it on the saved variables."""
        return self.apply(self.variables, *inputs)

    def example(self) -> tuple[Any, ...] | None:
        """Random inputs, two where the batch is open; None if some are no floats, whose range the program knows."""
        if any(not jnp.issubdtype(jnp.dtype(dtype), jnp.floating) for _, dtype in self._specs):
            return None
        rng = np.random.default_rng(0)
        shapes = [[2 if n is None else n for n in shape] for shape, _ in self._specs]
        leaves = [jnp.asarray(rng.normal(size=n), dtype) for n, (_, dtype) in zip(shapes, self._specs, strict=True)]
        found: tuple[Any, ...] = build(self._taken, leaves)
        return found

    def apply(self, variables: Any, *inputs: Any) -> Any:
        """Run it.

        Args:
          variables: arrays as in `Program.variables`.
          *inputs: pytrees with the leaves that the network was saved with; an open batch may have any size.

        Raises:
          InputError: variables or inputs are not those that the program takes.
        """
        if layout_of(variables) != self._layout:
            raise InputError("The program takes variables of another structure; pass such as its .variables.")
        held = zip(map(raw, jax.tree.leaves(variables)), map(raw, jax.tree.leaves(self.variables)), strict=True)
        arrays = [_fitting("a variable", array, own.shape, own.dtype.name) for array, own in held]
        given = [raw(leaf) for leaf in jax.tree.leaves(inputs)]
        if layout_of(inputs) != self._taken:
            raise InputError(
                f"The program takes inputs of another structure; give {', '.join(self.inputs)} in the containers that "
                "the network was saved with."
            )
        given = [_fitting("an input", array, *spec) for array, spec in zip(given, self._specs, strict=True)]
        sizes = {array.shape[0] for array, (shape, _) in zip(given, self._specs, strict=True) if shape[:1] == [None]}
        if len(sizes) > 1:
            raise InputError(f"The inputs have batches of {sorted(sizes)}; the program takes batches of one size.")
        try:
            found = self._call(arrays, given)
        except ValueError as error:
            raise self._unable(error) from error
        outs = [
            out if impl is None else jax.random.wrap_key_data(out, impl=impl)
            for out, impl in zip(found, self._keys, strict=True)
        ]
        return build(self._outputs, outs)

    def _unable(self, error: ValueError) -> ValueError:
        """JAX's error, in words of this library where the program was exported for something else."""
        if "was exported for platforms" in str(error):
            return InputError(
                f"The program is for {', '.join(self.platforms)}, and JAX runs on {jax.default_backend()} here; export "
                "the network for that platform too."
            )
        return error

    def __repr__(self) -> str:
        return f"Program({', '.join(self.inputs)}; for {', '.join(self.platforms)})"


def export(
    run: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
    platforms: Sequence[str] = PLATFORMS,
    *,
    derivative: bool = False,
    open_batch: bool | None = None,
) -> tuple[bytes | None, dict[str, Any]]:
    """Export `run(variables, *inputs)`, for any batch size and all platforms as far as its code allows.

    Args:
      run: evaluation of a network.
      variables: its arrays or their shapes.
      inputs: arrays or `ShapeDtypeStruct`s. First axes of one length are the batch.
      platforms: of `PLATFORMS`.
      derivative: whether to keep the derivative too, so that the program can be trained.
      open_batch: whether the batch may have any size; by default, if the network's code allows that.

    Returns:
      The bytes, and what `Program` needs beside them. Where it cannot be exported: None, and the reason.

    Raises:
      InputError: the package flatbuffers is missing.
    """
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda tree: tree, variables))
    given, given_structure = jax.tree.flatten(jax.eval_shape(lambda tree: tree, tuple(inputs)))
    impls, given_impls = list(map(key_impl, leaves)), list(map(key_impl, given))
    described: dict[str, Any] = {"takes": layout_of(tuple(inputs))}

    def flat(arrays: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        tree = jax.tree.unflatten(structure, map(wrapped, arrays, impls))
        out = run(tree, *jax.tree.unflatten(given_structure, map(wrapped, given, given_impls)))
        outs = jax.tree.leaves(out)
        described.update(outputs=layout_of(out), keys=list(map(key_impl, outs)))
        return list(map(raw, outs))

    arrays, faults = [_raw_shape(leaf) for leaf in leaves], [""]
    opened = list(_opened(given)) if open_batch is not False else []
    closed = [list(map(_raw_shape, given))] if not (open_batch and opened) else []
    for shapes in (*opened, *closed):
        try:
            jax.eval_shape(flat, arrays, shapes)
        except Exception as error:  # whatever the network and JAX find wrong with an open batch
            faults = [first_line(error)]
            continue
        program, able, faults = _lowered(jax.jit(flat), platforms, arrays, shapes)
        if program is not None:
            specs = [[[n if isinstance(n, int) else None for n in s.shape], s.dtype.name] for s in shapes]
            described |= {"platforms": able, "inputs": specs, "derivative": derivative}
            return _serialized(program, derivative), described | ({"lacks": faults[0]} if faults else {})
    return None, {"reason": faults[0]}


def plainly(run: Callable[..., Any], variables: Any, named: Any = None) -> tuple[Any, Callable[..., Any], list[int]]:
    """`variables` in dicts, lists and tuples, all that files know; `run` on these; and which leaf of the variables each
    leaf of theirs is, since leaves may come in another order. `named` is a tree of the same leaves whose names to use.
    """
    leaves, structure = jax.tree.flatten(variables)
    layout = layout_of(variables if named is None else named)
    order = jax.tree.leaves(build(layout, range(len(leaves))))

    def run_plain(plain: Any, *inputs: Any) -> Any:
        placed = dict(zip(order, jax.tree.leaves(plain), strict=True))
        return run(jax.tree.unflatten(structure, [placed[number] for number in range(len(leaves))]), *inputs)

    return build(layout, leaves), run_plain, order


def _lowered(flat: Any, platforms: Sequence[str], *shapes: Any) -> tuple[Any, list[str], list[str]]:
    """The exported function, its platforms, and why it cannot be exported for each of the others."""
    able, faults = [], []
    with contextlib.suppress(Exception):
        return jax.export.export(flat, platforms=platforms)(*shapes), list(platforms), []
    for platform in platforms:
        try:
            jax.export.export(flat, platforms=[platform])(*shapes)
            able.append(platform)
        except Exception as error:  # whatever cannot be lowered
            faults.append(first_line(error))
    return jax.export.export(flat, platforms=able)(*shapes) if able else None, able, faults


def key_impl(leaf: Any) -> str | None:
    """The generator of an array of typed random keys; None for other arrays."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return None
    found: list[str] = []
    jax.eval_shape(lambda keys: found.append(str(jax.random.key_impl(keys))), leaf)
    return found[0]


def raw(leaf: Any) -> Any:
    """An array of numbers: of random keys their data."""
    is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else jnp.asarray(leaf)


def wrapped(array: Any, impl: str | None) -> Any:
    """What `raw` unpacked."""
    return array if impl is None else jax.random.wrap_key_data(array, impl=impl)


def _raw_shape(leaf: Any) -> jax.ShapeDtypeStruct:
    shape = jax.eval_shape(raw, leaf)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype)


def _opened(leaves: Sequence[Any]) -> Iterator[list[jax.ShapeDtypeStruct]]:
    """The shapes with first axes of one length left open: the first input's, or else another's."""
    (size,) = jax.export.symbolic_shape("batch")
    first = [None if _is_old_key(leaf) or not leaf.shape else leaf.shape[0] for leaf in leaves]
    for batch in dict.fromkeys(n for n in first if n is not None):
        opened = [n == batch for n in first]
        raws = map(_raw_shape, leaves)
        yield [
            jax.ShapeDtypeStruct((size, *raw.shape[1:]), raw.dtype) if is_open else raw
            for raw, is_open in zip(raws, opened, strict=True)
        ]


def _is_old_key(leaf: Any) -> bool:
    """Whether an array may be what `jax.random.PRNGKey` returns."""
    return leaf.dtype == jnp.uint32 and leaf.shape in ((2,), (4,))


def _fitting(what: str, array: Any, shape: Sequence[int | None], dtype: str) -> Any:
    fits = array.ndim == len(shape) and all(n in (None, own) for n, own in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.name != dtype:
        raise InputError(
            f"The program takes {what} of {_shape_text(shape, dtype)} and was given "
            f"{_shape_text(array.shape, array.dtype.name)}; give what the network was saved with."
        )
    return array


def _shape_text(shape: Sequence[int | None], dtype: str) -> str:
    return f"{dtype}[{','.join('batch' if n is None else str(n) for n in shape)}]"


def _serialized(exported: Any, derivative: bool) -> bytes:
    try:
        return bytes(exported.serialize(vjp_order=int(derivative)))
    except ImportError:
        raise _missing() from None


def _deserialized(content: bytes) -> Any:
    try:
        return jax.export.deserialize(bytearray(content))
    except ImportError:
        raise _missing() from None
    except Exception as error:  # of many types, from a newer JAX
        raise DamageError(f"its program cannot be read by jax {jax.__version__} ({first_line(error):.80})") from None


def _missing() -> InputError:
    return InputError("A program is stored with the package flatbuffers, which is missing; pip install flatbuffers.")
