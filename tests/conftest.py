"""Strict settings for every test: the CPU, 32 bits, no rank promotion, no files in the user's home."""

import atexit
import gc
import importlib.metadata
import logging
import os
import pkgutil
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

import jaxslim  # which leaves JAX, that reads these variables, for later

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_X64"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of the time goes into compiling small programs: compile them cheaply, and share them among workers.
_cheaply = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):  # later versions have no such option
    _cheaply.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_cheaply))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # in the many processes that tests start
gc.set_threshold(50_000)  # tracing makes many objects and few cycles
os.environ.pop("COLUMNS", None)
for _folder in ("JAX_COMPILATION_CACHE_DIR", "MPLCONFIGDIR"):
    if _folder not in os.environ:
        os.environ[_folder] = tempfile.mkdtemp(prefix="jaxslim-tests-")
        atexit.register(shutil.rmtree, os.environ[_folder], ignore_errors=True)

# `HYPOTHESIS_PROFILE=thorough` draws new and many more examples than the few fixed ones of an ordinary run, or as many
# as `HYPOTHESIS_EXAMPLES` says.
_slow = (HealthCheck.too_slow, HealthCheck.data_too_large)
_default = settings.get_profile("default")  # said outright: where the variable `CI` is set, another one is in force
_common = settings(_default, deadline=None, suppress_health_check=_slow)
settings.register_profile("quick", _common, max_examples=40, derandomize=True)
settings.register_profile("thorough", _common, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "1000")))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session", autouse=True)
def _modules():
    """Import all that some test imports: Hypothesis draws constants from the source of what is there, fixed or not."""
    if not settings().derandomize:
        return
    names = [module.name for module in pkgutil.walk_packages(jaxslim.__path__, "jaxslim.")]
    for name in (*names, "ratio_sweep", "reproduce", "torture"):
        importlib.import_module(name)


@pytest.fixture(autouse=True)
def _settings():
    """Undo what commands set in this process: the compilation cache, and the level of the log."""
    import jax

    log, cache = logging.getLogger("jaxslim"), jax.config.jax_enable_compilation_cache
    level = log.level
    yield
    log.setLevel(level)
    jax.config.update("jax_enable_compilation_cache", cache)
