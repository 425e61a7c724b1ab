"""The table of mechanisms as people read it: what each is, costs and needs, as rows, and as the page docs/modules.md."""

import csv
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from nas_attn.blueprint import ModuleRecord
from nas_attn.formula import names_of
from nas_attn.records import MODULES

SIZES = ((64, 80), (128, 40), (256, 20))
"""Channels and side of the map: strides 8, 16 and 32 of a 640 px image, at the widths of a small detector."""

FAMILIES: Mapping[str, str] = {
    "channel": "Weights for whole channels",
    "spatial": "Weights for positions, most of them for channels too",
    "kernel": "Weights from a large kernel",
    "local": "Attention within windows",
    "global": "Every position can see the whole map",
    "block": "Blocks of convolutions",
}
TIMINGS = "timings.csv"
BASE = "yolo11n.yaml"
BASE_SIDE = 640
LIGHT = 0.02
"""The share of the base's latency below which a module is light."""

Timings = Mapping[tuple[str, int], float]
"""Milliseconds of a forward pass by module and channels (of `SIZES`); those of a whole base, for comparison, by its YAML and 0."""


def timings() -> Timings:
    """What `tests/benchmarks/module_timings.py` measured on the reference machine."""
    rows = csv.DictReader(line for line in _timing_lines() if not line.startswith("#"))
    return {(row["name"], int(row["channels"])): float(row["cpu_ms"]) for row in rows}


def light() -> list[str]:
    """The modules that took less than 2 % of the base's latency on the reference machine, at each of the sizes."""
    known = timings()
    most = LIGHT * known[BASE, 0]
    return [name for name in MODULES if all(known.get((name, channels), most) < most for channels, _ in SIZES)]


def machine() -> str:
    """Where and how the timings were measured, in a line."""
    return " ".join(line.lstrip("# ") for line in _timing_lines() if line.startswith("#"))


def rows(measured: Timings | None = None) -> list[dict[str, Any]]:
    """Every mechanism as plain values, JSON-ready; `measured` milliseconds, or those of the reference machine."""
    known = timings() if measured is None else measured
    return [_row(entry, known) for entry in MODULES.values()]


def markdown() -> str:
    """The page docs/modules.md."""
    parts = [
        "# Attention modules",
        "Made by `python tests/benchmarks/module_timings.py --page` from the table that `nas-attn modules` prints; do not edit it.",
        f"Costs are for the defaults, the gate included. {machine()} Your machine decides: `nas-attn modules --measure` times them there.",
        "`ONNX` says what an export can leave open: *dynamic* is batch, height and width. Every module takes any map from 1 x 1 on; where "
        "a constraint does not hold, a search space leaves the module out.",
    ]
    listed = rows()
    for family, title in FAMILIES.items():
        members = [row for row in listed if row["family"] == family]
        parts += [f"## {title}", _cost_table(members), *map(_paragraph, members)]
    return "\n\n".join(parts) + "\n"


def _row(entry: ModuleRecord, known: Timings) -> dict[str, Any]:
    return {
        "name": entry.name,
        "family": entry.family,
        "hyperparameters": {hyper.name: list(hyper.choices) for hyper in entry.hyperparameters},
        "meanings": {hyper.name: hyper.meaning for hyper in entry.hyperparameters},
        "defaults": {hyper.name: hyper.default for hyper in entry.hyperparameters},
        "note": entry.note,
        "paper": f"{entry.paper} ({entry.venue}{f', arXiv {entry.arxiv}' if entry.arxiv else ''})" if entry.paper else "",
        "venue": entry.venue,
        "arxiv": entry.arxiv,
        "reference": entry.reference,
        "licence": entry.licence,
        "gate": entry.gate,
        "onnx": entry.onnx,
        "constraints": [formula for formula, _ in entry.constraints],
        "map_constraints": [formula for formula, _ in entry.map_constraints],
        "needs": _needs(entry),
        "derived": dict(entry.derived),
        "params": entry.params,
        "macs": entry.macs,
        "costs": [_cost(entry, channels, side, known) for channels, side in SIZES],
    }


def _cost(entry: ModuleRecord, channels: int, side: int, known: Timings) -> dict[str, Any]:
    params, macs = _or_none(lambda: entry.parameters(channels, {})), _or_none(lambda: entry.macs_count(channels, side, side, {}))
    return {
        "channels": channels,
        "side": side,
        "params_m": None if params is None else params / 1e6,
        "gmacs": None if macs is None else macs / 1e9,
        "cpu_ms": known.get((entry.name, channels)),
    }


def _needs(entry: ModuleRecord) -> list[str]:
    """What the place of insertion must offer, apart from what hyperparameters must be whatever the place."""
    own = {hyper.name for hyper in entry.hyperparameters}
    return [formula for formula, _ in (*entry.constraints, *entry.map_constraints) if set(names_of(formula)) - own]


def _or_none(count: Callable[[], int | None]) -> int | None:
    """A user's module may not be buildable at every width."""
    try:
        return count()
    except ValueError:
        return None


def _timing_lines() -> list[str]:
    return resources.files("nas_attn").joinpath(TIMINGS).read_text(encoding="utf-8").splitlines()


def _cost_table(members: list[dict[str, Any]]) -> str:
    sizes = [f"{channels} x {side}²" for channels, side in SIZES]
    head = ["module", *(f"k params, {s}" for s in sizes), *(f"GMACs, {s}" for s in sizes), *(f"ms, {s}" for s in sizes), "ONNX"]
    lines = [head, ["---"] * len(head)]
    for row in members:
        costs = row["costs"]
        lines.append(
            [
                f"`{row['name']}`",
                *(number(cost["params_m"], 1e3) for cost in costs),
                *(number(cost["gmacs"]) for cost in costs),
                *(number(cost["cpu_ms"]) for cost in costs),
                row["onnx"],
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, scale: float = 1.0) -> str:
    """Three digits that count; nothing for what is unknown."""
    return "" if value is None else f"{value * scale:.3g}"


def _paragraph(row: dict[str, Any]) -> str:
    lines = [f"### {row['name']}", "", row["note"], "", f"- Source: {row['paper']}{_reference(row)}."]
    lines += [f"- The gate multiplies `{row['gate']}`; parameters `{row['params']}`; multiply-accumulates `{row['macs']}`{_where(row)}."]
    for name, choices in row["hyperparameters"].items():
        values = ", ".join(_plain(value) for value in choices)
        lines.append(f"- `{name}` = {_plain(row['defaults'][name])} (searched: {values}): {row['meanings'][name]}.")
    if needs := [*row["constraints"], *row["map_constraints"]]:
        lines.append(f"- Needs {', '.join(f'`{formula}`' for formula in needs)}.")
    return "\n".join(lines)


def _where(row: dict[str, Any]) -> str:
    named = [f"`{name} = {formula}`" for name, formula in row["derived"].items()]
    return f", where {', '.join(named)}" if named else ""


def _reference(row: dict[str, Any]) -> str:
    return f"; reference {row['reference']}, licence {row['licence']}" if row["reference"] else ""


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
