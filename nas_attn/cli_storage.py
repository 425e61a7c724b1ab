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
    kept, urls = _taken_apart(sys.argv[1:])
    if not any(_may_be_secret(url) for url in urls):
        return
    head = sys.orig_argv[: 1 + len(sys.orig_argv) - len(sys.argv)]  # the interpreter, its options, the program
    environment = {**os.environ, VARIABLE: urls[-1]}
    sys.stdout.flush()
    os.execve(sys.executable, [*head, *kept], environment)


def forget_url() -> None:
    """Takes the URL out of the environment that workers would inherit: they never speak to a storage."""
    os.environ.pop(VARIABLE, None)


def _may_be_secret(url: str) -> bool:
    """A password may stand before an `@`, in a query, or in a text that is no URL; a file's name has none."""
    return "@" in url or not url.lower().startswith(("sqlite:", "journal:"))


def _taken_apart(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without the option and its values, and the values; the last one counts."""
    kept, urls, left = list[str](), list[str](), iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name != OPTION:
            kept.append(word)
        elif equals:
            urls.append(value)
        else:
            urls += [url for url in [next(left, None)] if url is not None]
    return kept, urls
