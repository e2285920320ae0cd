"""How a run shows that it moves: bars on a terminal, a line an epoch elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any


class Progress:
    """Bars over epochs and steps with the time that is left; without a terminal, only the line an epoch."""

    def __init__(self, name: str, epochs: int, done: int, steps: int) -> None:
        self._epochs, self._bars = epochs, None
        if sys.stderr.isatty():
            from rich import console, progress

            self._bars = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(elapsed_when_finished=False),
                console=console.Console(stderr=True),
                transient=True,
            )
            self._task = self._bars.add_task(name, total=epochs * steps, completed=done * steps)

    def __enter__(self) -> "Progress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def advance(self, steps: int) -> None:
        """So many more steps are done."""
        if self._bars:
            self._bars.advance(self._task, steps)

    def finish_epoch(self, row: Mapping[str, Any], images_per_second: float) -> None:
        """Tell what an epoch came to; `row` is its line of metrics.jsonl."""
        line = (
            f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}  loss {row['loss']:.4f}  "
            f"accuracy {row['accuracy']:7.2%}  rate {row['learning_rate']:.3g}  "
            f"scales under 0.01 {row['small_scales']:6.1%}  {images_per_second:.0f} images/s"
        )
        if self._bars:
            self._bars.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
