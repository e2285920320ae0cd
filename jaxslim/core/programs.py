"""The program of a network."""

from collections.abc import Callable
from typing import Any

import jax

from jaxslim.errors import InputError, first_line


def program(apply: Callable[..., Any], variables: Any, *inputs: Any) -> tuple[Any, Any]:
    """The jaxpr of `apply(variables, *inputs)` and the shapes of its outputs; an InputError where it does not run."""
    try:
        return jax.make_jaxpr(apply, return_shape=True)(variables, *inputs)
    except InputError:
        raise
    except Exception as error:  # whatever the network, Flax and JAX find wrong
        reason = first_line(error).partition(" (http")[0]  # Flax appends the address of a page
        advice = "pass its apply, all that its init returned, and inputs that it was made for."
        raise InputError(f"The network cannot be applied ({reason}); {advice}") from error
