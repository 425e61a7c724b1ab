"""A study whose storage is lost or broken, made anew from the ledger in its folder; the outcomes of trainings are files already.

The new storage takes its name only when it is whole, and what was there is put aside, never deleted.
"""

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_attn.address import journal_of
from nas_attn.errors import StudyError
from nas_attn.home import DEFAULT, file_url, lock, note_home, url_of
from nas_attn.ledger import FOLDER, Ledger
from nas_attn.outcome import Snapshot
from nas_attn.record import load_study
from nas_attn.storage import Storage, write_anew

_NEEDED = ("settings", "objectives")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A study that can be read again, what was put aside for it, and in words what could not be made anew."""

    snapshot: Snapshot
    aside: tuple[Path, ...]
    lost: tuple[str, ...]


def rebuild(folder: Path, storage: str | None = None, force: bool = False) -> Rebuilt:
    """Makes a study's storage anew: `study.db` in its folder, or the study of its name in the storage at a URL.

    Raises:
        StudyError: a driver runs, a study that can be read (unless `force`, for a file), or a folder that does not hold enough.
    """
    if not folder.is_dir():
        raise StudyError(f"A study's folder must be a folder, but {folder} is none; give the one that holds `ledger` and `trials`.")
    url = url_of(folder, storage)
    file = folder / DEFAULT if storage is None else journal_of(url)
    if not (folder / FOLDER).is_dir():  # before a lock is written into what is no study's folder
        _require_enough(folder, {}, {})
    with contextlib.ExitStack() as held:
        owned, _, _ = lock(held, folder, url, None)
        ledger = Ledger.of(folder)
        attributes, pages = ledger.study(), ledger.pages()
        _require_enough(folder, attributes, pages)
        _require_lost(folder, storage, force and file is not None)
        numbers, templates = {old: new for new, old in enumerate(sorted(pages))}, ledger.templates()
        lost = _lost(ledger, pages, numbers)
        fresh = url if file is None else _prepared(file, url)
        write_anew(fresh, owned, _moved(attributes, numbers), [templates[number] for number in numbers])
        aside = () if file is None else _exchange(file)
        note_home(folder, url, owned)
        if any(old != new for old, new in numbers.items()):
            aside = (*aside, _write_ledger_anew(folder, storage))
        snapshot = load_study(folder, storage)
        return Rebuilt(snapshot=snapshot, aside=aside, lost=(*lost, *_unknown_outcomes(snapshot)))


def _require_enough(folder: Path, attributes: Mapping[str, Any], pages: Mapping[int, Any]) -> None:
    missing = [f"ledger/study-{name}.json" for name in _NEEDED if name not in attributes]
    missing += [] if 0 in pages else ["ledger/trial-00000.json, the base"]
    if missing:
        raise StudyError(
            f"A study can be made anew only from a whole ledger, but {folder} lacks {' and '.join(missing)} (studies of "
            "0.1.0 have none until they go on); copy them from a backup, or begin another study in another folder."
        )


def _require_lost(folder: Path, storage: str | None, force: bool) -> None:
    if storage is None and not (folder / DEFAULT).exists():
        return
    try:
        found = load_study(folder, storage)
    except StudyError:
        return
    if found.trials and storage is not None and not force:
        raise StudyError(
            f"A study that can be read is not made anew, but {found.name!r} holds {len(found.trials)} trials in its storage; to make it "
            "anew there delete it first, or leave --storage out and have it in its folder."
        )
    if found.trials and not force:
        raise StudyError(
            f"A study that can be read is not made anew, but the one in {folder} holds {len(found.trials)} trials; --force puts it aside."
        )


def _lost(ledger: Ledger, pages: Mapping[int, Any], numbers: Mapping[int, int]) -> list[str]:
    """In words: trials without a file that can be read, and the new numbers of those after them."""
    torn = ledger.torn()
    gaps = [n for n in range(max(pages) + 1) if n not in pages and ledger.file(n).name not in torn]
    lost = [f"{ledger.folder / name} cannot be read: its trial is left out" for name in torn]
    lost += [f"{ledger.file(n)} is missing: its trial is left out" for n in gaps]
    # A storage counts without gaps.
    return [*lost, *(f"trial {old} is now trial {new}" for old, new in numbers.items() if old != new)]


def _moved(attributes: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """The study's attributes with new numbers in names such as `repeats:7`; those of trials that are left out are too."""
    moved = {}
    for name, value in attributes.items():
        kind, colon, number = name.partition(":")
        if not (colon and number.isdigit()):
            moved[name] = value
        elif int(number) in numbers:
            moved[f"{kind}:{numbers[int(number)]}"] = value
    return moved


def _unknown_outcomes(snapshot: Snapshot) -> list[str]:
    """Trainings of no trial of the study: of times before there was a ledger, or of trials whose file is lost."""
    known = {trial.architecture.digest() for trial in snapshot.trials}
    known |= {job.architecture.digest() for trial in snapshot.trials for _, job, _ in trial.controls}
    found = {file.parts[-4] for file in (snapshot.folder / "trials").glob("*/*/*/outcome.json")}
    return [
        f"trials/{digest} holds outcomes of no trial that could be made anew; a search that asks for this architecture takes them up"
        for digest in sorted(found - known)
    ]


def _write_ledger_anew(folder: Path, storage: str | None) -> Path:
    """With the new numbers; the former ledger is put aside."""
    aside = (folder / FOLDER).rename(folder / f"{FOLDER}.broken-{_next_number(folder, FOLDER)}")
    stored = Storage.read(folder, storage)
    try:
        Ledger.of(folder).agree(stored.study.user_attrs, stored.study.get_trials(deepcopy=False))
    finally:
        stored.close()
    return aside


def _exchange(file: Path) -> tuple[Path, ...]:
    """Puts the broken file aside, and the whole one in its place. A kill in between leaves a study that is lost, as before."""
    number, aside = _next_number(file.parent, file.name), []
    for suffix in ("", "-wal", "-shm"):
        part = file.with_name(f"{file.name}{suffix}")
        if part.exists() and part.stat().st_size:
            aside.append(part.rename(file.with_name(f"{file.name}.broken-{number}{suffix}")))
    _new(file).rename(file)
    return tuple(aside)


def _next_number(folder: Path, name: str) -> int:
    return next(number for number in itertools.count(1) if not [*folder.glob(f"{name}.broken-{number}*")])


def _new(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")


def _prepared(file: Path, url: str) -> str:
    """Where a file's successor is written, free of the remains of a rebuild that was killed."""
    for path in file.parent.glob(f"{_new(file).name}*"):
        path.unlink()
    return url.removesuffix(str(file)) + str(_new(file)) if journal_of(url) else file_url(file.parent, _new(file).name)
