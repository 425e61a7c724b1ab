"""The command line's word for a study's storage, and what keeps its password out of sight."""

import os
import sys
from typing import Annotated

import typer

VARIABLE = "NAS_ATTN_STORAGE"
OPTION = "--storage"

StorageUrl = Annotated[
    str | None,
    typer.Option(
        OPTION,
        envvar=VARIABLE,
        help="URL of the study's storage: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; default: SQLite in its folder. "
        f"Where it holds a password set {VARIABLE} instead: others see a command line in `ps`, and a shell keeps it.",
    ),
]


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
