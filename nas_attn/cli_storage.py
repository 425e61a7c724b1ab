"""The command line's word for a study's storage, what keeps its password out of sight, and the command `rebuild`."""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

VARIABLE = "NAS_ATTN_STORAGE"
OPTION = "--storage"

StorageUrl = Annotated[
    str | None,
    typer.Option(
        OPTION,
        envvar=VARIABLE,
        help="URL of the study's storage: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE or journal:///FILE; default: SQLite "
        "in its folder. "
        f"Where it holds a password set {VARIABLE} instead: others see a command line in `ps`, and a shell keeps it.",
    ),
]


def rebuild(
    folder: Annotated[Path, typer.Argument(help="A study's folder.")],
    storage: StorageUrl = None,
    force: Annotated[bool, typer.Option("--force", help="Also where study.db can be read, say an older copy; it is put aside.")] = False,
) -> None:
    """Make a lost or broken study.db anew from the files in the study's folder; or the study in a storage that has lost it."""
    from nas_attn.rebuild import rebuild as make_anew

    made = make_anew(folder, storage, force)
    console = Console(highlight=False)
    for file in made.aside:
        console.print(f"put aside: {file}", markup=False, soft_wrap=True)
    for words in made.lost:
        console.print(f"not made anew: {words}", markup=False, soft_wrap=True)
    kinds = Counter(trial.kind or "under way" for trial in made.snapshot.trials)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    console.print(f"{folder} holds {len(made.snapshot.trials)} trials again ({told}).", markup=False, soft_wrap=True)
    console.print("Next: nas-attn report, or the same nas-attn search, which goes on from there.", markup=False)


def hide_url() -> None:
    """Begins this process anew without the URL of a server on its command line: `ps` shows that, and Ray tells it to a whole cluster."""
    given = _given(sys.argv)
    if given is None or "@" not in given[1]:
        return
    where, url, words = given
    before = len(sys.orig_argv) - len(sys.argv)  # the interpreter and its options
    environment = {**os.environ, VARIABLE: url}
    sys.stdout.flush()
    os.execve(sys.executable, [*sys.orig_argv[: before + where], *sys.argv[where + words :]], environment)


def forget_url() -> None:
    """Takes the URL out of the environment that workers would inherit: they never speak to a storage."""
    os.environ.pop(VARIABLE, None)


def _given(arguments: list[str]) -> tuple[int, str, int] | None:
    """Where the option stands, its value, and how many words it takes."""
    for at, word in enumerate(arguments):
        if word == OPTION and at + 1 < len(arguments):
            return at, arguments[at + 1], 2
        if word.startswith(f"{OPTION}="):
            return at, word.partition("=")[2], 1
    return None
