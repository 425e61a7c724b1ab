"""The storage of a study: one Optuna study in SQLite (WAL, in the study's folder) or another database, with one driver that writes.

It knows trials, attributes and states, and nothing of what a search is.
"""

import contextlib
import fcntl
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import optuna
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_attn.errors import NasAttnError, StudyError

T = TypeVar("T")

PAUSES_S = (0.1, 0.5, 2.0, 10.0, 30.0, 60.0)
"""Waits between attempts to write: a locked or full storage may come back, and results are kept meanwhile."""
ORPHANS_S = 10.0
"""How long the lock of a driver that died may be held on by children that it left."""
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL")
"""Of SQLite: WAL lets a report read while the driver writes; FULL keeps every told trial through a power cut."""
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


@dataclass(slots=True, kw_only=True)
class Storage:
    """A study in its storage, read and written without knowing what a search is."""

    folder: Path
    study: optuna.Study
    storage: RDBStorage
    lock: IO[str] | None = None
    fresh: bool = False

    @classmethod
    def drive(
        cls, folder: Path, settings: Mapping[str, Any], objectives: Mapping[str, str], storage: str | None, name: str | None
    ) -> "Storage":
        """For writing, under the lock."""
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context(_lock(folder))
            owned = _owned(folder, name)
            rdb = _connect(storage or _file_url(folder))
            undo.callback(_disconnect, rdb)
            directions = [StudyDirection[direction.upper()] for direction in objectives.values()]
            study = persist(
                lambda: optuna.create_study(
                    storage=rdb, study_name=owned["name"], directions=directions, load_if_exists=True, sampler=RandomSampler(seed=0)
                )
            )
            stored = cls(folder=folder, study=study, storage=rdb, lock=lock)
            stored._agree({"owner": owned["owner"], "objectives": dict(objectives), "settings": dict(settings)})
            undo.pop_all()
        return stored

    @classmethod
    def read(cls, folder: Path, storage: str | None) -> "Storage":
        """For reading, without a lock."""
        if storage is None and not (folder / "study.db").is_file():
            raise StudyError(f"A study's folder must hold `study.db`, but {folder} does not; name another, or give the study's storage.")
        rdb = _connect(storage or _file_url(folder), skip_table_creation=True)
        try:
            names = optuna.get_all_study_names(rdb)
            mark = folder / "study.json"
            name = json.loads(mark.read_text())["name"] if mark.is_file() else names[0] if len(names) == 1 else folder.resolve().name
            if name not in names:
                raise StudyError(f"The storage must hold study {name!r}, but it holds {names}; name the folder that began the study.")
            study = optuna.load_study(study_name=name, storage=rdb, sampler=RandomSampler(seed=0))
            if "settings" not in study.user_attrs:
                raise StudyError(f"A study must have settings, but {name!r} was killed before it had; begin it again.")
            return cls(folder=folder, study=study, storage=rdb)
        except (*STORAGE_ERRORS, ValueError) as error:
            _disconnect(rdb)
            raise error if isinstance(error, StudyError) else StudyError(f"{folder} must hold a study, but: {error}") from error

    @property
    def objectives(self) -> dict[str, str]:
        """Each objective with its direction."""
        return dict(self.study.user_attrs["objectives"])

    def set_study_attribute(self, name: str, value: Any) -> None:
        """One attribute of the study."""
        persist(lambda: self.study.set_user_attr(name, value))

    def set_attribute(self, number: int, name: str, value: Any) -> None:
        """One attribute of a RUNNING trial."""
        persist(lambda: self.storage.set_trial_user_attr(trial_id(self.study, self.storage, number), name, value))

    def add(self, number: int, template: FrozenTrial) -> None:
        """A trial in one transaction, once, even if the first try's answer was lost."""

        def write() -> None:
            if len(self.study.get_trials(deepcopy=False)) == number:
                self.study.add_trial(template)

        persist(write)

    def finish(self, number: int, state: TrialState, values: Mapping[str, float] | None, constraints: Mapping[str, float]) -> None:
        """Constraints, then the state."""
        persist(lambda: set_constraints(self.study, self.storage, number, constraints))
        told = None if values is None else list(values.values())
        persist(lambda: self.study.tell(number, told, state=state, skip_if_finished=True))

    def close(self) -> None:
        """Gives lock and connections back."""
        _disconnect(self.storage)
        if self.lock is not None:
            self.lock.close()

    def _agree(self, ours: Mapping[str, Any]) -> None:
        """Writes what identifies a new study, or compares it with a stored one's. `settings` are written last: with them it is begun."""
        theirs = self.study.user_attrs
        if "settings" not in theirs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # names of objectives, for Optuna's own tools
                self.study.set_metric_names(list(ours["objectives"]))
            for name, value in ours.items():
                self.set_study_attribute(name, value)
            self.fresh = True
            return
        if theirs["owner"] != ours["owner"]:
            raise StudyError(
                f"A study must be driven from the folder that began it, but {self.study.study_name!r} was not begun in {self.folder}; "
                "use that folder, or another name."
            )
        rows = _differences(theirs, json.loads(json.dumps(ours)), ("objectives", "settings"))
        if rows:
            raise StudyError(
                "A study must go on with the settings that it was begun with, but these differ:\n  "
                + "\n  ".join(rows)
                + "\nGive the former ones, or begin another study in another folder."
            )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Iterable[str], path: str = "") -> list[str]:
    rows = []
    for key in keys:
        old, new = theirs.get(key, "absent"), ours.get(key, "absent")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            rows += _differences(old, new, sorted({*old, *new}), f"{path}{key}.")
        elif old != new:
            rows.append(f"{path}{key}: {old} (study), {new} (now)")
    return rows


def _owned(folder: Path, name: str | None) -> dict[str, str]:
    """The study's name and its owner's mark, kept in the folder: two folders can never drive one study of a shared storage."""
    mark = folder / "study.json"
    if not mark.is_file():
        temporary = folder / f".study.json.{os.getpid()}"
        temporary.write_text(json.dumps({"name": name or folder.resolve().name, "owner": uuid.uuid4().hex}))
        temporary.replace(mark)
    owned: dict[str, str] = json.loads(mark.read_text())
    if name not in (None, owned["name"]):
        raise StudyError(f"A folder holds one study, but {folder} holds {owned['name']!r}, not {name!r}; use another folder.")
    return owned


def _lock(folder: Path) -> IO[str]:
    file = (folder / "driver.lock").open("a+")
    end = time.monotonic() + ORPHANS_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            pid = file.read().strip()
            if (pid and Path(f"/proc/{pid}").exists()) or time.monotonic() > end:
                file.close()
                raise StudyError(
                    f"One driver at a time may run a study, but process {pid} drives {folder}; wait for it or stop it."
                ) from None
            time.sleep(0.1)  # the driver is dead, and a child of it holds the lock until it notices
        else:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file


def _file_url(folder: Path) -> str:
    return f"sqlite:///{(folder / 'study.db').resolve()}"


def _connect(url: str, skip_table_creation: bool = False) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sqlite = url.startswith("sqlite")
    options = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    try:
        if sqlite and not skip_table_creation:
            _run_pragmas(url, options)
        rdb = RDBStorage(url, engine_kwargs=options, skip_table_creation=skip_table_creation)
    except (*STORAGE_ERRORS, ImportError, ValueError) as error:
        raise StudyError(
            f"The storage {_hidden(url)} must be reachable, but: {type(error).__name__}; check the URL and its driver."
        ) from None
    if sqlite and not skip_table_creation:
        sqlalchemy.event.listen(rdb.engine, "connect", _harden)
        rdb.engine.dispose()  # the connection that made the tables was opened without
    return rdb


def _run_pragmas(url: str, options: dict[str, Any]) -> None:
    """WAL from the first table on: the mode stays with the file."""
    engine = sqlalchemy.create_engine(url, **options)
    sqlalchemy.event.listen(engine, "connect", _harden)
    engine.connect().close()
    engine.dispose()


def _hidden(url: str) -> str:
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return "given"


def _harden(connection: Any, _record: object) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _disconnect(rdb: RDBStorage) -> None:
    rdb.remove_session()
    rdb.engine.dispose()


def persist(action: Callable[[], T]) -> T:
    for pause in PAUSES_S:
        try:
            return action()
        except STORAGE_ERRORS:
            time.sleep(pause)
    try:
        return action()
    except STORAGE_ERRORS as error:
        cause = error.__cause__ or error
        raise NasAttnError(
            f"The study's storage must take writes, but did not for {sum(PAUSES_S):g} s: {cause}; free it, then run the same command."
        ) from error


def trial_id(study: optuna.Study, storage: BaseStorage, number: int) -> int:
    """What a storage calls a trial."""
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study.study_name), number)


def open_trial(study: optuna.Study, storage: BaseStorage, number: int) -> optuna.trial.Trial:
    """A handle on a stored RUNNING trial. `Trial` is not meant to be made by users of Optuna: this is the one place that does."""
    return optuna.trial.Trial(study, trial_id(study, storage, number))


def set_constraints(study: optuna.Study, storage: BaseStorage, number: int, constraints: Mapping[str, float]) -> None:
    """Sets what is not set yet of a RUNNING trial's constraints: Optuna keeps the first value of each, and warns at a second."""
    trial = open_trial(study, storage, number)
    known = trial.constraints
    for name, value in constraints.items():
        if name not in known:
            trial.set_constraint(name, value)
