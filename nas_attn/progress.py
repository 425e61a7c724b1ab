"""A running search on the terminal: a bar with the best gain so far, or one plain line an event where there is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nas_attn.errors import printable
from nas_attn.event import Event

QUIET = frozenset({"asked", "train", "late"})
"""Events that a plain log leaves out: each is followed by one that tells more."""


class Watch:
    """Takes a study's events, as `run(on_event=watch)`; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = time.monotonic()
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """Show what became of a node."""
        clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.start))
        self.console.print(f"[dim]{clock}[/dim] {escape(text)}", highlight=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self.bar.update(self.task, completed=event.done, total=event.total, description=escape(printable(event.message)[:72]))
        if event.kind in QUIET:
            return
        clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.start))
        self.console.print(
            f"[dim]{clock} {event.done:>3}/{event.total}[/dim] {escape(printable(event.message))}", highlight=False, soft_wrap=True
        )
