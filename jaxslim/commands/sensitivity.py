"""What each layer can lose alone: `jaxslim sensitivity CHECKPOINT`."""

import dataclasses

from jaxslim.commands.arguments import OfCut, absolute, code_of, data_of, parse
from jaxslim.commands.cli import command_line, folder_beside, start_jax
from jaxslim.errors import InputError
from jaxslim.files import locked
from jaxslim.training.config import LAYER_RATIOS

EXAMPLES = (
    "jaxslim sensitivity runs/digits-sparse",
    "jaxslim sensitivity runs/digits-sparse --ratios 0.25 0.5 0.75 --tolerance 0.005",
    "jaxslim prune runs/digits-sparse --ratios runs/digits-sparse-sensitivity/sensitivity.json --out runs/cut",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OfCut):
    """Cut each layer of a checkpoint's network alone, at several ratios, and report the accuracy that each leaves."""

    ratios: tuple[float, ...] = LAYER_RATIOS
    """Shares of a layer's channels to cut."""
    tolerance: float = 0.01
    """How much accuracy the cut of a layer may cost, as a share."""
    out: str | None = None
    """Folder of the table, the plot and the ratios; by default RUN-sensitivity beside the run."""


def main(argv: list[str]) -> None:
    """The command: measure, report, and name the next command."""
    options = parse(Options, argv, prog="jaxslim sensitivity", examples=EXAMPLES)
    if options.out == "":
        raise InputError("--out is empty; give a folder for the report.")
    from jaxslim.experiments.finetuning import home
    from jaxslim.experiments.sensitivity import study
    from jaxslim.reporting.sensitivity import show, write

    start_jax(options)
    chosen = dataclasses.asdict(options)
    code = code_of(chosen)
    data, path, out = data_of(chosen), absolute(chosen.pop("checkpoint")), chosen.pop("out")
    run = home(path)
    out = folder_beside(run, out, "sensitivity")
    with locked(out, "--out"):
        result = study(path, data=data, **chosen)
        show(result)
        file = write(result, out)
    print(f"Plot: {out}/sensitivity.png")
    if any(result.ratios.values()):
        print("Together, the harmless ratios cost more than each alone; fine-tune after the cut.")
        cut = {"ratios": file, "out": run.with_name(f"{run.name}-pruned")}
        print(f"Next: {command_line('prune', path, **cut, **data, **code)}")
    else:
        print(f"Each cut costs more than {100 * options.tolerance:g} points of accuracy.")
        print(f"Next: {command_line('sweep', path, finetune_epochs=10, **data, **code)}")
