"""A search space whose every answer is known already: a table of combinations of genes and what each is worth.

Read from a CSV, or built in memory from arrays. A combination without a row is an invalid one.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas_attn.document import is_file
from nas_attn.errors import InputError, nearest, shown, word
from nas_attn.pareto import SIGNS

_LARGEST_KEY = 2**63 - 1
_MOST_CHOICES = 2**15 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """N distinct combinations of G genes, and their true values in M objectives.

    Raises:
        InputError: shapes that disagree, a code outside its gene's choices, a combination twice, a value that is not finite.
    """

    genes: Mapping[str, tuple[Any, ...]]
    """The choices of every gene: numbers ascending, or strings."""
    codes: NDArray[np.int16]
    """(N, G): the genes of every row as positions within their choices, columns in the order of `genes`."""
    values: Mapping[str, NDArray[np.float64]]
    """Name of an objective -> (N,), in the objective's own unit."""
    directions: Mapping[str, str]
    """Name of an objective -> `maximize` or `minimize`; its order is the order of the objectives."""
    covariances: tuple[NDArray[np.float64], ...] = ()
    """Prior covariances of the effects of every gene's choices for samplers with a model, as in `Candidates`; empty: from the choices."""
    features: NDArray[np.float64] | None = None
    """(N, F): cheap numbers that may explain the objectives, for samplers with a model."""

    def __post_init__(self) -> None:
        # Plain dictionaries: read-only views of them cannot be sent to another process.
        object.__setattr__(self, "genes", {name: tuple(choices) for name, choices in self.genes.items()})
        object.__setattr__(self, "directions", dict(self.directions))
        object.__setattr__(self, "codes", np.asarray(self.codes, dtype=np.int16))
        _check_codes(self)
        object.__setattr__(self, "values", {name: np.asarray(self.values[name], dtype=np.float64) for name in _objectives(self)})
        _check_values(self)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def combinations(self) -> int:
        """The size of the product of all choices, invalid combinations included."""
        return math.prod(len(choices) for choices in self.genes.values())

    def points(self) -> NDArray[np.float64]:
        """(N, M): the true values, columns in the order of `directions`."""
        return np.stack([self.values[name] for name in self.directions], axis=1)

    def places(self) -> NDArray[Any]:
        """(N,): the place of every row among all combinations, the last gene counting fastest.

        64-bit integers, or Python's own where the product is larger than those.
        """
        kind: Any = np.int64 if self.combinations <= _LARGEST_KEY else object
        total: NDArray[Any] = np.zeros(len(self.codes), dtype=kind)
        for column, choices in enumerate(self.genes.values()):
            total = total * len(choices) + self.codes[:, column].astype(kind)
        return total

    def params(self, row: int) -> dict[str, Any]:
        """The genes of a row, by name."""
        return {name: choices[code] for (name, choices), code in zip(self.genes.items(), self.codes[row], strict=True)}


class Lookup:
    """Finds the row of a combination, among any number of rows in about a microsecond."""

    def __init__(self, table: Table) -> None:
        keys = table.places()
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._genes = [(name, {choice: code for code, choice in enumerate(choices)}) for name, choices in table.genes.items()]

    def row(self, params: Mapping[str, Any]) -> int | None:
        """The row of a combination, or None where the table has none."""
        key = 0
        for name, codes in self._genes:
            key = key * len(codes) + codes[params[name]]
        place = int(np.searchsorted(self._keys, key))
        return int(self._order[place]) if place < len(self._keys) and self._keys[place] == key else None


def read_table(path: str | Path, genes: Sequence[str], directions: Mapping[str, str]) -> Table:
    """A table from a CSV with a header: the columns `genes`, and those that `directions` names as objectives.

    A gene whose cells are all numbers keeps them as numbers, ascending; any other is kept as sorted strings.

    Raises:
        InputError: no such file or column, an empty cell, an objective that is no finite number, one combination in two rows.
    """
    frame = _read(Path(path))
    twice = [name for k, name in enumerate(genes) if name in genes[:k]]
    if not genes or not directions or twice or set(genes) & directions.keys():
        raise InputError(
            f"{path}: a table needs genes and objectives, every column once, but got the genes {shown(list(genes))} and the objectives "
            f"{shown(list(directions))}; name each column once, in `--genes`, `--maximize` or `--minimize`."
        )
    for name in (*genes, *directions):
        if name not in frame.columns:
            raise InputError(f"Genes and objectives must be columns of {path}, but {shown(name)} is none. {nearest(name, frame.columns)}")
    try:
        return _table(frame, genes, directions)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV in which no text is a formula to a spreadsheet: those that begin like one begin with an apostrophe."""
    return frame.map(_no_formula).to_csv(index=False, lineterminator="\n")


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _table(frame: pd.DataFrame, genes: Sequence[str], directions: Mapping[str, str]) -> Table:
    columns = {name: _gene(frame[name], name) for name in genes}
    _check_distinct(frame, list(genes), set(directions))
    return Table(
        genes={name: choices for name, (choices, _) in columns.items()},
        codes=np.stack([codes for _, codes in columns.values()], axis=1),
        values={name: _objective(frame[name], name) for name in directions},
        directions=directions,
    )


def _read(path: Path) -> pd.DataFrame:
    if not is_file(path):
        raise InputError(f"A table must be a CSV file, but {path} is no file; give the path of one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # As text: what is a number is decided by the column's role, and a family may be called NA.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except (
        ValueError,
        OSError,
        OverflowError,
        MemoryError,
        pd.errors.ParserWarning,
    ) as error:  # ParserError and EmptyDataError are ValueErrors
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{path}: a table must be a CSV with a header, but it cannot be read: {shown(reason, 200)}; save it again."
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes cells beyond the header's for names of rows
        raise InputError(f"{path}: a row must have a cell for each column, but rows have more cells than the header; remove those cells.")
    if frame.empty:
        raise InputError(f"{path}: a table must have at least one row, but it has none; write rows below the header.")
    short = np.flatnonzero(frame.isna().any(axis=1).to_numpy())
    if len(short):
        raise InputError(
            f"{path}: a row must have a cell for each of the {len(frame.columns)} columns, but {_rows(short)} has fewer; fill it."
        )
    names = [str(name).strip() for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}: every column must have a name of its own, but {shown(twice[0])} is the name of two; rename one.")
    return pd.DataFrame({name: frame[column].str.strip() for name, column in zip(names, frame.columns, strict=True)})


def _gene(column: "pd.Series[Any]", name: str) -> tuple[tuple[Any, ...], NDArray[np.int16]]:
    """The choices of a gene, and every row's position among them."""
    empty = np.flatnonzero((column == "").to_numpy())
    if len(empty):
        raise InputError(f"Every row must have every gene, but {shown(name)} is empty in {_rows(empty)}; fill it or leave the rows out.")
    numbers = _numbers(column)
    finite = bool(np.isfinite(numbers.astype(np.float64)).all())
    choices, codes = np.unique(numbers if finite else column.to_numpy(dtype=str), return_inverse=True)
    return tuple(choices.tolist()), codes.reshape(-1).astype(np.int16)


def _numbers(column: "pd.Series[Any]") -> NDArray[Any]:
    """Whole numbers or fractions, NaN for what is neither."""
    found = pd.to_numeric(column, errors="coerce")
    # Whole numbers beyond 64 bits come as Python's own, of which some are larger than any fraction.
    return pd.to_numeric(column.map(_fraction)).to_numpy() if found.dtype == object else found.to_numpy()


def _fraction(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _objective(column: "pd.Series[Any]", name: str) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = _numbers(column).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise InputError(
            f"The objective {shown(name)} must be a finite number in every row, but got {shown(column.iloc[bad[0]])} in {_rows(bad)}; "
            "leave those rows out (they are then invalid combinations) or choose another objective."
        )
    return numbers


def _rows(indices: NDArray[np.intp]) -> str:
    """`row 3 and 11 more`: rows counted from 1, the header not among them."""
    return f"row {int(indices[0]) + 1}" + (f" and {len(indices) - 1} more" if len(indices) > 1 else "")


def _check_distinct(frame: pd.DataFrame, genes: list[str], objectives: set[str]) -> None:
    """Every combination stands in one row; else the error names a column that tells the rows apart."""
    # Compared as numbers where they are numbers: 1 and 1.0 are one choice.
    coded = pd.DataFrame({name: _gene(frame[name], name)[1] for name in genes})
    again = coded.duplicated(keep="first").to_numpy()
    if not again.any():
        return
    second = int(np.flatnonzero(again)[0])
    first = int(np.flatnonzero((coded == coded.iloc[second]).all(axis=1).to_numpy())[0])
    others = [name for name in frame.columns if name not in objectives and name not in genes]
    apart = [name for name in others if not coded.assign(**{"": frame[name]}).duplicated().any()]
    found = min(apart, key=lambda name: len(set(frame[name]))) if apart else None
    remedy = f"add the gene {shown(found)}, which tells them apart" if found else "average them or leave one out"
    text = ", ".join(f"{word(name)}={word(frame[name].iloc[second])}" for name in genes)
    raise InputError(
        f"A combination of genes must stand in one row, but {text} stands in rows {first + 1} and {second + 1} "
        f"({int(again.sum())} rows repeat another); {remedy}."
    )


def _objectives(table: Table) -> list[str]:
    if not table.directions or table.directions.keys() != table.values.keys() or not set(table.directions.values()) <= SIGNS.keys():
        raise InputError(
            f"Every objective needs its values and a direction of {sorted(SIGNS)}, but got values of {sorted(table.values)} and "
            f"the directions {dict(table.directions)}."
        )
    return list(table.directions)


def _check_codes(table: Table) -> None:
    sizes = [len(choices) for choices in table.genes.values()]
    if table.codes.ndim != 2 or table.codes.shape[1] != len(sizes) or not sizes or len(table.codes) == 0:
        raise InputError(f"The codes of a table must have a column for each of the genes {list(table.genes)}, but are {table.codes.shape}.")
    if max(sizes) > _MOST_CHOICES:
        raise InputError(f"A gene can have {_MOST_CHOICES} choices, but got {max(sizes)}; is one of {list(table.genes)} a measurement?")
    if np.any(table.codes < 0) or np.any(table.codes >= np.array(sizes)):
        raise InputError(f"A code must be a position within its gene's choices, of which there are {sizes}, but some lie outside.")
    # Sorting a few hundred thousand keys takes milliseconds; unlike a set it needs no memory worth mention.
    keys = np.sort(table.places())
    if np.any(keys[1:] == keys[:-1]):
        raise InputError(f"Every row of a table must be another combination, but {int(np.sum(keys[1:] == keys[:-1]))} repeat one.")


def _check_values(table: Table) -> None:
    for name, column in table.values.items():
        if column.shape != (len(table),) or not np.isfinite(column).all():
            raise InputError(f"The objective {name!r} must be {len(table)} finite numbers, one a row, but got the shape {column.shape}.")
