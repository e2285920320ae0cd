"""What the commands compile is kept for the next process."""

import os
import subprocess
import sys

import jax
import pytest

from jaxslim.commands import train
from jaxslim.training.run import Trained

COMMAND = """
{first}
from jaxslim.commands.cli import run


def main(argv):
    import jax

    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.extend([name] * name.endswith("/cache_hits")))
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    print(len(hits))


run(main, [])
"""


def kept(tmp_path, *, hits=0, first="", **variables):
    environment = {name: value for name, value in os.environ.items() if "_CACHE" not in name}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(first=first)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{hits}\n", "")
    return list(tmp_path.rglob("*-cache"))


@pytest.mark.parametrize("first", ["", "import jax"])
def test_compiled_programs_are_kept_in_the_cache_folder(tmp_path, first):
    """When JAX is imported already, too, as by jaxslim.prune."""
    files = kept(tmp_path, first=first)
    assert files
    assert {file.parent for file in files} == {tmp_path / "jaxslim" / "compiled"}
    assert sorted(kept(tmp_path, hits=len(files), first=first)) == sorted(files)  # the second process compiles nothing


@pytest.mark.parametrize("first", ["", "import jax"])
def test_a_place_that_the_user_has_set_wins(tmp_path, first):
    elsewhere = tmp_path / "elsewhere"
    assert {file.parent for file in kept(tmp_path, first=first, JAX_COMPILATION_CACHE_DIR=str(elsewhere))} == {
        elsewhere
    }


@pytest.mark.parametrize(("options", "expected"), [([], True), (["--no-compilation-cache"], False)])
def test_the_flag_turns_it_off(monkeypatch, tmp_path, options, expected):
    """When JAX is imported already, too, as by a config file."""
    found = []

    def training(_):
        found.append(jax.config.jax_enable_compilation_cache)
        return Trained(tmp_path, {}, {})

    monkeypatch.setattr("jaxslim.training.loop.train", training)
    train.main(options)
    assert found == [expected]
