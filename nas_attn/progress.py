"""A running search on the terminal: a live view below the log, or one plain line an event where there is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape

from nas_attn import live
from nas_attn.errors import printable
from nas_attn.event import Event

QUIET = frozenset({"asked", "train", "late"})
"""Events that a log leaves out: each is followed by one that tells more."""
FRAMES_PER_SECOND = 2


class Watch:
    """Takes a study's events, as `run(on_event=watch)`; a context manager. What it has drawn is gone at the end, and the log stays."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = time.monotonic()
        self.state = live.State(begun=self.start)
        self.view = Live(self, console=console, refresh_per_second=FRAMES_PER_SECOND, transient=True) if console.is_interactive else None

    def __enter__(self) -> Self:
        if self.view is not None:
            self.view.start(refresh=True)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.view is not None:
            self.view.stop()

    def note(self, text: str) -> None:
        """Show what became of a node."""
        clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.start))
        self.console.print(f"[dim]{clock}[/dim] {escape(text)}", highlight=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self.view is not None:
            self.state = live.after(self.state, event, time.monotonic())
        if event.kind in QUIET:
            return
        clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.start))
        self.console.print(
            f"[dim]{clock} {event.done:>3}/{event.total}[/dim] {escape(printable(event.message))}", highlight=False, soft_wrap=True
        )

    def __rich__(self) -> RenderableType:
        """The view at this moment, for Rich, which draws it from a thread of its own."""
        return live.frame(self.state, time.monotonic(), self.console.size.height)
