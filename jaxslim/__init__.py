"""jaxslim makes trained JAX networks smaller: it cuts channels out for real. Start at `README.md`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxslim import lowering as lowering
    from jaxslim.absorption import absorb as absorb
    from jaxslim.channels import ChannelGraph as ChannelGraph
    from jaxslim.channels import trace as trace
    from jaxslim.checkpoint import Loaded as Loaded
    from jaxslim.checkpoint import load as load
    from jaxslim.checkpoint import save as save
    from jaxslim.config import TrainConfig as TrainConfig
    from jaxslim.cost import Cost as Cost
    from jaxslim.cost import count as count
    from jaxslim.errors import InputError as InputError
    from jaxslim.models import VGG as VGG
    from jaxslim.models import vgg11 as vgg11
    from jaxslim.models import vgg13 as vgg13
    from jaxslim.models import vgg16 as vgg16
    from jaxslim.models import vgg19 as vgg19
    from jaxslim.prune import Pruned as Pruned
    from jaxslim.prune import prune as prune
    from jaxslim.recalibration import recalibrate as recalibrate
    from jaxslim.selection import Plan as Plan
    from jaxslim.selection import plan as plan
    from jaxslim.sparsity import bn_scale_mask as bn_scale_mask
    from jaxslim.sparsity import bn_scales as bn_scales
    from jaxslim.sparsity import l1_proximal as l1_proximal
    from jaxslim.sparsity import l1_subgradient as l1_subgradient
    from jaxslim.surgery import cut as cut
    from jaxslim.surgery import zero as zero

# Imported when first used, so that `python -m jaxslim.train --help` does not wait for JAX.
_HOMES = {
    "absorption": ("absorb",),
    "channels": ("ChannelGraph", "trace"),
    "checkpoint": ("Loaded", "load", "save"),
    "config": ("TrainConfig",),
    "cost": ("Cost", "count"),
    "errors": ("InputError",),
    "models": ("VGG", "vgg11", "vgg13", "vgg16", "vgg19"),
    "prune": ("Pruned", "prune"),
    "recalibration": ("recalibrate",),
    "selection": ("Plan", "plan"),
    "sparsity": ("bn_scale_mask", "bn_scales", "l1_proximal", "l1_subgradient"),
    "surgery": ("cut", "zero"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted([*_HOME_OF, "lowering"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jaxslim")
    if name == "lowering":
        return importlib.import_module("jaxslim.lowering")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jaxslim' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxslim.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
