"""Two studies side by side: what each says to take, their fronts over the same axes, and whether placements do the same in both.

Sites are matched by name (`P4`, `neck_P3_out`), which mean the same in another scale or family; rows need not.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nas_attn import answer, charts, facts, sketch
from nas_attn.columns import front_table, table
from nas_attn.effects import Effect
from nas_attn.outcome import Snapshot
from nas_attn.page import Study, embedded, plotly_script, template, with_words
from nas_attn.report import study
from nas_attn.subject import masked

LEAST_SHARED = 4
"""Shared placements below which a rank correlation says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A placement that both studies tried: what it is worth in each, in mAP50-95, and whether their 90 % intervals overlap."""

    site: str
    module: str
    first: Effect
    second: Effect

    @property
    def agrees(self) -> bool:
        """Whether the 90 % intervals overlap."""
        return self.first.gain_low <= self.second.gain_high and self.second.gain_low <= self.first.gain_high


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two studies and the placements that both tried; `correlation` is Spearman's of their gains, None below `LEAST_SHARED`."""

    first: Study
    second: Study
    pairs: tuple[Pair, ...]
    correlation: float | None


def compare(first: Snapshot, second: Snapshot) -> Comparison:
    """Works out both studies, and what they share."""
    left, right = study(first), study(second)
    ours, theirs = _cells(left), _cells(right)
    pairs = tuple(Pair(site=key[0], module=key[1], first=ours[key], second=theirs[key]) for key in sorted(ours.keys() & theirs.keys()))
    return Comparison(first=left, second=right, pairs=pairs, correlation=_correlation(pairs))


def words(compared: Comparison) -> list[str]:
    """What the comparison says, a line each, for a terminal."""
    lines = [f"{_name(one)}: {(told := _answer(one)).headline}. {told.sentence}" for one in (compared.first, compared.second)]
    return [*lines, _shared(compared)]


def page(compared: Comparison) -> str:
    """The comparison as one HTML document that fetches nothing."""
    studies = [_told(one) for one in (compared.first, compared.second)]
    figures = _alike([one["chart"] for one in studies])
    context = {
        "studies": studies,
        "pairs": compared.pairs,
        "shared": _shared(compared),
        "differences": _differences(compared),
        "plotly": plotly_script(),
        "study_json": embedded(
            {
                "charts": {f"front-{number}": figure for number, figure in enumerate(figures) if figure},
                "trials": {},
                "steps": [],
                "tables": {},
                "labels": {},
                "options": [],
                "interactions": [],
                "base": None,
                "shown": None,
            }
        ),
    }
    return template("compare.html.j2").render(context)


def _cells(one: Study) -> Mapping[tuple[str, str], Effect]:
    return {(one.drawing.label(cell.row), cell.module): cell for cell in (one.atlas.cells if one.atlas else ())}


def _correlation(pairs: Sequence[Pair]) -> float | None:
    if len(pairs) < LEAST_SHARED:
        return None
    found = pd.Series([p.first.gain for p in pairs]).corr(pd.Series([p.second.gain for p in pairs]), method="spearman")
    return None if math.isnan(found) else float(found)


def _name(one: Study) -> str:
    return one.snapshot.name


def _answer(one: Study) -> answer.Answer:
    return answer.answer(one.snapshot, one.believed, one.drawing)


def _shared(compared: Comparison) -> str:
    pairs, count = compared.pairs, len(compared.pairs)
    if not pairs:
        return "No placement was tried in both studies (or one of them is too small for a model), so their atlases do not compare."
    agree = sum(pair.agrees for pair in pairs)
    same = sum((pair.first.gain > 0) == (pair.second.gain > 0) for pair in pairs)
    spread = statistics.fmean(abs(pair.first.gain - pair.second.gain) for pair in pairs)
    text = (
        f"{count} placement{'s were' if count > 1 else ' was'} tried in both: of {agree} the 90 % intervals overlap, {same} have the same "
        f"sign, and the effects differ by {spread:.4f} mAP50-95 in the mean."
    )
    if compared.correlation is not None:
        text += f" Spearman's correlation of the effects is {compared.correlation:+.2f}."
    return text


def _told(one: Study) -> dict[str, Any]:
    snapshot, cells = one.snapshot, one.atlas.cells if one.atlas else ()
    rows, members = with_words(snapshot, table(snapshot)), with_words(snapshot, front_table(snapshot))
    return {
        "name": snapshot.name,
        "answer": _answer(one),
        "base": facts.base_score(snapshot),
        "sigma": facts.sigma(snapshot),
        "detectable": one.believed.detectable if one.believed else None,
        "measured": sum(row["kind"] == "measured" for row in rows),
        "trials": len(rows),
        "chart": charts.front(snapshot, rows, members, one.believed),
        "atlas": sketch.atlas(one.drawing, cells, sketch.scales(cells)["gain"]) if cells else "",
    }


def _alike(figures: Sequence[charts.Chart | None]) -> list[charts.Chart | None]:
    """The figures with the same ends of their axes, so that they compare by eye."""
    drawn = [figure for figure in figures if figure]
    ends = {}
    for axis in ("x", "y"):
        seen = [value for figure in drawn for trace in figure["data"] if trace.get("yaxis") != "y2" for value in trace[axis]]
        margin = 0.06 * ((max(seen) - min(seen)) or 0.1) if seen else 0.0
        ends[axis] = [min(seen) - margin, max(seen) + margin] if seen else None

    def same(figure: charts.Chart) -> charts.Chart:
        layout = figure["layout"]
        axes = {f"{axis}axis": {**layout[f"{axis}axis"], "range": ends[axis]} for axis in ("x", "y")}
        return {**figure, "layout": {**layout, **axes}}

    return [same(figure) if figure else None for figure in figures]


def _differences(compared: Comparison) -> list[tuple[str, str, str]]:
    """Settings in which the studies differ: name, here, there."""
    ours, theirs = (_flat(one.snapshot.settings) for one in (compared.first, compared.second))
    names = sorted(ours.keys() | theirs.keys())
    return [(name, ours.get(name, "–"), theirs.get(name, "–")) for name in names if ours.get(name) != theirs.get(name)]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif name not in ("command", "folder"):
            found[f"{prefix}{name}"] = masked(str(value))[:200]
    return found
