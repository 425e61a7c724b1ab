"""What a search chooses: attention modules placed after rows of a base, as frozen, sorted, hashable values."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas_attn.errors import SpaceError, shown

Param = bool | int | float
"""A hyperparameter's value. A float below 1 is a fraction of the site's channels, which keeps a placement portable over scales."""


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """One attention module after one row of the *base* YAML, so that placements never depend on each other.

    `params` holds every hyperparameter of the module, sorted by name.
    """

    layer: int
    module: str
    params: tuple[tuple[str, Param], ...] = ()

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise SpaceError(f"`layer >= 0` must hold, but got {self.layer=}; give a row of the base YAML.")
        object.__setattr__(self, "params", tuple(sorted(self.params)))

    def __str__(self) -> str:
        values = ", ".join(f"{name}={_text(value)}" for name, value in self.params)
        return f"{self.module}({values})@{self.layer}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"layer": self.layer, "module": self.module, "params": dict(self.params)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Placement":
        """The inverse of `to_dict`."""
        placed = cls(layer=data["layer"], module=data["module"], params=tuple(data["params"].items()))
        names, values = (placed.module, *(name for name, _ in placed.params)), [value for _, value in placed.params]
        if not all(isinstance(name, str) and name.isidentifier() for name in names) or not {*map(type, values)} <= {bool, int, float}:
            raise SpaceError(f"A placement names a module and its numbers by plain words, but got {shown(dict(data))}; discard the record.")
        return placed


def _text(value: Param) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


@dataclass(frozen=True, slots=True, order=True)
class Architecture:
    """A base and its placements, sorted by row, at most one a row; no placements is the base itself."""

    base: str
    placements: tuple[Placement, ...] = ()

    def __post_init__(self) -> None:
        placements = tuple(sorted(self.placements))
        rows = [p.layer for p in placements]
        if len(set(rows)) != len(rows):
            raise SpaceError(f"At most one module may follow a row, but got rows {rows}; drop one of the placements.")
        object.__setattr__(self, "placements", placements)

    def __str__(self) -> str:
        return " + ".join(map(str, self.placements)) or "base"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"base": self.base, "placements": [p.to_dict() for p in self.placements]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Architecture":
        """The inverse of `to_dict`."""
        return cls(base=data["base"], placements=tuple(Placement.from_dict(p) for p in data["placements"]))

    def to_json(self) -> str:
        """The canonical text: equal architectures give equal text, whatever order they were written in."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """Sixteen hexadecimal digits that name this architecture in folders and records."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
