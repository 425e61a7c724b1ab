"""A study that goes on in a larger space: the same trials under the new space's genes, nothing retrained, every number kept.

Optuna admits no further value to a gene that is stored, so the study is written anew beside the former one, under another name, and takes
its name in one step when it is whole: one transaction of a database, one rename of a journal file. A kill at any instant leaves the former
study or the new one, and the same command goes on. The former one stays in the storage under a name of its own.
"""

import contextlib
import copy
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from nas_attn.address import JOURNAL, file_of, journal_of
from nas_attn.agreement import Difference, differences
from nas_attn.architecture import Architecture
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.files import write_atomic
from nas_attn.home import Locks, lock, url_of
from nas_attn.ledger import Ledger
from nas_attn.space import SearchSpace
from nas_attn.storage import STORAGE_ERRORS, connect, disconnect, write_anew

MOST_SHOWN = 5
_NEW = "(being extended)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """What an extension did: in which settings the space differs now, the trials that moved into it, where the former study is kept."""

    differences: tuple[Difference, ...]
    trials: int
    former: str


def extend(
    folder: Path, settings: Mapping[str, Any], objectives: Mapping[str, str], space: SearchSpace, storage: str | None = None
) -> Extended | None:
    """Moves the study of `folder` into `space`; None where there is none yet, or where its settings are these already.

    Raises:
        StudyError: a driver runs, settings differ in more than the space, or a trial lies outside of the new space.
    """
    url = url_of(folder, storage)
    file = file_of(url)
    if not folder.is_dir() or (file is not None and not file.exists()):
        return None  # the search itself begins it, or tells what is wrong
    now = json.loads(json.dumps({"objectives": dict(objectives), "settings": dict(settings)}))
    with contextlib.ExitStack() as undo:
        owned, locks, _ = lock(undo, folder, url, None)
        try:
            return _extend(folder, url, owned, locks, now, space)
        except STORAGE_ERRORS as error:
            words = " ".join(str(error.__cause__ or error).split())[:300]
            raise NasAttnError(f"A storage must take a study's extension, but: {words}; free it, then run the same command.") from error


def _extend(folder: Path, url: str, owned: Mapping[str, str], locks: Locks, now: Mapping[str, Any], space: SearchSpace) -> Extended | None:
    found = _read(url, owned)
    if found is None:
        return None
    attributes, trials = found
    Ledger.of(folder).require_not_ahead(attributes, trials)
    rows = differences(attributes, now)
    if not rows:
        return None
    _require_growth(rows)
    moved = moved_into(space, trials)
    former = _replace(url, owned, locks, {**attributes, **now}, moved)
    after = _read(url, owned)
    if after is not None:
        Ledger.of(folder).agree(*after)  # where a kill comes before, the next driver makes the ledger follow
    return Extended(differences=tuple(rows), trials=len(moved), former=former)


def _read(url: str, owned: Mapping[str, str]) -> tuple[dict[str, Any], list[FrozenTrial]] | None:
    """The attributes and trials of a study that was begun, and by this folder."""
    backend = connect(url)
    try:
        if owned["name"] not in optuna.get_all_study_names(backend):
            return None
        study = optuna.load_study(study_name=owned["name"], storage=backend)
        attributes = study.user_attrs
        ours = "settings" in attributes and attributes.get("owner") == owned["owner"]
        return (attributes, study.get_trials(deepcopy=False)) if ours else None
    finally:
        disconnect(backend)


def moved_into(space: SearchSpace, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The same trials with the genes of `space`, in the order of their numbers.

    Raises:
        StudyError: trials outside of it.
    """
    architectures = [Architecture.from_dict(json.loads(trial.user_attrs["architecture"])) for trial in trials]
    outside = [(trial, a) for trial, a in zip(trials, architectures, strict=True) if not space.contains(a)]
    if outside:
        lines = [f"trial {trial.number}, {a}: {space.why_not(a)}" for trial, a in outside[:MOST_SHOWN]]
        lines += [f"and {len(outside) - MOST_SHOWN} more"] if len(outside) > MOST_SHOWN else []
        text = "\n  ".join(lines)
        raise StudyError(
            f"Every trial must lie in the space that a study is extended to, but {len(outside)} of {len(trials)} do not:\n  {text}\n"
            "Keep what they use, or begin another study in another folder."
        )
    distributions: dict[str, BaseDistribution] = {name: CategoricalDistribution(choices) for name, choices in space.genes.items()}
    return [_with_genes(trial, space.encode(a), distributions) for trial, a in zip(trials, architectures, strict=True)]


def _require_growth(rows: Sequence[Difference]) -> None:
    refused = [row for row in rows if not row.grows]
    if refused:
        lines = "\n  ".join(f"{row} ({row.reason})" for row in refused)
        raise StudyError(
            f"--extend may change which architectures there are, and nothing else, but these differ:\n  {lines}\n"
            "Give the former ones, or begin another study in another folder."
        )


def _with_genes(trial: FrozenTrial, genes: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    moved = copy.copy(trial)
    moved.distributions = dict(distributions)  # first: parameters are checked against them
    moved.params = dict(genes)
    return moved


def _replace(url: str, owned: Mapping[str, str], locks: Locks, attributes: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> str:
    """Writes the new study beside the former, and gives it the former's name in one step; where the former is kept."""
    file = journal_of(url)
    if file is None:
        fresh = {**owned, "name": f"{owned['name']} {_NEW}"}
        write_anew(url, fresh, attributes, trials)
        for held in locks:
            held.require()
        return _exchange_names(url, owned["name"], fresh["name"])
    new = file.with_name(f"{file.name}.extended")
    new.unlink(missing_ok=True)  # of an extension that was killed
    write_anew(f"{JOURNAL}{new}", owned, attributes, trials)
    return str(_exchange_files(file, new))


def _exchange_names(url: str, name: str, fresh: str) -> str:
    backend = connect(url)
    try:
        former = _former(name, optuna.get_all_study_names(backend))
        if not isinstance(backend, RDBStorage):
            raise StudyError(f"A study can be extended in a database or a journal file, but not in a {type(backend).__name__}.")
        rename = sqlalchemy.text("UPDATE studies SET study_name = :new WHERE study_name = :old")
        with backend.engine.begin() as transaction:
            transaction.execute(rename, {"old": name, "new": former})
            transaction.execute(rename, {"old": fresh, "new": name})
    finally:
        disconnect(backend)
    return f"study {former!r} of the same storage"


def _former(name: str, known: Sequence[str]) -> str:
    names = (f"{name} (before extension {number})" for number in itertools.count(1))
    return next(former for former in names if former not in known)


def _exchange_files(file: Path, new: Path) -> Path:
    aside = next(path for path in (file.with_name(f"{file.name}.before-{n}") for n in itertools.count(1)) if not path.exists())
    write_atomic(aside, lambda target: shutil.copyfile(file, target))
    write_atomic(file, new.replace)
    return aside
