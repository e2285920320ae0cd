"""The progress of a run: a bar on a terminal, and a line for each epoch."""

import sys
from collections.abc import Mapping
from typing import Any


class Progress:
    """A bar over all steps, of which `done` were taken before, on a terminal; and a line for each epoch of `steps`.

    A step takes `images` images.
    """

    def __init__(self, name: str, epochs: int, done: int, steps: int, images: int) -> None:
        self._epochs, self._bars = epochs, None
        if sys.stderr.isatty():
            from rich import console, progress, text

            class Rate(progress.ProgressColumn):
                def render(self, task: progress.Task) -> text.Text:
                    return text.Text(f"{task.speed * images:,.0f} images/s" if task.speed else "")

            self._bars = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(elapsed_when_finished=False),
                Rate(),
                console=console.Console(stderr=True),
                transient=True,
            )
            self._task = self._bars.add_task(name, total=epochs * steps, completed=done)

    def __enter__(self) -> "Progress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def advance(self, steps: int) -> None:
        """Show that `steps` more are done."""
        if self._bars:
            self._bars.advance(self._task, steps)

    def finish_epoch(self, row: Mapping[str, Any], images_per_second: float) -> None:
        """Print the line of an epoch; `row` is its row of metrics.jsonl."""
        parts = (
            f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}",
            f"loss {row['loss']:.4f}",
            f"accuracy {row['accuracy']:7.2%}",
            f"rate {row['learning_rate']:.3g}",
            *([f"scales under 0.01 {row['small_scales']:6.1%}"] if "small_scales" in row else []),
            f"{images_per_second:.0f} images/s",
        )
        line = "  ".join(parts)
        if self._bars:
            self._bars.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
