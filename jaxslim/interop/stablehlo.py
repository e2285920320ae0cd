"""Networks as StableHLO, in a file that `jaxslim.load` reads."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxslim.errors import InputError
from jaxslim.interop.evaluation import Evaluation, Exported, check_agreement, closed_batch
from jaxslim.slim import check
from jaxslim.storage.exported import write_exported
from jaxslim.storage.programs import PLATFORMS, Program, export, plainly, platform_here
from jaxslim.storage.trees import layout_of


def write_stablehlo(
    path: Path,
    evaluation: Evaluation,
    platforms: Sequence[str],
    *,
    derivative: bool,
    inside: bool,
    tolerance: float | None,
) -> Exported:
    """Export for some platforms, compare with the model where one of them is here, and write the file.

    `inside` makes the variables constants of the program.
    """
    platforms = [platforms] if isinstance(platforms, str) else list(dict.fromkeys(platforms))
    if not platforms or (unknown := [name for name in platforms if name not in PLATFORMS]):
        wrong = f"There is no platform {unknown[0]!r:.60}" if platforms else "There are no platforms"
        raise InputError(f"{wrong}; use some of {', '.join(PLATFORMS)}.")
    plain, run, _ = plainly(evaluation.run, evaluation.variables)
    if inside:
        plain, run = {}, lambda _, *inputs: evaluation.run(evaluation.variables, *inputs)
    how: dict[str, Any] = {"derivative": derivative, "open_batch": evaluation.open_batch}
    content, described = export(run, plain, evaluation.inputs, platforms, **how)
    if content is None and evaluation.open_batch:
        closed, _ = export(run, plain, evaluation.inputs, platforms, derivative=derivative, open_batch=False)
        if closed is not None:
            raise closed_batch(described["reason"])
    if content is None or "lacks" in described:
        raise InputError(f"The network cannot be exported: {described.get('lacks') or described['reason']}.")
    program, gap = Program(content, described, layout_of(plain), plain), None
    if platform_here() in platforms:
        gap = _gap(evaluation, program, plain)
        check_agreement(gap, evaluation, tolerance, "the exported program")
    write_exported(path, content, described, plain, evaluation.meta)
    return Exported(path, program.inputs, gap, os.path.getsize(path))


def _gap(evaluation: Evaluation, program: Program, plain: Any) -> float:
    examples = check.examples(evaluation.inputs)
    expected = check.outputs(evaluation.run, evaluation.variables, examples)
    return check.difference(expected, jax.device_get(jax.tree.leaves(program.apply(plain, *examples))))
