"""The storage of a study: one Optuna study in SQLite (WAL, in the study's folder) or another database, with one driver that writes.

It knows trials, attributes and states, and nothing of what a search is.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_attn import journal
from nas_attn.address import file_of, hidden, is_server, journal_of, without_secrets
from nas_attn.agreement import differences, disagreement
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.home import DEFAULT, Locks, home_of, inode, known_names, lock, note_home, require_home, url_of
from nas_attn.ledger import Ledger
from nas_attn.rows import Change, Rows, rows_of
from nas_attn.wire import dialler

T = TypeVar("T")

PAUSES_S = (0.1, 0.5, 2.0, 10.0, 30.0, 60.0)
"""Waits between attempts to write: a locked or full storage may come back, and results are kept meanwhile."""
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL")
"""Of SQLite: WAL lets a report read while the driver writes; FULL keeps every told trial through a power cut."""
BROKEN = (KeyError, TypeError, AttributeError, ValueError)
"""What reading a storage raises that holds something else than what was written."""
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


@dataclass(slots=True, kw_only=True)
class Storage:
    """A study in its storage, read and written without knowing what a search is. What is written is noted in the ledger as well."""

    folder: Path
    study: optuna.Study
    storage: BaseStorage
    locks: Locks = ()
    file: Path | None = None
    warning: str | None = None
    fresh: bool = False
    ledger: Ledger = field(init=False)
    rows: Rows = field(init=False)
    _inode: tuple[int, int] | None = field(init=False)
    _opened_with: list[FrozenTrial] | None = None

    @classmethod
    def drive(
        cls, folder: Path, settings: Mapping[str, Any], objectives: Mapping[str, str], storage: str | None, name: str | None
    ) -> "Storage":
        """For writing, under the lock."""
        url = url_of(folder, storage)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            owned, locks, warning = lock(undo, folder, url, name)
            require_home(folder, url, owned, lambda: _holds(url, owned))
            backend = connect(url)
            undo.callback(disconnect, backend)
            study = create(backend, owned["name"], objectives)
            stored = cls(folder=folder, study=study, storage=backend, locks=locks, file=file_of(url), warning=warning)
            trials = stored.rows.trials()
            stored.ledger.require_not_ahead(study.user_attrs, trials)
            stored._agree({"owner": owned["owner"], "objectives": dict(objectives), "settings": dict(settings)})
            stored.ledger.agree(study.user_attrs, trials)
            stored._opened_with = trials
            note_home(folder, url, owned)
            undo.pop_all()
        return stored

    @classmethod
    def read(cls, folder: Path, storage: str | None) -> "Storage":
        """For reading, without a lock."""
        if storage is None and not (folder / DEFAULT).is_file():
            home = home_of(folder)
            where = "name another, or give the study's storage" if home in (None, DEFAULT) else f"its study lives in {home}: give --storage"
            raise StudyError(f"A study's folder must hold `study.db`, but {folder} does not; {where}.")
        url = url_of(folder, storage)
        backend = connect(url, skip_table_creation=True)
        try:
            names = optuna.get_all_study_names(backend)
            mark = folder / "study.json"
            name = known_names(mark)["name"] if mark.is_file() else names[0] if len(names) == 1 else folder.resolve().name
            if name not in names:
                raise StudyError(f"The storage must hold study {name!r}, but it holds {names}; name the folder that began the study.")
            study = optuna.load_study(study_name=name, storage=backend, sampler=RandomSampler(seed=0))
            if "settings" not in study.user_attrs:
                raise StudyError(f"A study must have settings, but {name!r} was killed before it had; begin it again.")
            return cls(folder=folder, study=study, storage=backend)
        except (*STORAGE_ERRORS, ValueError) as error:
            disconnect(backend)
            raise error if isinstance(error, StudyError) else unreadable(folder, error) from error

    def __post_init__(self) -> None:
        self.ledger, self._inode = Ledger.of(self.folder), inode(self.file)
        self.rows = rows_of(self.study, self.storage)

    @property
    def objectives(self) -> dict[str, str]:
        """Each objective with its direction."""
        return dict(self.attributes["objectives"])

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The study's attributes, as soon as the storage gives them."""
        return persist(lambda: self.study.user_attrs)

    def take_trials(self) -> list[FrozenTrial]:
        """Every trial; the first call after `drive` does not read them anew."""
        trials, self._opened_with = self._opened_with, None
        return self.rows.trials() if trials is None else trials

    def set_study_attribute(self, name: str, value: Any) -> None:
        """One attribute of the study."""
        self._write(lambda: self.study.set_user_attr(name, value))
        persist(lambda: self.ledger.set_study(name, value))

    def set_attributes(self, changes: Sequence[Change]) -> None:
        """Attributes of RUNNING trials, in one transaction."""
        if changes:
            self._write(lambda: self.rows.set(changes))
            persist(lambda: self.ledger.set(changes))

    def add(self, first: int, templates: Sequence[FrozenTrial]) -> None:
        """Trials numbered from `first` on in one transaction, once, even if the first try's answer was lost."""
        if templates:
            self._write(lambda: self.rows.add(first, templates))
            persist(lambda: self.ledger.add(first, templates))

    def finish(
        self,
        number: int,
        state: TrialState,
        values: Mapping[str, float] | None,
        user: Mapping[str, Any],
        constraints: Mapping[str, float],
    ) -> None:
        """The end of a trial: attributes, constraints and state in one transaction."""
        told = None if values is None else list(values.values())
        self._write(lambda: self.rows.finish(number, state, told, user, constraints))
        persist(lambda: self.ledger.finish(number, state, told, user, constraints))

    def close(self) -> None:
        """Gives locks and connections back."""
        disconnect(self.storage)
        for held in reversed(self.locks):
            held.close()

    def _write(self, action: Callable[[], T]) -> T:
        """Writes while this driver holds its locks, and only then."""

        def write() -> T:
            for held in self.locks:
                held.require()
            self._require_there()
            return action()

        return persist(write)

    def _require_there(self) -> None:
        """What is written to a file that was deleted or exchanged is lost without a word."""
        if self.file is not None and inode(self.file) != self._inode:
            raise NasAttnError(
                f"A study's storage must stay where it is, but {self.file} is gone or another file; `nas-attn rebuild {self.folder}` makes "
                "it anew from the files in the study's folder, then the same command goes on."
            )

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
        if rows := differences(theirs, json.loads(json.dumps(ours))):
            raise StudyError(disagreement(rows))


def _holds(url: str, owned: Mapping[str, str]) -> bool:
    """Whether a storage, say one that is reached by another name now, has this folder's study."""
    file = file_of(url)
    if file is not None and not file.exists():
        return False
    try:
        backend = connect(url, skip_table_creation=True)
    except StudyError:
        return False
    try:
        names = optuna.get_all_study_names(backend)
        found = optuna.load_study(study_name=owned["name"], storage=backend) if owned["name"] in names else None
        return found is not None and found.user_attrs.get("owner") == owned["owner"]
    finally:
        disconnect(backend)


def unreadable(folder: Path, error: Exception) -> StudyError:
    """What to do about a storage that holds no study any more."""
    return StudyError(
        f"{folder} must hold a study, but: {' '.join(str(error).split())[:400]}; where its storage is lost or broken, "
        f"`nas-attn rebuild {folder}` makes it anew."
    )


def create(backend: BaseStorage, name: str, objectives: Mapping[str, str]) -> optuna.Study:
    """The study of that name, which is there or is begun.

    Raises:
        StudyError: a journal that holds another study; a repair would cut off what that one's driver writes.
    """
    directions = [StudyDirection[direction.upper()] for direction in objectives.values()]
    names, sampler = persist(lambda: optuna.get_all_study_names(backend)), RandomSampler(seed=0)
    if isinstance(backend, JournalStorage) and (others := [known for known in names if known != name]):
        raise StudyError(f"A journal file holds one study, but this one holds {others[0]!r}; give study {name!r} a file of its own.")
    if name in names:
        return persist(lambda: optuna.load_study(study_name=name, storage=backend, sampler=sampler))
    return persist(
        lambda: optuna.create_study(storage=backend, study_name=name, directions=directions, load_if_exists=True, sampler=sampler)
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
    backend, name, objectives = connect(url), owned["name"], attributes["objectives"]
    try:
        if name in optuna.get_all_study_names(backend):
            former = optuna.load_study(study_name=name, storage=backend)
            if former.get_trials(deepcopy=False) and former.user_attrs.get("owner") != owned["owner"]:
                raise StudyError(f"A study needs a name of its own, but {hidden(url)} holds another {name!r}; give another storage.")
            optuna.delete_study(study_name=name, storage=backend)
        study = create(backend, name, objectives)
        name_objectives(study, objectives)
        study.set_user_attr("owner", owned["owner"])
        rows_of(study, backend).add(0, list(trials))
        for key in sorted(attributes.keys() - {"owner"}, key=lambda key: key == "settings"):
            study.set_user_attr(key, attributes[key])
    finally:
        disconnect(backend)


def connect(url: str, skip_table_creation: bool = False) -> BaseStorage:
    """A storage, opened as a study needs it; with `skip_table_creation` for reading, and nothing is made where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if (file := journal_of(url)) is not None:
        if not skip_table_creation:
            journal.begin(file)
        return journal.open_journal(file)
    sqlite = not is_server(url)
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True, "creator": dialler(url)}
    try:
        if sqlite and not skip_table_creation:
            _run_pragmas(url, options)
        if sqlite and skip_table_creation:
            _require_there(url)  # SQLite would make an empty one
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


def _require_there(url: str) -> None:
    where = sqlalchemy.make_url(url)
    if where.database and "uri" not in where.query and not Path(where.database).is_file():
        raise StudyError(f"The storage {hidden(url)} must hold a study, but there is no such file; name another, or begin one.")


def _require_tables(url: str) -> None:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, creator=dialler(url))
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


def disconnect(backend: BaseStorage) -> None:
    """Gives every connection back."""
    backend.remove_session()
    if isinstance(backend, RDBStorage):
        backend.engine.dispose()


def persist(action: Callable[[], T]) -> T:
    """Does it, again after a while where the storage does not take it."""
    for pause in PAUSES_S:
        try:
            return action()
        except (*STORAGE_ERRORS, OSError):
            time.sleep(pause)
    try:
        return action()
    except (*STORAGE_ERRORS, OSError) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]  # SQLAlchemy adds the statement, with all that was to be written
        raise NasAttnError(
            f"The study's storage and folder must take writes, but did not for {sum(PAUSES_S):g} s: {cause}; free them, then run the same "
            "command."
        ) from error
