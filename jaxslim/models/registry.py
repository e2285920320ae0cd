"""Networks by name, for configurations and checkpoints."""

from collections.abc import Callable
from typing import Any

from jaxslim.errors import InputError, first_line
from jaxslim.models.vgg import VGG, WIDTHS

MODELS: dict[str, Callable[..., Any]] = {"vgg": VGG}
"""What builds a Linen module from `num_classes`, `dtype` and arguments of its own. `apply` of the module takes images
(n, height, width, channels) and `train`, and returns logits (n, num_classes). Add your own under a name of your own."""
for _name, _widths in WIDTHS.items():
    MODELS[_name] = lambda widths=_widths, **arguments: VGG(widths, **arguments)

MODULES: dict[str, type] = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (VGG,)}
"""Classes of modules, by the names that checkpoints keep of them."""


def build(model: str, arguments: dict[str, Any], *, num_classes: int, dtype: Any) -> Any:
    """The module called `model`.

    Raises:
      InputError: there is none, or it does not take the arguments.
    """
    if model not in MODELS:
        raise InputError(f"There is no model {model!r}; the models are {', '.join(sorted(MODELS))}.")
    try:
        return MODELS[model](num_classes=num_classes, dtype=dtype, **arguments)
    except TypeError as error:
        raise InputError(f"model {model} does not take the model_args {arguments}: {first_line(error)}.") from error


def architecture(module: Any) -> str | None:
    """How a module writes its own architecture in a table; None if it offers no `architecture()`."""
    describe = getattr(module, "architecture", None)
    return describe() if callable(describe) else None
