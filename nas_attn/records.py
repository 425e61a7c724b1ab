"""The table of attention mechanisms by name, a user's own among them.

The search space, the command line's list and the conformance tests iterate over `MODULES`; a constructor and a space ask the same
predicate, `ModuleRecord.violations`, so that what a space admits is what can be built.
"""

import itertools
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from nas_attn.blueprint import ModuleRecord
from nas_attn.catalog import block, channel, seed, spatial, wide, windowed
from nas_attn.errors import SpaceError, nearest


def _table(records: Iterable[ModuleRecord]) -> dict[str, ModuleRecord]:
    """The records by name; two of one name would hide each other."""
    table: dict[str, ModuleRecord] = {}
    for entry in records:
        if entry.name in table:
            raise SpaceError(f"Every record must have a name of its own, but got a second {entry.name!r}; rename one.")
        table[entry.name] = entry
    return table


_TABLE = _table(itertools.chain(seed.RECORDS, channel.RECORDS, spatial.RECORDS, wide.RECORDS, windowed.RECORDS, block.RECORDS))

MODULES: Mapping[str, ModuleRecord] = MappingProxyType(_TABLE)
"""Every mechanism by its name."""


def record(name: str) -> ModuleRecord:
    """The record of that name. Raises SpaceError with the nearest known names."""
    if name not in MODULES:
        raise SpaceError(f"A module must be in the table, but got {name!r}; {nearest(name, MODULES)}")
    return MODULES[name]


def family(name: str) -> str:
    """The family of a mechanism; one that is not in the table, because a user's module was not imported here, is a family by itself."""
    return MODULES[name].family if name in MODULES else name


def adopt(entry: ModuleRecord) -> None:
    """Add a user's record; the same class again, as after a reload, replaces it.

    Raises:
        SpaceError: the table has another module of that name.
    """
    known = _TABLE.get(entry.name)
    if known is not None and known.target != entry.target:
        raise SpaceError(f"A module's name must be free, but {entry.name!r} is {known.target} already; rename {entry.target}.")
    _TABLE[entry.name] = entry
