"""The picture of a study: accuracy against latency, with the noise of both, as a PNG.

The same rows give the same bytes. Light background on purpose: the file is pasted into pages whose theme is not known.
"""

import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
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
from nas_attn.columns import Row, in_plane, plane_front, short
from nas_attn.outcome import Snapshot

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


def picture(snapshot: Snapshot, rows: Sequence[Row], front: Sequence[Row]) -> bytes:
    """The front as a PNG: all trials, the front with its labels, latency intervals, the base and the band of its noise."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a study's name may be in any script
        buffer = io.BytesIO()
        draw(snapshot, in_plane(rows), in_plane(front)).savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def draw(snapshot: Snapshot, points: Sequence[Row], members: Sequence[Row]) -> Figure:
    """The figure of `picture`, for rows that have a score and a latency."""
    figure = Figure(figsize=(9.6, 6.0), dpi=160)
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0.085, 0.165, 0.825, 0.675))
    _frame(ax, snapshot.objectives)
    _words(figure, snapshot, len(members), len(points))
    if points:
        _limits(ax, points, snapshot)
        _draw(ax, snapshot, points, members)
        _label(canvas, ax, snapshot, points, members)
    else:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "No trial has been measured yet.", ha="center", va="center", color=GREY, transform=ax.transAxes)
    return figure


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


def _words(figure: Figure, snapshot: Snapshot, members: int, points: int) -> None:
    counts = Counter(t.kind or "running" for t in snapshot.trials)
    name = textwrap.shorten(snapshot.name, 60, placeholder=" …")
    figure.text(0.085, 0.935, "Accuracy against latency", fontsize=15, weight="bold", va="center")
    figure.text(0.085, 0.885, f"{name}: {members} of {points} measured architectures on the front", color=GREY)
    notes = ["Bars: 95 % interval of the latency ratio. Hollow: timed without a quiet moment. Line: what the front reaches at a latency."]
    others = [f"{counts[k]} {text}" for k, text in _BESIDES.items() if counts[k]]
    notes += [f"Besides: {', '.join(others)}."] if others else []
    figure.text(0.085, 0.066, "\n".join(notes), fontsize=8, color=GREY, linespacing=1.5, va="top")


_BESIDES = {
    "rejected": "rejected by a limit (red ticks, where in range)",
    "stopped": "stopped early",
    "failure": "failed",
    "running": "running",
}


def _limits(ax: Axes, points: Sequence[Row], snapshot: Snapshot) -> None:
    noise, center = facts.sigma(snapshot) or 0.0, facts.base_score(snapshot)
    xs = [x for r in points for x in (r["latency_ratio"], r["latency_low"], r["latency_high"]) if x is not None]
    ys = [r["map50_95"] for r in points] + ([center - noise, center + noise] if center is not None else [])
    width, height = max(max(xs) - min(xs), 0.05), max(max(ys) - min(ys), 0.01)
    ax.set_xlim(min(xs) - 0.13 * width, min(xs) + 1.05 * width)
    ax.set_ylim(min(ys) - 0.10 * height, min(ys) + 1.16 * height)


def _draw(ax: Axes, snapshot: Snapshot, points: Sequence[Row], members: Sequence[Row]) -> None:
    noise, center, base = facts.sigma(snapshot), facts.base_score(snapshot), facts.base_trial(snapshot)
    if center is not None:
        ax.axhspan(center - (noise or 0), center + (noise or 0), color=_BAND, zorder=0.5, linewidth=0)
        ax.axhline(center, color=_FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.text(1.012, center, "base ± 1σ" if noise else "base", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color=GREY)
    line = plane_front(members)
    if len(line) > 1:
        x, y = [r["latency_ratio"] for r in line], [r["map50_95"] for r in line]
        ax.step([*x, ax.get_xlim()[1]], [*y, y[-1]], where="post", color=_BLUE, linewidth=1.6, alpha=0.32, zorder=3)
    numbers = {r["number"] for r in members}
    for row in points:
        inside, is_base = row["number"] in numbers, base is not None and row["number"] == base.number
        _mark(ax, row, (INK, "D", 62, 1.3) if is_base else (_BLUE, "o", 48, 1.3) if inside else (_FAINT, "o", 20, 0.8))
    low, high = ax.get_xlim()
    ratios = [facts.metric(t, "latency_ratio") for t in snapshot.trials if t.kind == "rejected"]
    over = [ratio for ratio in ratios if ratio is not None and low <= ratio <= high]
    ax.plot(over, [0.014] * len(over), "|", color="#dc2626", markersize=8, alpha=0.7, transform=ax.get_xaxis_transform(), zorder=4)


def _mark(ax: Axes, row: Row, look: tuple[str, str, float, float]) -> None:
    color, shape, size, thick = look
    x, y = row["latency_ratio"], row["map50_95"]
    if row["latency_low"] is not None:
        reach = [[max(x - row["latency_low"], 0.0)], [max(row["latency_high"] - x, 0.0)]]
        faint = 0.4 if color == _FAINT else 0.9
        ax.errorbar(x, y, xerr=reach, fmt="none", color=color, linewidth=thick, capsize=2.5 * thick, alpha=faint, zorder=2 + thick)
    face = "white" if row["latency_quality"] == "ungated" else color
    ax.scatter(x, y, s=size, marker=shape, facecolor=face, edgecolor="white" if face == color else color, linewidth=1.0, zorder=4 + thick)


def _label(canvas: FigureCanvasAgg, ax: Axes, snapshot: Snapshot, points: Sequence[Row], members: Sequence[Row]) -> None:
    """Label the members and the base, each where it covers nothing: its modules if there is room, else its number, else nothing."""
    names = {t.number: short(t.architecture) for t in snapshot.trials}
    base = facts.base_trial(snapshot)
    marked = {r["number"] for r in members} | ({base.number} if base else set())
    dots = {r["number"]: _box(ax, r, with_bar=False) for r in points}
    marks = [_box(ax, r, with_bar=r["number"] in marked) for r in points]
    written: list[Bbox] = []
    for row in sorted((r for r in points if r["number"] in marked), key=lambda r: (-r["map50_95"], r["number"])):
        name, others = names[row["number"]], [box for number, box in dots.items() if number != row["number"]]
        for text in ("base",) if name == "base" else (_wrapped(f"#{row['number']} {name}"), f"#{row['number']}"):
            covered = _place(canvas, ax, row, text, [*marks, *written], [*others, *written])
            if covered:
                written += covered
                break


def _box(ax: Axes, row: Row, with_bar: bool) -> Bbox:
    """What a trial's mark covers, in pixels, with a margin; the bars of dominated trials may be written over."""
    y = row["map50_95"]
    ends = (row["latency_low"], row["latency_high"]) if with_bar and row["latency_low"] is not None else (row["latency_ratio"],) * 2
    (x0, y0), (x1, _) = ax.transData.transform((ends[0], y)), ax.transData.transform((ends[1], y))
    return Bbox.from_extents(x0 - 9, y0 - 9, x1 + 9, y0 + 9)


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
