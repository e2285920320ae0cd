"""jaxslim makes trained JAX networks smaller: it cuts channels out for real. Start at `README.md`."""

from typing import Any

import lazy_loader

# The public names stand in `__init__.pyi`. Each loads when first used: `jaxslim train --help` must not wait for JAX.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("jaxslim")
    return _load(name)
