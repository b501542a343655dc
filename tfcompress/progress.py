"""Progress on the terminal for work that takes longer than a few seconds.

Nothing is shown where the error stream is not a terminal.

Example:
    ```python
    for batch in tracked(batches, "Calibrating", total=10):
        ...
    ```
"""

import contextlib
import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)


@contextlib.contextmanager
def bar(description, total):
    """Shows a bar while the body runs.

    Args:
        description: What is being done.
        total: Number of steps; `None` if unknown.

    Yields:
        A function that advances the bar by one step.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(file=sys.stderr)
    shown = console.is_terminal
    with Progress(
        *columns, console=console, transient=True, disable=not shown
    ) as display:
        task = display.add_task(description, total=total)
        yield lambda: display.advance(task)


def tracked(iterable, description, *, total=None):
    """Yields from an iterable while a bar is shown."""
    with bar(description, total) as advance:
        for item in iterable:
            yield item
            advance()
