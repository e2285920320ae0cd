"""`conv`, and how JAX comes to compile a convolution for CPUs in its fastest form.

`conv` is the convolution of JAX, told apart by an explicit type of its results. So all that JAX knows of convolutions
holds: derivatives of each order and direction, batches, sharding, programs for other platforms. Only when a program is
compiled for a CPU, its lowering is ours.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import mlir

from jaxslim.ops import forms
from jaxslim.ops.forms import Form
from jaxslim.ops.layer import Layer, Shape
from jaxslim.ops.memory import keep_memory


class _Mode(threading.local):
    written = False
    """Whether convolutions are lowered as they are written."""


_mode = _Mode()
_everywhere = False


def conv(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, which takes the fastest form where JAX compiles for a CPU.

    Args:
      images: (n, height, width, channels), or anything that `lax.conv_general_dilated` takes.
      kernel: (height, width, channels, features).
      window_strides: as `lax.conv_general_dilated` takes it, like all arguments that follow.
      padding: see there.
      lhs_dilation: see there.
      rhs_dilation: see there.
      dimension_numbers: see there.
      feature_group_count: see there.
      batch_group_count: see there.
      precision: `"highest"` also turns off Winograd's algorithm, whose results are 1e-5 of the largest off.
      preferred_element_type: see there.
      **options: see there.

    Returns:
      (n, height, width, features).
    """
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type or jnp.result_type(images, kernel),
        **options,
    )


def accelerate(on: bool = True) -> None:
    """From now on, compile each convolution for CPUs in its fastest form, in any network and framework.

    Call this at the start of a program, before JAX does anything: then the process also keeps the memory that it
    frees, for its next computation (where the C library is glibc). What is compiled already stays as it is.

    Args:
      on: False leaves convolutions to XLA again, but those of `conv`.
    """
    global _everywhere
    _everywhere = on
    if on:
        keep_memory()


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Leave convolutions in programs that are lowered meanwhile as they are written.

    JAX keeps what it lowered before of the same function; wrap it in another one.
    """
    before, _mode.written = _mode.written, True
    try:
        yield
    finally:
        _mode.written = before


def _lower(ctx: Any, images: Any, kernel: Any, **params: Any) -> Any:
    as_it_is = _mode.written or any(_has_axes(array) for array in (*ctx.avals_in, *ctx.avals_out))
    one, other = ctx.avals_in
    form = None if as_it_is else _form(one, other, params, _is_divided(ctx))
    if form is None:
        return _xla(ctx, images, kernel, **params)
    with as_written():  # convolutions that a form itself makes
        return mlir.lower_fun(form, multiple_results=False)(ctx, images, kernel)


def _is_divided(ctx: Any) -> bool:
    """Whether XLA divides the program among several devices, so that portions of a batch would not be at hand."""
    return bool((getattr(ctx.module_context.axis_context, "num_devices", None) or 1) > 1)


def _form(images: Any, kernel: Any, params: Any, divided: bool) -> Form | None:
    """The convolution in another form, as a function of images and kernel; None to leave it to XLA."""
    kind = params["preferred_element_type"]
    if (kind is None and not _everywhere) or kind not in (None, images.dtype) or images.dtype != kernel.dtype:
        return None
    if len(images.shape) != 4 or not jnp.issubdtype(images.dtype, jnp.floating) or 0 in kernel.shape:
        return None
    if not all(isinstance(n, int) for shape in (images.shape[1:], kernel.shape[1:]) for n in shape):
        return None
    exact = any(one not in (None, lax.Precision.DEFAULT) for one in params["precision"] or ())
    given = params["dimension_numbers"].lhs_spec
    groups = params["feature_group_count"], params["batch_group_count"]
    if given[1] == 0:  # images are summed over
        return _gradient(images, kernel, params, exact, divided) if groups[0] == 1 else None
    return _forward(images, kernel, params, exact, divided) if groups[1] == 1 else None


def _forward(images: Any, kernel: Any, params: Any, exact: bool, divided: bool) -> Form | None:
    given, taken, made = params["dimension_numbers"]
    layer = Layer(
        window=tuple(kernel.shape[axis] for axis in taken[2:]),
        strides=params["window_strides"],
        padding=tuple(params["padding"]),
        spread=params["lhs_dilation"],
        dilation=params["rhs_dilation"],
        groups=params["feature_group_count"],
    )
    to_images = (given[0], *given[2:], given[1])
    features_first = taken[0] < taken[1]
    to_kernel = (*taken[2:], *sorted(taken[:2]))
    own, kernel = _turned(images, to_images, divided), _turned(kernel, to_kernel)
    if divided and not forms.is_small(own, layer):
        return None
    chosen = forms.forward(own, kernel, layer, features_first, exact=exact)
    if chosen is None:
        return None
    back = np.argsort((made[0], *made[2:], made[1])).tolist()
    return _between(chosen, to_images, to_kernel, back)


def _gradient(images: Any, gradient: Any, params: Any, exact: bool, divided: bool) -> Form | None:
    """The gradient of a kernel is a convolution of images with the gradient of the outputs, which sums over images."""
    given, taken, made = params["dimension_numbers"]
    kernel_of = Layer(
        window=tuple(gradient.shape[axis] for axis in taken[2:]),
        strides=params["window_strides"],
        padding=tuple(params["padding"]),
        spread=params["lhs_dilation"],
        dilation=params["rhs_dilation"],
    )
    layer = Layer(
        window=kernel_of.size(tuple(images.shape[axis] for axis in given[2:])),
        strides=kernel_of.dilation,
        padding=kernel_of.padding,
        spread=kernel_of.spread,
        dilation=kernel_of.strides,
        groups=params["batch_group_count"],
    )
    to_images, to_gradient = ((spec[1], *spec[2:], spec[0]) for spec in (given, taken))
    own, above = _turned(images, to_images, divided), _turned(gradient, to_gradient, divided)
    if divided and not forms.is_small(own, layer):
        return None
    chosen = forms.kernel_gradient(own, above, layer, exact=exact)
    if chosen is None:
        return None
    back = np.argsort((*made[2:], *made[:2])).tolist()
    return _between(chosen, to_images, to_gradient, back)


def _between(form: Form, first: Sequence[int], second: Sequence[int], back: Sequence[int]) -> Form:
    """`form` on transposed arrays, with the type of the first."""

    def turned(one: jax.Array, other: jax.Array) -> jax.Array:
        return form(one.transpose(first), other.transpose(second)).transpose(back).astype(one.dtype)

    return turned


def _turned(array: Any, axes: Sequence[int], divided: bool = False) -> Shape:
    """The shape with its axes in another order; where devices divide the first axis, its length is not known."""
    first, *rest = (array.shape[axis] for axis in axes)
    return Shape((None if divided else first, *rest), array.dtype)


def _has_axes(array: Any) -> bool:
    """Whether a mesh's axes are a part of the type, as with explicit sharding."""
    return any(axes is not None for axes in array.sharding.spec)


_rules = mlir._platform_specific_lowerings["cpu"]
_xla = _rules[lax.conv_general_dilated_p].rule
mlir.register_lowering(lax.conv_general_dilated_p, _lower, platform="cpu")
