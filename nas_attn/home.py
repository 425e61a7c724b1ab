"""Where a study is: its name and its owner's mark in its folder, the storage that it lives in, the locks that admit one driver."""

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from nas_attn import journal
from nas_attn.address import hidden, is_server, journal_of, require_safe
from nas_attn.errors import StudyError, printable, shown
from nas_attn.files import NAME, plain_name, write_atomic
from nas_attn.ledger import Ledger
from nas_attn.lock import NAME as NAME_OF_LOCK
from nas_attn.lock import FolderLock
from nas_attn.server_lock import ServerLock

DEFAULT = "study.db"
MARK = "study.json"
Locks = tuple[FolderLock | ServerLock, ...]


def file_url(folder: Path, name: str = DEFAULT) -> str:
    """Where a study is kept by default: SQLite in its folder."""
    return f"sqlite:///{(folder / name).resolve()}"


def url_of(folder: Path, storage: str | None) -> str:
    """Where a study is: at a URL that is safe, or in its folder."""
    return require_safe(storage) if storage is not None else file_url(folder)


def lock(undo: contextlib.ExitStack, folder: Path, url: str, name: str | None) -> tuple[dict[str, str], Locks, str | None]:
    """Takes every lock of a study until `undo` ends: the owner's mark, the locks, and a warning about what a former driver left."""
    first = undo.enter_context(contextlib.closing(FolderLock.take(folder)))
    further: list[FolderLock | ServerLock] = []
    owned, warnings = identity(folder, name), [first.warning]
    if is_server(url):
        further.append(undo.enter_context(contextlib.closing(ServerLock.take(url, owned["name"]))))
    if (file := journal_of(url)) is not None:
        journal.begin(file)
        further.append(undo.enter_context(contextlib.closing(FolderLock.take(file))))
        warnings.append(journal.repair(file))
    return owned, (first, *further), "; ".join(words for words in warnings if words) or None


def require_home(folder: Path, url: str, owned: Mapping[str, str], holds: Callable[[], bool]) -> None:
    """Before a study is begun in a storage that has none; `holds` asks the storage whether it has this folder's.

    Raises:
        StudyError: the folder's study was begun, and lives elsewhere or is lost.
    """
    here, known = _home(folder, url), Ledger.of(folder)
    home = owned.get("storage") or (DEFAULT if (folder / DEFAULT).is_file() else here)
    begun = known.study() or known.pages() or (folder / DEFAULT).is_file()
    # A server may be reached by another name; of a folder's own file nobody can say so.
    same = home == here or ((not owned.get("storage") or DEFAULT not in (home, here)) and holds())
    if begun and not same:
        give = "leave --storage out" if home == DEFAULT else "give its own --storage"
        option = "" if here == DEFAULT else " --storage URL"
        raise StudyError(
            f"A folder has one study, and that of {folder} lives in {home}, not in {here}; {give}, "
            f"or move the study there with `nas-attn rebuild {folder}{option}`."
        )
    if here == DEFAULT and not (folder / DEFAULT).exists():
        known.require_not_ahead({}, ())  # before there is an empty one in its place


def require_no_driver(folder: Path) -> str | None:
    """Asks early, before workers start, which a second driver would wait for in vain. Gives a warning about what a former driver left.

    Raises:
        StudyError: a driver runs; who it is, and the age of its last sign of life.
    """
    if not (folder / NAME_OF_LOCK).is_file():
        return None
    with contextlib.closing(FolderLock.take(folder)) as taken:
        return taken.warning


def note_home(folder: Path, url: str, owned: Mapping[str, str]) -> None:
    """Keeps in the folder where its study lives, without a password."""
    if owned.get("storage") != _home(folder, url):
        _write_mark(folder, {**owned, "storage": _home(folder, url)})


def _home(folder: Path, url: str) -> str:
    return DEFAULT if url == file_url(folder) else hidden(url)


def home_of(folder: Path) -> str | None:
    """Where the folder's study lives, if that is known."""
    mark = folder / "study.json"
    return known_names(mark).get("storage") if mark.is_file() else None


def inode(file: Path | None) -> tuple[int, int] | None:
    """What tells a file from another of its name; None where there is none."""
    try:
        found = None if file is None else file.stat()
    except FileNotFoundError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def identity(folder: Path, name: str | None) -> dict[str, str]:
    """The study's name and its owner's mark, kept in the folder: two folders can never drive one study of a shared storage."""
    mark = folder / "study.json"
    if not mark.is_file():
        _write_mark(folder, {"name": _fit_name(folder, name), "owner": uuid.uuid4().hex})
    owned = known_names(mark)
    if name not in (None, owned["name"]):
        raise StudyError(f"A folder holds one study, but {folder} holds {owned['name']!r}, not {name!r}; use another folder.")
    return owned


def _fit_name(folder: Path, name: str | None) -> str:
    """A new study's: it names tables' rows and locks of a storage that others share."""
    if name is not None and not NAME.fullmatch(name):
        raise StudyError(f"A study's name must be 1 to 64 letters, digits, `.`, `_` or `-`, but got {shown(name)}; give e.g. yolo11-1.")
    return name or plain_name(folder.resolve().name)


def known_names(mark: Path) -> dict[str, str]:
    """What a folder's `study.json` holds: `name`, `owner`, and `storage` where it is known. Names of 0.1.0 may have spaces; none is a path.

    Raises:
        StudyError: it is not as this program writes it.
    """
    try:
        owned = json.loads(mark.read_text())
        names = [owned["name"], owned["owner"]]
        if not all(isinstance(name, str) and re.fullmatch(r"(?![.\s])[^/\\]{1,255}", printable(name)) for name in names):
            raise ValueError(f"got the name {shown(owned['name'])}")
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise StudyError(f"{mark} must hold the study's name and owner, but: {error}; copy it from a backup.") from error
    return {key: str(owned[key]) for key in ("name", "owner", "storage") if key in owned}


def _write_mark(folder: Path, owned: Mapping[str, str]) -> None:
    write_atomic(folder / "study.json", lambda target: target.write_text(json.dumps(owned)))
