"""Strict settings for every test: the CPU, 32 bits, no rank promotion, no files in the user's home."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_X64"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxslim-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from hypothesis import HealthCheck, settings

# `HYPOTHESIS_PROFILE=thorough` draws new and many more examples than the few fixed ones of an ordinary run, or as many
# as `HYPOTHESIS_EXAMPLES` says.
_slow = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_slow)
_many = int(os.environ.get("HYPOTHESIS_EXAMPLES", "1000"))
# Said outright: where the variable `CI` is set, Hypothesis would draw the same examples each time.
settings.register_profile("thorough", max_examples=_many, deadline=None, derandomize=False, suppress_health_check=_slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
