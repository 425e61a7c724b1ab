"""The commands `report` and `compare`: parse, call, print."""

import math
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nas_attn.cli_storage import StorageUrl

if TYPE_CHECKING:
    from nas_attn.outcome import Snapshot

console = Console(highlight=False)
SECOND = "NAS_ATTN_SECOND_STORAGE"
"""Where the second of two studies lies, if in another storage than the first. No option has it: `ps` would show its password."""
PATIENCE_S = 300.0
"""A watcher waits so long for a study that is not begun yet, or whose storage is away."""


def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder.")],
    figures: Annotated[bool, typer.Option("--figures", help="Also the figures as PNG and SVG, into DIR/figures.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="While a search runs, write the report again as trials end.")] = False,
    every: Annotated[float, typer.Option("--every", min=1.0, help="With --watch: seconds between two looks.")] = 30.0,
    storage: StorageUrl = None,
) -> None:
    """Write report.html, summary.md, front.png and the tables from the study alone, also while it runs."""
    from nas_attn import report as writer
    from nas_attn.record import load_study

    if watch:
        _watch(folder, every, storage)
    snapshot = _patient(folder, storage, every) if watch else load_study(folder, storage)
    paths = [*writer.write(snapshot, folder), *(writer.write_figures(snapshot, folder / "figures") if figures else ())]
    for path in paths:
        console.print(str(path), markup=False, soft_wrap=True)


def _watch(folder: Path, every_s: float, storage: str | None) -> None:
    """Rewrites the page as often as the study changes, until its driver has ended."""
    from nas_attn import report as writer

    seen: tuple[object, ...] | None = None
    while (driven := _driven(folder)) or seen is None:
        snapshot = _patient(folder, storage, every_s)
        if not driven and not _driven(folder):  # the driver may have come while the study was waited for
            console.print(f"No search drives {folder} now, so the report is written once.", markup=False, soft_wrap=True)
            return
        state = tuple((t.number, t.state, len(t.results)) for t in snapshot.trials)
        if state == seen:
            writer.renew(folder)
        else:
            seen = state
            writer.write(snapshot, folder, refresh_s=every_s)
            measured = sum(trial.kind == "measured" for trial in snapshot.trials)
            line = f"{time.strftime('%H:%M:%S')} {measured} measured of {len(snapshot.trials)} trials: {folder / 'report.html'}"
            console.print(line, markup=False, soft_wrap=True)
        time.sleep(every_s)


def _driven(folder: Path) -> bool:
    from nas_attn.lock import driven

    try:
        return driven(folder)
    except OSError:
        return True  # a folder that is away for a moment says nothing of its driver


def _patient(folder: Path, storage: str | None, every_s: float) -> "Snapshot":
    """The study, waited for where it is not begun yet or its storage is away, with one line that says so.

    Raises:
        StudyError: there is none after `PATIENCE_S`.
    """
    from nas_attn.errors import StudyError
    from nas_attn.record import load_study

    end = math.inf
    while True:
        try:
            return load_study(folder, storage)
        except StudyError as error:
            if time.monotonic() > end:
                raise
            if end == math.inf:
                end = time.monotonic() + PATIENCE_S
                line = f"{time.strftime('%H:%M:%S')} no study that can be read; trying again for {PATIENCE_S:g} s: {error}"
                console.print(line, markup=False, soft_wrap=True)
        time.sleep(every_s)


def compare(
    first: Annotated[Path, typer.Argument(help="A study's folder.")],
    second: Annotated[Path, typer.Argument(help="Another study's folder: other data, another scale, other modules.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("compare.html"),
    storage: StorageUrl = None,
) -> None:
    """Two studies side by side: what each recommends, their fronts, and where their placements' effects agree.

    --storage is that of every study that has no study.db in its folder. Where the second lies in another one, set NAS_ATTN_SECOND_STORAGE.
    """
    from nas_attn import comparison
    from nas_attn.files import write_atomic
    from nas_attn.record import load_study

    urls = (storage, os.environ.get(SECOND) or storage)
    compared = comparison.compare(*(load_study(folder, _of(folder, url)) for folder, url in zip((first, second), urls, strict=True)))
    text = comparison.page(compared)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, lambda file: file.write_text(text, encoding="utf-8"))
    width = max(100, shutil.get_terminal_size().columns)
    for line in comparison.words(compared):
        console.print(line, markup=False, soft_wrap=True, width=width)
    console.print(str(out), markup=False, soft_wrap=True)


def _of(folder: Path, url: str | None) -> str | None:
    """The storage of a study: its folder's own file where it lives there, else the one that was given."""
    from nas_attn.home import DEFAULT, home_of

    return None if (folder / DEFAULT).is_file() and home_of(folder) in (None, DEFAULT) else url
