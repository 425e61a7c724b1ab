"""The trials of one study as rows of Optuna's tables: everything that happens at one moment is one transaction.

Optuna's own functions commit every attribute and constraint by itself, look a trial's identity up before each, ask the database three times
for each parameter of a new trial, and read all RUNNING trials anew at each look: with hundreds of workers that alone takes seconds a trial.
Here the same rows are written, and read, in a few statements. The tables are those of the installed Optuna, which checks their version when
it opens a storage. A storage that is not relational is written through Optuna's own functions, one after the other.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

Change = tuple[int, str, Any]
"""A trial's number, the name of one of its user attributes, and what it becomes."""
_CONSTRAINT = "constraints:"
_UPSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Rows(Protocol):
    """Trials by their numbers; what is written here is written by one driver at a time."""

    def trials(self) -> list[FrozenTrial]:
        """Every trial, by number."""

    def add(self, first: int, templates: Sequence[FrozenTrial]) -> None:
        """New trials with everything in them, numbered from `first` on; again after a lost answer changes nothing."""

    def set(self, changes: Sequence[Change]) -> None:
        """User attributes of RUNNING trials."""

    def finish(
        self, number: int, state: TrialState, values: Sequence[float] | None, user: Mapping[str, Any], constraints: Mapping[str, float]
    ) -> None:
        """Ends a RUNNING trial, user attributes and constraints first; again after a lost answer changes nothing."""


def rows_of(study: optuna.Study, storage: BaseStorage) -> Rows:
    """The trials of a study; `storage` is its storage, without Optuna's cache."""
    return TableRows(study, storage) if isinstance(storage, RDBStorage) and storage.engine.name in _UPSERTS else PlainRows(study, storage)


def running_trial(
    genes: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], user: Mapping[str, Any], system: Mapping[str, Any]
) -> FrozenTrial:
    """A RUNNING trial to be added. Optuna's `create_trial` makes the same, but checks every gene anew, which costs more than writing it."""
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params=dict(genes),
        distributions=dict(distributions),
        user_attrs=dict(user),
        system_attrs=dict(system),
        intermediate_values={},
    )


# -- Optuna's own functions ----------------------------------------------------------------------------------------------------------------


class PlainRows:
    """Rows in any storage that Optuna has."""

    def __init__(self, study: optuna.Study, storage: BaseStorage) -> None:
        self._study, self._storage = study, storage

    def trials(self) -> list[FrozenTrial]:
        """Every trial, by number."""
        return self._study.get_trials(deepcopy=False)

    def add(self, first: int, templates: Sequence[FrozenTrial]) -> None:
        """One after the other; those that are there already are passed over."""
        for template in templates[max(0, len(self.trials()) - first) :]:
            self._study.add_trial(template)

    def set(self, changes: Sequence[Change]) -> None:
        """One after the other."""
        for number, name, value in changes:
            self._storage.set_trial_user_attr(trial_id(self._study, self._storage, number), name, value)

    def finish(
        self, number: int, state: TrialState, values: Sequence[float] | None, user: Mapping[str, Any], constraints: Mapping[str, float]
    ) -> None:
        """The state last: a kill in between leaves the trial RUNNING."""
        if not self._storage.get_trial(trial_id(self._study, self._storage, number)).state.is_finished():
            self.set([(number, name, value) for name, value in user.items()])
            set_constraints(self._study, self._storage, number, constraints)
            self._study.tell(number, None if values is None else list(values), state=state, skip_if_finished=True)


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


# -- tables --------------------------------------------------------------------------------------------------------------------------------


class TableRows:
    """Rows of a relational storage, a transaction a call. The module's header says why."""

    def __init__(self, study: optuna.Study, storage: RDBStorage) -> None:
        from optuna.storages._rdb import models  # Optuna imports them only where they are needed, too

        self._engine, self._study_id = storage.engine, storage.get_study_id_from_name(study.study_name)
        self._models, self._ids = models, dict[int, int]()
        self._study, self._trials, self._params, self._values, self._user, self._system = (
            model.__table__
            for model in (
                models.StudyModel,
                models.TrialModel,
                models.TrialParamModel,
                models.TrialValueModel,
                models.TrialUserAttributeModel,
                models.TrialSystemAttributeModel,
            )
        )

    def add(self, first: int, templates: Sequence[FrozenTrial]) -> None:
        """All of them or none."""
        with self._engine.begin() as connection:
            # A try that was given up may still be about to end on the server; nothing there forbids two trials of one number.
            connection.execute(select(self._study.c.study_id).where(self._study.c.study_id == self._study_id).with_for_update())
            if self._found(connection, first):
                return  # the answer to a former try was lost
            base = {"study_id": self._study_id}
            rows = [
                {
                    **base,
                    "number": number,
                    "state": one.state,
                    "datetime_start": _utc(one.datetime_start),
                    "datetime_complete": _utc(one.datetime_complete),
                }
                for number, one in enumerate(templates, first)
            ]
            if not rows:
                return
            connection.execute(insert(self._trials), rows)
            self._found(connection, first)
            self._fill(connection, {self._ids[number]: one for number, one in enumerate(templates, first)})

    def set(self, changes: Sequence[Change]) -> None:
        """All of them or none."""
        with self._engine.begin() as connection:
            self._put(connection, self._user, [(self._id(connection, number), name, value) for number, name, value in changes])

    def finish(
        self, number: int, state: TrialState, values: Sequence[float] | None, user: Mapping[str, Any], constraints: Mapping[str, float]
    ) -> None:
        """Everything or nothing."""
        with self._engine.begin() as connection:
            own = self._id(connection, number)
            running = (self._trials.c.trial_id == own) & (self._trials.c.state == TrialState.RUNNING)
            ended = {"state": state, "datetime_complete": _utc(datetime.now().astimezone())}
            if connection.execute(update(self._trials).where(running).values(ended)).rowcount == 1:
                self._put(connection, self._user, [(own, name, value) for name, value in user.items()])
                self._put(connection, self._system, [(own, f"{_CONSTRAINT}{name}", value) for name, value in constraints.items()])
                self._add_values(connection, {own: values or ()})

    def trials(self) -> list[FrozenTrial]:
        """Every trial, by number."""
        trials, params = self._trials.c, self._params.c
        with self._engine.connect() as connection:
            columns = (trials.trial_id, trials.number, trials.state, trials.datetime_start, trials.datetime_complete)
            heads = connection.execute(select(*columns).where(trials.study_id == self._study_id).order_by(trials.number)).all()
            genes = self._read(connection, (params.param_name, params.param_value, params.distribution_json))
            values = self._read(connection, (self._values.c.objective, self._values.c.value, self._values.c.value_type))
            user = self._read(connection, (self._user.c.key, self._user.c.value_json))
            system = self._read(connection, (self._system.c.key, self._system.c.value_json))
        self._ids = {number: own for own, number, *_ in heads}
        known: dict[str, BaseDistribution] = {}
        return [self._frozen(head, genes[head[0]], values[head[0]], user[head[0]], system[head[0]], known) for head in heads]

    def _frozen(
        self,
        head: Sequence[Any],
        genes: Iterable[Sequence[Any]],
        values: Iterable[Sequence[Any]],
        user: Iterable[Sequence[Any]],
        system: Iterable[Sequence[Any]],
        known: dict[str, BaseDistribution],
    ) -> FrozenTrial:
        """A trial from its rows; `known` distributions are shared, or they alone would fill the memory."""
        own, number, state, start, complete = head
        params, distributions = {}, {}
        for name, value, text in genes:
            if text not in known:
                known[text] = json_to_distribution(text)
            distributions[name] = known[text]
            params[name] = known[text].to_external_repr(value)
        restore = self._models.TrialValueModel.stored_repr_to_value
        return FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=[restore(value, type_) for _, value, type_ in sorted(values, key=itemgetter(0))] or None,
            datetime_start=_local(start),
            datetime_complete=_local(complete),
            params=params,
            distributions=distributions,
            user_attrs={key: json.loads(text) for key, text in user},
            system_attrs={key: json.loads(text) for key, text in system},
            intermediate_values={},
            trial_id=own,
        )

    def _read(self, connection: Connection, columns: Sequence[Any]) -> Mapping[int, list[Any]]:
        """Some columns of a table that belongs to trials, by the trial's identity, in the order in which they were first written."""
        table = columns[0].table
        own, order = table.c.trial_id, next(iter(table.primary_key))
        query = select(own, *columns).join(self._trials, self._trials.c.trial_id == own).where(self._trials.c.study_id == self._study_id)
        found: dict[int, list[Any]] = defaultdict(list)
        for key, group in groupby(connection.execute(query.order_by(own, order)), key=itemgetter(0)):
            found[key] = [tuple(row[1:]) for row in group]
        return found

    def _found(self, connection: Connection, first: int) -> bool:
        """Whether there are trials from that number on, whose identities are known then."""
        columns = self._trials.c
        query = select(columns.number, columns.trial_id).where(columns.study_id == self._study_id, columns.number >= first)
        found: dict[int, int] = {row[0]: row[1] for row in connection.execute(query)}
        self._ids |= found
        return bool(found)

    def _id(self, connection: Connection, number: int) -> int:
        if number not in self._ids:
            self._found(connection, number)
        return self._ids[number]

    def _fill(self, connection: Connection, trials: Mapping[int, FrozenTrial]) -> None:
        texts: dict[int, str] = {}
        rows = []
        for own, trial in trials.items():
            for name, value in trial.params.items():
                choices = trial.distributions[name]
                text = texts.setdefault(id(choices), "") or distribution_to_json(choices)
                texts[id(choices)] = text
                rows.append(
                    {"trial_id": own, "param_name": name, "param_value": choices.to_internal_repr(value), "distribution_json": text}
                )
        if rows:
            connection.execute(insert(self._params), rows)
        self._put(connection, self._user, [(own, key, value) for own, trial in trials.items() for key, value in trial.user_attrs.items()])
        self._put(
            connection, self._system, [(own, key, value) for own, trial in trials.items() for key, value in trial.system_attrs.items()]
        )
        self._add_values(connection, {own: trial.values or () for own, trial in trials.items()})

    def _add_values(self, connection: Connection, values: Mapping[int, Sequence[float]]) -> None:
        store = self._models.TrialValueModel.value_to_stored_repr
        told = [(own, objective, *store(float(value))) for own, all_ in values.items() for objective, value in enumerate(all_)]
        if told:
            names = ("trial_id", "objective", "value", "value_type")
            connection.execute(insert(self._values), [dict(zip(names, row, strict=True)) for row in told])

    def _put(self, connection: Connection, table: sqlalchemy.Table, changes: Sequence[tuple[int, str, Any]]) -> None:
        """Attributes, over what they were before."""
        if changes:
            statement = _UPSERTS[self._engine.name](table)
            statement = statement.on_conflict_do_update(
                index_elements=["trial_id", "key"], set_={"value_json": statement.excluded.value_json}
            )
            connection.execute(statement, [{"trial_id": own, "key": key, "value_json": json.dumps(value)} for own, key, value in changes])


def _utc(moment: datetime | None) -> datetime | None:
    """As Optuna stores it."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def _local(moment: datetime | None) -> datetime | None:
    """The inverse of `_utc`."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
