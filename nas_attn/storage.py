"""The storage of a study: one Optuna study in SQLite (WAL, in the study's folder) or another database, with one driver that writes.

It knows trials, attributes and states, and nothing of what a search is.
"""

import contextlib
import json
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_attn.address import hidden, is_server, require_safe, without_secrets
from nas_attn.errors import NasAttnError, StudyError, printable, shown
from nas_attn.files import NAME, plain_name
from nas_attn.ledger import Ledger
from nas_attn.lock import FolderLock
from nas_attn.server_lock import ServerLock

T = TypeVar("T")

PAUSES_S = (0.1, 0.5, 2.0, 10.0, 30.0, 60.0)
"""Waits between attempts to write: a locked or full storage may come back, and results are kept meanwhile."""
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL")
"""Of SQLite: WAL lets a report read while the driver writes; FULL keeps every told trial through a power cut."""
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


@dataclass(slots=True, kw_only=True)
class Storage:
    """A study in its storage, read and written without knowing what a search is. What is written is noted in the ledger as well."""

    folder: Path
    study: optuna.Study
    storage: RDBStorage
    lock: FolderLock | None = None
    server_lock: ServerLock | None = None
    fresh: bool = False
    ledger: Ledger = field(init=False)

    @classmethod
    def drive(
        cls, folder: Path, settings: Mapping[str, Any], objectives: Mapping[str, str], storage: str | None, name: str | None
    ) -> "Storage":
        """For writing, under the lock."""
        url = require_safe(storage) if storage is not None else file_url(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context(contextlib.closing(FolderLock.take(folder)))
            if storage is None and not (folder / "study.db").exists():
                Ledger.of(folder).require_not_ahead({}, ())  # before there is an empty one in its place
            owned = identity(folder, name)
            server_lock = undo.enter_context(contextlib.closing(ServerLock.take(url, owned["name"]))) if is_server(url) else None
            rdb = connect(url)
            undo.callback(disconnect, rdb)
            study = create(rdb, owned["name"], objectives)
            stored = cls(folder=folder, study=study, storage=rdb, lock=lock, server_lock=server_lock)
            stored.ledger.require_not_ahead(study.user_attrs, study.get_trials(deepcopy=False))
            stored._agree({"owner": owned["owner"], "objectives": dict(objectives), "settings": dict(settings)})
            stored.ledger.agree(study.user_attrs, study.get_trials(deepcopy=False))
            undo.pop_all()
        return stored

    @classmethod
    def read(cls, folder: Path, storage: str | None) -> "Storage":
        """For reading, without a lock."""
        if storage is None and not (folder / "study.db").is_file():
            raise StudyError(f"A study's folder must hold `study.db`, but {folder} does not; name another, or give the study's storage.")
        rdb = connect(require_safe(storage) if storage is not None else file_url(folder), skip_table_creation=True)
        try:
            names = optuna.get_all_study_names(rdb)
            mark = folder / "study.json"
            name = known_names(mark)["name"] if mark.is_file() else names[0] if len(names) == 1 else folder.resolve().name
            if name not in names:
                raise StudyError(f"The storage must hold study {name!r}, but it holds {names}; name the folder that began the study.")
            study = optuna.load_study(study_name=name, storage=rdb, sampler=RandomSampler(seed=0))
            if "settings" not in study.user_attrs:
                raise StudyError(f"A study must have settings, but {name!r} was killed before it had; begin it again.")
            return cls(folder=folder, study=study, storage=rdb)
        except (*STORAGE_ERRORS, ValueError) as error:
            disconnect(rdb)
            raise error if isinstance(error, StudyError) else unreadable(folder, error) from error

    def __post_init__(self) -> None:
        self.ledger = Ledger.of(self.folder)

    @property
    def objectives(self) -> dict[str, str]:
        """Each objective with its direction."""
        return dict(self.study.user_attrs["objectives"])

    def set_study_attribute(self, name: str, value: Any) -> None:
        """One attribute of the study."""
        self._write(lambda: self.study.set_user_attr(name, value))
        self.ledger.set_study(name, value)

    def set_attribute(self, number: int, name: str, value: Any) -> None:
        """One attribute of a RUNNING trial."""
        self._write(lambda: self.storage.set_trial_user_attr(trial_id(self.study, self.storage, number), name, value))
        self.ledger.set(number, name, value)

    def add(self, number: int, template: FrozenTrial) -> None:
        """A trial in one transaction, once, even if the first try's answer was lost."""

        def write() -> None:
            if len(self.study.get_trials(deepcopy=False)) == number:
                self.study.add_trial(template)

        self._write(write)
        self.ledger.add(number, template)

    def finish(self, number: int, state: TrialState, values: Mapping[str, float] | None, constraints: Mapping[str, float]) -> None:
        """Constraints, then the state."""
        self._write(lambda: set_constraints(self.study, self.storage, number, constraints))
        told = None if values is None else list(values.values())
        self._write(lambda: self.study.tell(number, told, state=state, skip_if_finished=True))
        self.ledger.finish(number, persist(lambda: self.storage.get_trial(trial_id(self.study, self.storage, number))))

    def close(self) -> None:
        """Gives locks and connections back."""
        disconnect(self.storage)
        for lock in (self.server_lock, self.lock):
            if lock is not None:
                lock.close()

    def _write(self, action: Callable[[], T]) -> T:
        """Writes while this driver holds its locks, and only then."""

        def write() -> T:
            for lock in (self.lock, self.server_lock):
                if lock is not None:
                    lock.require()
            return action()

        return persist(write)

    def _agree(self, ours: Mapping[str, Any]) -> None:
        """Writes what identifies a new study, or compares it with a stored one's. `settings` are written last: with them it is begun."""
        theirs = self.study.user_attrs
        if "settings" not in theirs:
            name_objectives(self.study, ours["objectives"])
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


def identity(folder: Path, name: str | None) -> dict[str, str]:
    """The study's name and its owner's mark, kept in the folder: two folders can never drive one study of a shared storage."""
    mark = folder / "study.json"
    if not mark.is_file():
        temporary = folder / f".study.json.{os.getpid()}"
        temporary.write_text(json.dumps({"name": _fit_name(folder, name), "owner": uuid.uuid4().hex}))
        temporary.replace(mark)
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
    """What a folder's `study.json` holds. Names of 0.1.0 may have spaces; none is a path.

    Raises:
        StudyError: it is not as this program writes it.
    """
    try:
        owned = json.loads(mark.read_text())
        if not all(
            isinstance(owned[key], str) and re.fullmatch(r"(?![.\s])[^/\\]{1,255}", printable(owned[key])) for key in ("name", "owner")
        ):
            raise ValueError(f"got the name {shown(owned['name'])}")
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise StudyError(f"{mark} must hold the study's name and owner, but: {error}; copy it from a backup.") from error
    return {key: owned[key] for key in ("name", "owner")}


def unreadable(folder: Path, error: Exception) -> StudyError:
    """What to do about a storage that holds no study any more."""
    return StudyError(
        f"{folder} must hold a study, but: {' '.join(str(error).split())[:400]}; where its storage is lost or broken, "
        f"`nas-attn rebuild {folder}` makes it anew."
    )


def create(rdb: RDBStorage, name: str, objectives: Mapping[str, str]) -> optuna.Study:
    """The study of that name, which is there or is begun."""
    directions = [StudyDirection[direction.upper()] for direction in objectives.values()]
    return persist(
        lambda: optuna.create_study(storage=rdb, study_name=name, directions=directions, load_if_exists=True, sampler=RandomSampler(seed=0))
    )


def name_objectives(study: optuna.Study, objectives: Iterable[str]) -> None:
    """Names of objectives, for Optuna's own tools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(objectives))


def write_anew(url: str, owned: Mapping[str, str], attributes: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> None:
    """A whole study in a storage that has none of its name, or one that was not begun to its end: `settings` are written last.

    Raises:
        StudyError: the storage holds another's study of that name.
    """
    rdb, name, objectives = connect(url), owned["name"], attributes["objectives"]
    try:
        if name in optuna.get_all_study_names(rdb):
            former = optuna.load_study(study_name=name, storage=rdb)
            if former.get_trials(deepcopy=False) and former.user_attrs.get("owner") != owned["owner"]:
                raise StudyError(f"A study needs a name of its own, but {hidden(url)} holds another {name!r}; give another storage.")
            optuna.delete_study(study_name=name, storage=rdb)
        study = create(rdb, name, objectives)
        name_objectives(study, objectives)
        study.set_user_attr("owner", owned["owner"])
        for trial in trials:
            study.add_trial(trial)
        for key in sorted(attributes.keys() - {"owner"}, key=lambda key: key == "settings"):
            study.set_user_attr(key, attributes[key])
    finally:
        disconnect(rdb)


def file_url(folder: Path, name: str = "study.db") -> str:
    """Where a study is kept by default: SQLite in its folder."""
    return f"sqlite:///{(folder / name).resolve()}"


def connect(url: str, skip_table_creation: bool = False) -> RDBStorage:
    """A storage, opened as a study needs it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sqlite = not is_server(url)
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    try:
        if sqlite and not skip_table_creation:
            _run_pragmas(url, options)
        if not sqlite and skip_table_creation:
            _require_tables(url)  # a storage that Optuna refuses would leave its connection open
        rdb = RDBStorage(url, engine_kwargs=options, skip_table_creation=skip_table_creation)
    except StudyError:
        raise
    except (*STORAGE_ERRORS, ImportError, ValueError) as error:
        words = without_secrets(str(getattr(error, "orig", None) or error).partition("\n")[0], url)
        raise StudyError(
            f"The storage {hidden(url)} must be reachable, but: {type(error).__name__}: {words}; check the URL, or, where a study's file "
            "is broken, make it anew with `nas-attn rebuild`."
        ) from None
    if sqlite and not skip_table_creation:
        sqlalchemy.event.listen(rdb.engine, "connect", _harden)
        rdb.engine.dispose()  # the connection that made the tables was opened without
    return rdb


def _require_tables(url: str) -> None:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        if not sqlalchemy.inspect(connection).has_table("studies"):
            raise StudyError(f"The storage {hidden(url)} must hold a study, but it holds none; name another, or begin one.")


def _run_pragmas(url: str, options: dict[str, Any]) -> None:
    """WAL from the first table on: the mode stays with the file."""
    engine = sqlalchemy.create_engine(url, **options)
    sqlalchemy.event.listen(engine, "connect", _harden)
    engine.connect().close()
    engine.dispose()


def _harden(connection: Any, _record: object) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def disconnect(rdb: RDBStorage) -> None:
    """Gives every connection back."""
    rdb.remove_session()
    rdb.engine.dispose()


def persist(action: Callable[[], T]) -> T:
    """Does it, again after a while where the storage does not take it."""
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
