"""Two studies side by side: what each says to take, their fronts over the same axes, and whether placements do the same in both.

Scores of other data do not compare, so fronts are drawn as gains over each study's own base. Sites are matched by name (`P4`,
`neck_P3_out`), which mean the same in another scale or family; rows do so only in bases that are alike.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from nas_attn import answer, charts, facts, sketch
from nas_attn.claim import Claim
from nas_attn.columns import Row, front_table, table
from nas_attn.effects import Effect
from nas_attn.outcome import Snapshot
from nas_attn.page import Study, embedded, plotly_script, template, with_words
from nas_attn.posterior import Posterior
from nas_attn.report import study
from nas_attn.subject import masked

POINTS = 100.0
"""Points of mAP50-95 are hundredths, as papers give it."""
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
    """Two studies and the placements that both tried; `correlation` is Spearman's of their gains, None below `LEAST_SHARED`.

    `unnamed` counts the placements of both after rows without a site's name, where the bases differ, so that no row tells which is which.
    """

    first: Study
    second: Study
    pairs: tuple[Pair, ...]
    correlation: float | None
    unnamed: int = 0


def compare(first: Snapshot, second: Snapshot) -> Comparison:
    """Works out both studies, and what they share."""
    return beside(study(first), study(second))


def beside(left: Study, right: Study) -> Comparison:
    """What two studies that are worked out share."""
    alike = _alike_rows(left, right)
    ours, theirs = _cells(left, alike), _cells(right, alike)
    pairs = tuple(
        Pair(site=left.drawing.label(ours[key].row), module=key[1], first=ours[key], second=theirs[key])
        for key in ours.keys() & theirs.keys()
    )
    pairs = tuple(sorted(pairs, key=lambda pair: (pair.site, pair.module)))
    unnamed = sum(len(_atlas(one)) for one in (left, right)) - len(ours) - len(theirs)
    return Comparison(first=left, second=right, pairs=pairs, correlation=_correlation(pairs), unnamed=unnamed)


def words(compared: Comparison) -> list[str]:
    """What the comparison says, a line each, for a terminal."""
    lines = [f"{_name(one)}: {(told := _answer(one)).headline}. {told.sentence}" for one in (compared.first, compared.second)]
    return [*lines, _shared(compared)]


def page(compared: Comparison) -> str:
    """The comparison as one HTML document that fetches nothing."""
    both = (compared.first, compared.second)
    scale = sketch.scales([cell for one in both for cell in _atlas(one)])["gain"]
    studies = [_told(one, scale) for one in both]
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


def _atlas(one: Study) -> Sequence[Effect]:
    return one.atlas.cells if one.atlas else ()


def _alike_rows(left: Study, right: Study) -> bool:
    """Whether a row is the same place in both bases: the same modules in the same order (scales may differ); of bases without a drawing
    only the name is known.
    """
    if left.drawing.drawn and right.drawing.drawn:
        ours, theirs = ([(node.row, node.module, node.sources) for node in one.drawing.nodes] for one in (left, right))
        return ours == theirs
    names = [{trial.architecture.base for trial in one.snapshot.trials} for one in (left, right)]
    return names[0] == names[1]


def _cells(one: Study, alike: bool) -> Mapping[tuple[int | str, str], Effect]:
    """The atlas by what is compared: the row where rows are `alike`, else the site's name; rows without a name are left out then."""
    named = {node.row: node.label for node in one.drawing.nodes if node.names}
    return {(cell.row if alike else named[cell.row], cell.module): cell for cell in _atlas(one) if alike or cell.row in named}


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
    unnamed = ""
    if compared.unnamed:
        unnamed = f" {compared.unnamed} effects after rows without a site's name are not matched, because the bases differ."
    if not pairs:
        return (
            f"No placement was tried in both studies (or one of them is too small for a model), so their atlases do not compare.{unnamed}"
        )
    agree = sum(pair.agrees for pair in pairs)
    same = sum((pair.first.gain > 0) == (pair.second.gain > 0) for pair in pairs)
    spread = statistics.fmean(abs(pair.first.gain - pair.second.gain) for pair in pairs)
    text = (
        f"{count} placement{'s were' if count > 1 else ' was'} tried in both: of {agree} the 90 % intervals overlap, {same} have the same "
        f"sign, and the effects differ by {POINTS * spread:.2f} points of mAP50-95 in the mean."
    )
    if compared.correlation is not None:
        text += f" Spearman's correlation of the effects is {compared.correlation:+.2f}."
    return text + unnamed


def _told(one: Study, scale: sketch.Scale) -> dict[str, Any]:
    snapshot, cells = one.snapshot, _atlas(one)
    rows = table(snapshot)
    return {
        "name": snapshot.name,
        "answer": _answer(one),
        "base": facts.base_score(snapshot),
        "sigma": facts.sigma(snapshot),
        "detectable": one.believed.detectable if one.believed else None,
        "measured": sum(row["kind"] == "measured" for row in rows),
        "trials": len(rows),
        "chart": _gains(one),
        "atlas": sketch.atlas(one.drawing, cells, scale) if cells else "",
    }


def _gains(one: Study) -> charts.Chart | None:
    """The front of a report, in points over the study's base in place of scores; None without a gain."""
    snapshot, center = one.snapshot, facts.base_score(one.snapshot)
    rows, members = (_over_base(with_words(snapshot, found)) for found in (table(snapshot), front_table(snapshot)))
    figure = charts.front(snapshot, rows, members, None if one.believed is None else _claimed(one.believed))
    if figure is None or center is None:
        return None
    layout = figure["layout"]
    shapes = [  # but for the base's line, which is drawn from its claim: a gain already
        shape if shape["type"] == "line" else {**shape, **{end: POINTS * (shape[end] - center) for end in ("y0", "y1")}}
        for shape in layout["shapes"]
    ]
    said = {**layout["yaxis"], "title": {"text": "gain over the base, points of mAP50-95"}, "tickformat": ".1f"}
    return {"data": [_said(trace) for trace in figure["data"]], "layout": {**layout, "yaxis": said, "shapes": shapes}}


def _over_base(rows: Iterable[Row]) -> list[Row]:
    return [{**row, "map50_95": None if row["gain"] is None else POINTS * row["gain"]} for row in rows]


def _claimed(believed: Posterior) -> Posterior:
    return replace(believed, members=tuple(replace(member, claim=_gain(member.claim)) for member in believed.members))


def _gain(claim: Claim) -> Claim:
    gain, low, high = POINTS * claim.gain, POINTS * claim.gain_low, POINTS * claim.gain_high
    return replace(claim, mean=gain, low=low, high=high, gain=gain, gain_low=low, gain_high=high)


def _said(trace: charts.Chart) -> charts.Chart:
    hover = {name: trace[name].replace("%{y:.4f}", "%{y:+.2f} points") for name in ("hovertemplate",) if name in trace}
    return {**trace, **hover}


def _alike(figures: Sequence[charts.Chart | None]) -> list[charts.Chart | None]:
    """The figures with the same ends of their axes, so that they compare by eye; no mark, bar or band is cut."""
    drawn = [figure for figure in figures if figure]
    ends = {}
    for axis in ("x", "y"):
        seen = [value for figure in drawn for value in _reached(figure, axis)]
        margin = 0.06 * ((max(seen) - min(seen)) or 0.1) if seen else 0.0
        ends[axis] = [min(seen) - margin, max(seen) + margin] if seen else None

    def same(figure: charts.Chart) -> charts.Chart:
        layout = figure["layout"]
        axes = {f"{axis}axis": {**layout[f"{axis}axis"], "range": ends[axis]} for axis in ("x", "y")}
        return {**figure, "layout": {**layout, **axes}}

    return [same(figure) if figure else None for figure in figures]


def _reached(figure: charts.Chart, axis: str) -> list[float]:
    """Where a figure's marks, the ends of their bars and its band stand along an axis; marks on an axis of their own stand anywhere."""
    found = [y for shape in figure["layout"]["shapes"] if axis == "y" and shape.get("yref") != "paper" for y in (shape["y0"], shape["y1"])]
    for trace in figure["data"]:
        if axis == "x" or trace.get("yaxis") != "y2":
            bars, values = trace.get(f"error_{axis}", {}), trace[axis]
            none = [0.0] * len(values)
            found += [value - bar for value, bar in zip(values, bars.get("arrayminus", none), strict=True)]
            found += [value + bar for value, bar in zip(values, bars.get("array", none), strict=True)]
    return found


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
