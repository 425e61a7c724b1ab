"""The picture of a study: its answer, and accuracy against latency with the noise of both, as a PNG.

Where a model of all trials expects a front, that is what is labelled: the observed one's winners are partly luck. The same rows give the
same bytes. Light background on purpose: the file is pasted into pages whose theme is not known.
"""

import io
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from nas_attn import facts
from nas_attn.claim import SURE
from nas_attn.columns import Row, in_plane, plane_front, short
from nas_attn.outcome import Snapshot
from nas_attn.posterior import Member, Posterior

INK, GREY, _FAINT, _BLUE, _BAND = "#1f2937", "#6b7280", "#9ca3af", "#2563eb", "#eef1f5"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": "#d1d5db",
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is drawn: `dots` are trials as observed; `marks`, which have labels, the front that is `expected`, or else observed, without the
    base; `line` are those of the front, the base among them, that form it in this plane. Rows of an expected front have their mean as
    `map50_95`, and `low`, `high` and `sure` besides.
    """

    dots: tuple[Row, ...]
    marks: tuple[Row, ...]
    base: Row | None
    line: tuple[Row, ...]
    expected: bool
    members: int

    @property
    def labelled(self) -> list[Row]:
        """The marks and the base."""
        return [*self.marks, *([self.base] if self.base else [])]


def picture(
    snapshot: Snapshot, rows: Sequence[Row], front: Sequence[Row], believed: Posterior | None = None, told: tuple[str, str] = ("", "")
) -> bytes:
    """The front as a PNG under the answer that is `told`, a headline and a reason: all trials, the front with its labels and intervals, the
    base and the band of its noise. The front is what is `believed`; `front`, the observed one, where nothing is.
    """
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a study's name may be in any script
        buffer = io.BytesIO()
        figure = draw(snapshot, in_plane(rows), in_plane(front), believed, told)
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def draw(
    snapshot: Snapshot, points: Sequence[Row], members: Sequence[Row], believed: Posterior | None = None, told: tuple[str, str] = ("", "")
) -> Figure:
    """The figure of `picture`, for rows that have a score and a latency."""
    figure = Figure(figsize=(9.6, 6.0), dpi=160)
    canvas = FigureCanvasAgg(figure)
    scene = _scene(snapshot, points, members, believed)
    bottom, top = _words(figure, snapshot, scene, len(points), told)
    ax = figure.add_axes((0.085, bottom, 0.825, top - bottom))
    _frame(ax, snapshot.objectives)
    if points:
        _limits(ax, scene, snapshot)
        _draw(ax, snapshot, scene)
        _label(canvas, ax, snapshot, scene)
    else:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "No trial has been measured yet.", ha="center", va="center", color=GREY, transform=ax.transAxes)
    return figure


def _scene(snapshot: Snapshot, points: Sequence[Row], members: Sequence[Row], believed: Posterior | None) -> Scene:
    trial = facts.base_trial(snapshot)
    number, shown = trial.number if trial else None, {row["number"]: row for row in points}
    expected = believed is not None and set(snapshot.objectives) == {"map50_95", "latency_ratio"}
    front, base = list(members), shown.get(number)
    if expected and believed is not None:
        told = {member.trial.number: member for member in believed.members}
        believed_of = {key: _believed(row, told[key]) for key, row in shown.items() if key in told}
        front = [believed_of[member.trial.number] for member in believed.front if member.trial.number in believed_of]
        base = believed_of.get(number, base)
    marks = tuple(row for row in front if row["number"] != number)
    aside = {number} if expected else {number, *(row["number"] for row in marks)}
    return Scene(
        dots=tuple(row for row in points if row["number"] not in aside),
        marks=marks,
        base=base,
        line=tuple(plane_front(front)),
        expected=expected,
        members=len(front),
    )


def _believed(row: Row, member: Member) -> Row:
    """A row with what is expected of it; its interval is that of the gain, for what is uncertain about the base is shared by all."""
    claim = member.claim
    ends = {"low": claim.mean - (claim.gain - claim.gain_low), "high": claim.mean + (claim.gain_high - claim.gain)}
    return {**row, "map50_95": claim.mean, "sure": member.sure, **ends}


def _frame(ax: Axes, objectives: Mapping[str, str]) -> None:
    ax.set_xlabel("latency, ratio to the base  (faster to the left)", labelpad=7)
    ax.set_ylabel("mAP50-95", labelpad=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#f0f1f3", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, pad=6)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    further = sorted(objectives.keys() - {"map50_95", "latency_ratio"})
    if further:
        text = f"members under the line are on the front for {', '.join(further)}"
        ax.text(0.995, 0.045, text, ha="right", fontsize=8, color=GREY, transform=ax.transAxes)


def _words(figure: Figure, snapshot: Snapshot, scene: Scene, points: int, told: tuple[str, str]) -> tuple[float, float]:
    """Writes the answer over the axes and the notes under them; gives where the axes may begin and end."""
    counts = Counter(t.kind or "running" for t in snapshot.trials)
    headline, reason = told[0] or "Accuracy against latency", re.split(r"(?<=\.) (?=[A-Z])", told[1])[0]
    title = textwrap.wrap(headline, 56) if len(headline) <= 56 else textwrap.wrap(headline, 78, max_lines=2, placeholder=" …")
    figure.text(0.085, 0.97, "\n".join(title), fontsize=15 if len(headline) <= 56 else 11.5, weight="bold", va="top", linespacing=1.2)
    name, kind = textwrap.shorten(snapshot.name, 60, placeholder=" …"), "expected" if scene.expected else "observed"
    lines = textwrap.wrap(reason, 112, max_lines=2, placeholder=" …")
    lines.append(f"{name}: {scene.members} of {points} measured architectures on the {kind} front")
    under = 0.965 - 0.034 * len(title) - 0.018
    figure.text(0.085, under, "\n".join(lines), color=GREY, va="top", linespacing=1.35)
    others = [f"{counts[k]} {text}" for k, text in _BESIDES.items() if counts[k]]
    notes = [*(_EXPECTED if scene.expected else _OBSERVED), *([f"Besides: {', '.join(others)}."] if others else [])]
    bottom = max(0.165, 0.125 + 0.02 * len(notes))
    figure.text(0.085, bottom - 0.095, "\n".join(notes), fontsize=8, color=GREY, linespacing=1.4, va="top")
    return bottom, min(0.84, under - 0.034 * len(lines) - 0.03)


_EXPECTED = [
    f"Squares: the front that a model of all trials expects; bars: 90 % of the gain; filled: P(beats the base) of {SURE} or more.",
    "Grey: single trials as observed, lucky and unlucky; hollow: timed without a quiet moment. Bars across: 95 % interval of latency.",
]
_OBSERVED = ["Blue: the observed front, lucky trials among it. Hollow: timed without a quiet moment. Bars: 95 % interval of latency."]
_BESIDES = {
    "rejected": "rejected by a limit (red ticks, where in range)",
    "stopped": "stopped early",
    "failure": "failed",
    "running": "running",
}


def _limits(ax: Axes, scene: Scene, snapshot: Snapshot) -> None:
    noise, center = facts.sigma(snapshot) or 0.0, facts.base_score(snapshot)
    barred = scene.labelled if scene.expected else [*scene.labelled, *scene.dots]
    xs = [r["latency_ratio"] for r in scene.dots] + [x for r in barred for x in _across(r)]
    ys = [r["map50_95"] for r in scene.dots] + [y for r in scene.labelled for y in _upright(r)]
    ys += [center - noise, center + noise] if center is not None else []
    width, height = max(max(xs) - min(xs), 0.05), max(max(ys) - min(ys), 0.01)
    ax.set_xlim(min(xs) - 0.13 * width, min(xs) + 1.05 * width)
    ax.set_ylim(min(ys) - 0.10 * height, min(ys) + 1.16 * height)


def _across(row: Row) -> tuple[float, float]:
    """The ends of a row's interval of latency; its latency twice where it has none."""
    if row["latency_low"] is None:
        return row["latency_ratio"], row["latency_ratio"]
    return min(row["latency_low"], row["latency_ratio"]), max(row["latency_high"], row["latency_ratio"])


def _upright(row: Row) -> tuple[float, float]:
    """The ends of the interval of a row's expected score; its score twice where it is an observation."""
    return (row["low"], row["high"]) if "low" in row else (row["map50_95"], row["map50_95"])


def _draw(ax: Axes, snapshot: Snapshot, scene: Scene) -> None:
    noise, center = facts.sigma(snapshot), facts.base_score(snapshot)
    if center is not None:
        ax.axhspan(center - (noise or 0), center + (noise or 0), color=_BAND, zorder=0.5, linewidth=0)
        ax.axhline(center, color=_FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.text(1.012, center, "base ± 1σ" if noise else "base", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color=GREY)
    if len(scene.line) > 1:
        x, y = [r["latency_ratio"] for r in scene.line], [r["map50_95"] for r in scene.line]
        ax.step([*x, ax.get_xlim()[1]], [*y, y[-1]], where="post", color=_BLUE, linewidth=1.6, alpha=0.32, zorder=3)
    for row in scene.dots:
        _mark(ax, row, (_FAINT, "o", 20, 0.8), barred=not scene.expected)
    for row in scene.marks:
        _mark(ax, row, (_BLUE, "s" if scene.expected else "o", 48, 1.3))
    if scene.base:
        _mark(ax, scene.base, (INK, "D", 62, 1.3))
    low, high = ax.get_xlim()
    ratios = [facts.metric(t, "latency_ratio") for t in snapshot.trials if t.kind == "rejected"]
    over = [ratio for ratio in ratios if ratio is not None and low <= ratio <= high]
    ax.plot(over, [0.014] * len(over), "|", color="#dc2626", markersize=8, alpha=0.7, transform=ax.get_xaxis_transform(), zorder=4)


def _mark(ax: Axes, row: Row, look: tuple[str, str, float, float], barred: bool = True) -> None:
    color, shape, size, thick = look
    x, y = row["latency_ratio"], row["map50_95"]
    if barred:
        (left, right), (low, high) = _across(row), _upright(row)
        reach: Any = {"xerr": [[x - left], [right - x]], "yerr": [[y - low], [high - y]] if low < high else None}
        faint = 0.4 if color == _FAINT else 0.9
        ax.errorbar(x, y, **reach, fmt="none", color=color, linewidth=thick, capsize=2.5 * thick, alpha=faint, zorder=2 + thick)
    hollow = not row["sure"] if "sure" in row else row["latency_quality"] == "ungated"
    face = "white" if hollow else color
    ax.scatter(x, y, s=size, marker=shape, facecolor=face, edgecolor=color if hollow else "white", linewidth=1.0, zorder=4 + thick)


def _label(canvas: FigureCanvasAgg, ax: Axes, snapshot: Snapshot, scene: Scene) -> None:
    """Label the members and the base, each where it covers nothing: its modules if there is room, else its number, else nothing."""
    names = {t.number: short(t.architecture) for t in snapshot.trials}
    dots = [_box(ax, (row["latency_ratio"],) * 2, (row["map50_95"],) * 2) for row in scene.dots]
    bars = [box for row in scene.labelled for box in _cross(ax, row)]
    written: list[Bbox] = []
    for row in sorted(scene.labelled, key=lambda r: (-r["map50_95"], r["number"])):
        name = names[row["number"]]
        others = [_box(ax, (r["latency_ratio"],) * 2, (r["map50_95"],) * 2) for r in scene.labelled if r is not row]
        for text in ("base",) if name == "base" else (_wrapped(f"#{row['number']} {name}"), f"#{row['number']}"):
            covered = _place(canvas, ax, row, text, [*dots, *bars, *written], [*dots, *others, *written])
            if covered:
                written += covered
                break


def _cross(ax: Axes, row: Row) -> list[Bbox]:
    """What the mark and the bars of a row cover; bars of trials that are not on the front may be written over."""
    return [
        _box(ax, _across(row), (row["map50_95"],) * 2),
        _box(ax, (row["latency_ratio"],) * 2, _upright(row)),
    ]


def _box(ax: Axes, across: tuple[float, ...], upright: tuple[float, ...]) -> Bbox:
    """A rectangle of the plane in pixels, with a margin."""
    (x0, y0), (x1, y1) = ax.transData.transform([(across[0], upright[0]), (across[1], upright[1])])
    return Bbox.from_extents(x0 - 9, y0 - 9, x1 + 9, y1 + 9)


def _wrapped(text: str) -> str:
    return text.replace(" + ", "\n+ ") if len(text) > 26 else text


# Where a label may stand, best first, in points from the mark, and which side of it faces the mark: 0 left, 0.5 middle, 1 right.
# Up and to the left comes first: that side of a front is empty.
_AROUND = ((-1, 1, 1.0), (0, 1, 0.5), (1, -1, 0.0), (0, -1, 0.5), (1, 1, 0.0), (-1, -1, 1.0), (-2, 0.4, 1.0), (-3, 1.5, 1.0))
_NEAR = 5  # the rest would stand closer to a neighbour than to the mark, unless a leader tells whose it is
_SPOTS = tuple((6 * dx * far, 7 * dy * far, side, far > 1) for far in (1.0, 2.6, 4.4, 6.5) for dx, dy, side in _AROUND)
_ALIGN = {0.0: "left", 0.5: "center", 1.0: "right"}


def _place(canvas: FigureCanvasAgg, ax: Axes, row: Row, text: str, full: Sequence[Bbox], barred: Sequence[Bbox]) -> list[Bbox]:
    """Write `text` at the first free spot, off the boxes in `full`, its leader off those in `barred`; gives what both cover, in pixels."""
    renderer: RendererAgg = canvas.get_renderer()  # type: ignore[no-untyped-call]
    spot = (row["latency_ratio"], row["map50_95"])
    pixel = ax.transData.transform(spot)
    look: Any = {"fontsize": 8.5, "linespacing": 1.15, "zorder": 6, "path_effects": [withStroke(linewidth=2.2, foreground="white")]}
    for dx, dy, side, led in (*_SPOTS[:_NEAR], *_beside(ax, row), *_SPOTS[len(_AROUND) :]):
        vertical = "center" if dy == 0 else "bottom" if dy > 0 else "top"
        corner = (side, 0.0 if dy > 0 else 1.0)
        leader = {"arrowstyle": "-", "color": _FAINT, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4, "relpos": corner} if led else None
        look |= {"ha": _ALIGN[side], "va": vertical, "xytext": (dx, dy), "arrowprops": leader}
        note = ax.annotate(text, spot, textcoords="offset points", **look)
        note.update_positions(renderer)
        words = Text.get_window_extent(note, renderer)
        path = _steps(words, corner, pixel) if led else []
        inside = ax.bbox.count_contains(words.corners()) == 4
        if inside and not words.count_overlaps(full) and not any(step.count_overlaps(barred) for step in path):
            return [words, *path]
        note.remove()
    return []


def _beside(ax: Axes, row: Row) -> list[tuple[float, float, float, bool]]:
    """The spots at the two ends of the row's bar."""
    if row["latency_low"] is None:
        return []
    ends = [ax.transData.transform((row[name], 0.0))[0] for name in ("latency_low", "latency_ratio", "latency_high")]
    to_points = 72 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    return [(float(ends[0] - ends[1]) * to_points - 7, 0.0, 1.0, False), (float(ends[2] - ends[1]) * to_points + 7, 0.0, 0.0, False)]


def _steps(words: Bbox, corner: tuple[float, float], spot: Any) -> list[Bbox]:
    """Small boxes along the leader from a corner of the words to the spot."""
    x, y = words.x0 + corner[0] * words.width, words.y0 + corner[1] * words.height
    along = [(x + (spot[0] - x) * k / 16, y + (spot[1] - y) * k / 16) for k in range(1, 14)]
    return [Bbox.from_bounds(px - 1, py - 1, 2, 2) for px, py in along]
