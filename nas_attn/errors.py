"""The errors that reach a user, as a tree:

NasAttnError                  exit code 1: something failed while it ran
├── InputError                exit code 2: what the user wrote cannot be right (also a ValueError)
│   ├── GraphError            a model YAML, or an edit of one
│   ├── SpaceError            a search space, a placement or a hyperparameter
│   ├── DataError             a data set
│   └── StudyError            a study's folder, its record, or settings that disagree with it
├── TransferError             weights that did not all find their place
├── PoolError                 workers that could not be started or reached
├── Unavailable               a worker lacks what is there at other times: the data; its task is run again later
├── Unfit                     a worker whose device has failed under it; its task is run again by another
└── Interrupted               exit code 130: stopped by the user; the same command goes on

A message states the invariant, then the values, then the remedy.
"""

import difflib
from collections.abc import Iterable

MOST_KNOWN = 200
"""Names that a message lists: columns of a table may be thousands."""


class NasAttnError(Exception):
    """Something failed while it ran."""

    exit_code = 1


class InputError(NasAttnError, ValueError):
    """What the user wrote cannot be right."""

    exit_code = 2


class GraphError(InputError):
    """A model YAML, or an edit of one, breaks a rule of graphs."""


class SpaceError(InputError):
    """A search space, a placement or a hyperparameter is not legal."""


class DataError(InputError):
    """A data set cannot be read or does not fit."""


class StudyError(InputError):
    """A study's folder or record is unusable, or disagrees with the settings given."""


class TransferError(NasAttnError):
    """Weights that did not all find their place."""


class PoolError(NasAttnError):
    """Workers could not be started or reached."""


class Unavailable(NasAttnError):  # noqa: N818 - of what a worker needs
    """A worker lacks what is there at other times, and whatever it runs would fail for that alone."""


class Unfit(NasAttnError):  # noqa: N818 - of a worker
    """A worker's device has failed: all that this process would still do on it fails as well."""


class Interrupted(NasAttnError):  # noqa: N818 - nothing went wrong
    """Stopped by the user; the same command goes on."""

    exit_code = 130


def shown(value: object, most: int = 60) -> str:
    """A value as a message shows it: on one line, printable, at most `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: object) -> str:
    """A text on one line that moves no cursor and begins no line of its own: control characters and line ends as Python writes them."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(text))


def word(name: object) -> str:
    """A name as a message shows it: as it is where it is short and printable, otherwise as `shown`."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 60 else shown(text)


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy's last words: `Did you mean 'LSKA'? Known: CloAttention, ...` for an unknown `name`."""
    names, name = sorted(known), name[:200]  # comparing is quadratic
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.lower(), [n.lower() for n in names], n=1, cutoff=0.5
    )
    match = next((n for n in names if close and n.lower() == close[0].lower()), None)
    listed = [*map(word, names[:MOST_KNOWN]), *([f"{len(names) - MOST_KNOWN} more"] if len(names) > MOST_KNOWN else [])]
    known_text = f"Known: {', '.join(listed) or 'none'}."
    return f"Did you mean {shown(match)}? {known_text}" if match else known_text
