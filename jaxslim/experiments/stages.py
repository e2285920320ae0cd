"""The steps of a long experiment. Each keeps its result in a file, so a command goes on where it was stopped."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxslim.errors import DivergedError, InputError, first_line
from jaxslim.files import write_whole


class Stage(NamedTuple):
    """One step of an experiment."""

    name: str
    spec: Mapping[str, Any]  # JSON values that decide the result; a result of another spec is refused
    work: Callable[[], Mapping[str, Any]]  # does the work, or what is left of it, and returns JSON values
    needs: tuple[str, ...] = ()  # names of the stages that must be done first
    check: Callable[[], None] | None = None  # refuses half-done work of another spec


class Outcome(NamedTuple):
    """What became of a stage."""

    result: Mapping[str, Any]  # empty if the stage failed
    failure: str = ""
    seconds: float = 0.0  # spent by the process which finished the stage
    blocked: bool = False  # whether the stage was not run because one that it needs failed


def check(folder: Path, stages: Sequence[Stage]) -> None:
    """Refuse a folder with a result of another stage under the same name, or with one that cannot be read."""
    for stage in stages:
        if _kept(folder, stage) is None and stage.check:
            stage.check()


def run(folder: Path, stages: Sequence[Stage], announce: Callable[[str], None]) -> dict[str, Outcome]:
    """Do the stages that have no result in `folder` yet. If one fails, those that need it are not run; the others are.

    Each stage comes after those it needs, and keeps its result as NAME.json. `announce` is called with its name before
    its work. Returns the outcome of each stage by its name; raises InputError as `check` does.
    """
    check(folder, stages)
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        if kept := _kept(folder, stage):
            outcomes[stage.name] = kept
            continue
        if missing := [name for name in stage.needs if outcomes[name].failure]:
            outcomes[stage.name] = Outcome({}, f"not run, since {missing[0]} failed", blocked=True)
            continue
        announce(stage.name)
        started = time.perf_counter()
        try:
            result = dict(stage.work())
        except (InputError, DivergedError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
            outcomes[stage.name] = Outcome({}, first_line(error))
            again = ", ".join(f"{folder / name}.json" for name in stage.needs)
            advice = f" (To repeat what it needs, delete {again} and the folder beside it.)" if again else ""
            print(f"{stage.name} failed: {error}{advice}", file=sys.stderr, flush=True)
            continue
        seconds = time.perf_counter() - started
        record = {"spec": stage.spec, "result": result, "seconds": seconds}
        write_whole(folder / f"{stage.name}.json", json.dumps(record, indent=1) + "\n")
        outcomes[stage.name] = Outcome(result, seconds=seconds)
    return outcomes


def _kept(folder: Path, stage: Stage) -> Outcome | None:
    file = folder / f"{stage.name}.json"
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_bytes())
        spec, result, seconds = dict(record["spec"]), dict(record["result"]), float(record["seconds"])
        if not result:
            raise ValueError("no result")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{file} cannot be read; delete it and those of later stages to repeat them.") from None
    asked = json.loads(json.dumps(stage.spec))
    if spec != asked:
        differ = [name for name in {**spec, **asked} if spec.get(name) != asked.get(name)]
        what = ", ".join(f"{name} {spec.get(name)} there, {asked.get(name)} here" for name in differ)
        raise InputError(f"{file} is of another configuration ({what}); choose another --out.")
    return Outcome(result, seconds=seconds)
