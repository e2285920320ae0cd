"""Classifiers of other people's code, used as jaxslim's own networks are: images and `train` in, logits out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxslim.errors import InputError, quoted
from jaxslim.slim.kinds.network import EVALUATION, opposite, switches

Make = Callable[[Any], Any]
"""`make(rngs)` -> the module. NNX modules draw their values from `rngs`, of `nnx.Rngs`."""


class Adapted:
    """A Linen or NNX classifier behind the interface of jaxslim's own: `init`, and `apply` with `train`.

    The variables are nested dicts, one for each collection: `params`, `batch_stats` and others. Logits come in float32
    or in a more precise dtype.
    """

    def __init__(self, make: Callable[..., Any], described: Mapping[str, Any], dtype: Any = None) -> None:
        """Wrap what `make(rngs, dtype)` builds.

        Args:
          make: builds the module; `dtype` is None unless one is given here.
          described: JSON values by which a checkpoint names the network.
          dtype: precision of the computation; None for a network that does not let it be chosen.

        Raises:
          InputError: `make` gives no module, or one that cannot be put into evaluation.
        """
        self._make, self.described = make, dict(described)
        if dtype is not None:
            self.dtype = dtype
        self.form = _form(lambda rngs: make(rngs, dtype))
        """How the module starts and runs."""

    def init(self, key: jax.Array, images: Any) -> Any:
        """The variables of a new network for images (n, height, width, channels)."""
        return self.form.init(key, images)

    def apply(
        self,
        variables: Any,
        images: Any,
        train: bool = False,
        mutable: bool | Sequence[str] = False,
        rngs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Logits (n, classes); with `mutable`, also these collections after the call."""
        out, after = self.form.apply(variables, images, train, [] if mutable is False else mutable, dict(rngs or {}))
        logits = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), out)
        return logits if mutable is False else (logits, after)

    def clone(self, dtype: Any) -> "Adapted":
        """The same network in another precision."""
        return Adapted(self._make, self.described, dtype)

    def __repr__(self) -> str:
        return type(self.form.module).__name__


class InLinen:
    """How a Linen module starts and runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        found = switches(type(module).__call__, [module, None], {})
        self._evaluation = {name: value for name, value in found.items() if getattr(module, name, None) is None}
        if not found:
            names = ", ".join(EVALUATION)
            raise InputError(
                f"{type(module).__name__} takes no train, so training and evaluation would be one; give its __call__ "
                f"the parameter `train` (or one of {names}); a field of the module does not switch."
            )

    def init(self, key: jax.Array, images: Any) -> Any:
        """See `Adapted.init`."""
        return self.module.init(key, images, **self._evaluation)

    def apply(self, variables: Any, images: Any, train: bool, mutable: Any, rngs: dict[str, Any]) -> Any:
        """Outputs, and the collections `mutable` after the call."""
        how = opposite(self._evaluation) if train else self._evaluation
        streams = {"params": next(iter(rngs.values()))} | rngs if rngs else {}  # Flax draws other streams from params
        return self.module.apply(variables, images, **how, mutable=mutable, rngs=streams)


def _form(make: Make) -> Any:
    """Build the module, of NNX without values."""
    from flax import nnx

    built: list[Any] = []

    def build() -> Any:
        built.append(make(nnx.Rngs(0)))
        return built[0] if isinstance(built[0], nnx.Module) else None

    shapes = nnx.eval_shape(build)
    if isinstance(built[0], nn.Module):
        return InLinen(built[0])
    if isinstance(built[0], nnx.Module):
        from jaxslim.slim.kinds.adapted_nnx import InNNX

        return InNNX(make, shapes)
    raise InputError(f"It makes {quoted(built[0])}; a network is a Flax Linen or NNX module.")
