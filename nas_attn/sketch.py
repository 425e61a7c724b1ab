"""Drawings as SVG text: the base network with a lane for each stride, and under it the atlas, a heat map whose columns are its sites.

Colours are classes, which the page's style gives for light, dark and print; what a colour says, a sign or a number says too.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nas_attn.effects import Effect, Grid, Lost
from nas_attn.network import Network, Node

STEP, LANE, BOX_W, BOX_H = 44, 50, 38, 30
LEFT, TOP, RIGHT, ATLAS_RIGHT = 116, 26, 38, 4
BAND, FLAG_H = 48, 14
"""The band under a network in which the page's script names what is placed, and the height of one of its lines."""
CHANNEL, TRACK, MOST_TRACKS = 5, 4, 4
"""Edges that skip rows run in the channel above a lane's boxes: so far above them, so far apart, on so many tracks."""
CELL_H, HEAD_H = 34, 40
WHY = {
    "rejected": ("over limit", "over a limit"),
    "stopped": ("stopped", "stopped early"),
    "failure": ("failed", "failed"),
    "running": ("running", "still running"),
    "measured": ("left out", "measured, but left out of the model"),
}
"""Why a place that was tried has no effect: as its cell says it, and as its tooltip counts it."""
NO_GRID = Grid()
NAME = 15
"""The letters of a module's name that fit in a line beside the atlas; longer names have two lines."""
SHORT = {"nn.Upsample": "Up", "Concat": "Cat", "nn.Identity": "Id", "nn.MaxPool2d": "Pool", "nn.ConvTranspose2d": "ConvT"}


@dataclass(frozen=True, slots=True)
class Scale:
    """How an effect is written and coloured: `strongest` is the size of the deepest colour, `factor` what values are multiplied with."""

    name: str
    factor: float
    digits: int
    strongest: float
    more_is_better: bool


def network(drawing: Network, sites: Iterable[int], left: int = 34) -> str:
    """The base as one SVG element; rows that are sites have the class `site`, every row a group with `data-row`.

    Under it is a band for the names of what is placed (`data-band` is its top, `data-line` the height of a line), each at the foot of a
    line from its row: a column holds one row alone, so that these lines meet no text.
    """
    width = left + STEP * len(drawing.nodes) + RIGHT
    height = _height(drawing)
    body = _base(drawing, set(sites), left)
    return (
        f'<svg class="network" {_size(width, height + BAND)} data-band="{height}" data-line="{FLAG_H}" role="img" '
        f'aria-label="the base network">{body}<g class="flags"></g></svg>'
    )


def atlas(drawing: Network, cells: Sequence[Effect], scale: Scale, grid: Grid = NO_GRID) -> str:
    """The base with the heat map under it as one SVG element: a column for each site, a row for each module, of `grid` and of the cells.

    What was tried there without ever being measured says so in a word; a place that was not tried has nothing.
    """
    known = {node.row for node in drawing.nodes}
    sites = {cell.row for cell in cells} | (known & {*grid.rows})
    modules = sorted({cell.module for cell in cells} | {*grid.modules})
    width, top = LEFT + STEP * len(drawing.nodes) + ATLAS_RIGHT, _height(drawing) if drawing.drawn else 0
    height = top + HEAD_H + CELL_H * len(modules) + 8
    columns = {row: LEFT + STEP * (column + 0.5) for row, (column, _, _) in drawing.spots().items()}
    parts = [_base(drawing, sites, LEFT)] if drawing.drawn else []
    parts.append(_lines("unit", LEFT - 8, top + HEAD_H - 8, _broken(scale.name, 17), "in " + scale.name))
    parts += [_heading(drawing, row, columns[row], top, height) for row in sorted(sites)]
    for number, module in enumerate(modules):
        y = top + HEAD_H + CELL_H * number
        lines = name_lines(module)
        parts.append(_lines("module", LEFT - 8, y + CELL_H / 2 + 4 + 6.5 * (len(lines) - 1), lines, module))
        parts += [_cell(cell, columns[cell.row], y, scale, drawing) for cell in cells if cell.module == module]
        parts += [_lost(lost, columns[lost.row], y, drawing) for lost in grid.lost if lost.module == module and lost.row in columns]
    label = html.escape(f"effect of each module after each site, in {scale.name}")
    return f'<svg class="atlas" {_size(width, height)} role="group" aria-label="{label}">{"".join(parts)}</svg>'


def name_lines(module: str) -> list[str]:
    """A module's name in one line, or in two, broken before a capital where one is near the middle; of still longer names both ends."""
    if len(module) <= NAME:
        return [module]
    if len(module) > 2 * NAME:
        module = f"{module[: NAME - 1]}…{module[-NAME:]}"
    breaks = [k for k in range(len(module) - NAME, NAME + 1) if module[k].isupper() and not module[k - 1].isupper()]
    middle = min(breaks, key=lambda k: abs(2 * k - len(module)), default=min(NAME, len(module) - 1))
    return [module[:middle], module[middle:]]


def written(value: float, scale: Scale, sign: bool = True) -> str:
    """A value as a cell shows it, with a true minus, and no minus before nothing."""
    text = f"{value * scale.factor:{'+' if sign else ''}.{scale.digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def _height(drawing: Network) -> int:
    return TOP + LANE * len(drawing.lanes) + 6


def _base(drawing: Network, sites: set[int], left: int) -> str:
    spots = drawing.spots()
    right = left + STEP * len(drawing.nodes)
    parts = []
    for number, stride in enumerate(drawing.lanes):
        y = TOP + LANE * (number + 0.5)
        parts.append(f'<line class="lane" x1="{left - 6}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="lane" x="{left - 10}" y="{y + 3}" text-anchor="end">{"stride " if left > 60 else ""}{stride}</text>')
    neck = left + STEP * drawing.backbone
    parts.append(f'<line class="border" x1="{neck}" x2="{neck}" y1="4" y2="{_height(drawing) - 6}"/>')
    if drawing.backbone >= 3:
        parts.append(f'<text class="part" x="{left}" y="10">backbone</text>')
    if len(drawing.nodes) - drawing.backbone >= 3:
        parts.append(f'<text class="part" x="{neck + 6}" y="10">neck and head</text>')
    parts += _edges(drawing, left)
    parts += [_box(node, spots[node.row], left, node.row in sites) for node in drawing.nodes]
    return "".join(parts)


def _at(spot: tuple[int, float, float], left: int) -> tuple[float, float, float]:
    column, first, last = spot
    return left + STEP * (column + 0.5), TOP + LANE * (first + 0.5), TOP + LANE * (last + 0.5)


def _edges(drawing: Network, left: int) -> list[str]:
    """All edges: to the next column straight; over others by the gap after the source's column, the channel above the target's lane, and
    the gap before the target's column. No box stands in a gap or a channel, and so no text does.
    """
    spots, parts, ends = drawing.spots(), list[str](), dict[float, list[tuple[int, int]]]()
    found = [(spots[source], spots[node.row]) for node in drawing.nodes for source in node.sources if source in spots]
    for source, target in sorted(found):
        x1, y1, _ = _at(source, left)
        x2, first, last = _at(target, left)
        x1, x2, y2 = x1 + BOX_W / 2, x2 - BOX_W / 2, min(max(y1, first), last)
        if target[0] - source[0] == 1:
            parts.append(f'<path class="edge" d="M{x1} {y1}L{x2} {y2}"/>')
            continue
        over = y2 - BOX_H / 2 - CHANNEL - TRACK * _track(ends.setdefault(y2, []), source[0], target[0])
        turn = 4 if over < y1 else -4
        path = f"M{x1} {y1}h2V{over + turn}q0 {-turn} 4 {-turn}H{x2 - 6}q4 0 4 4V{y2}h2"
        parts.append(f'<path class="edge far" d="{path}"/>')
    return parts


def _track(ends: list[tuple[int, int]], source: int, target: int) -> int:
    """The first track of a channel that is free from `source` on, or `source`'s own: `ends` holds who is on each, and up to where."""
    for number, (owner, end) in enumerate(ends):
        if end <= source or owner == source or number == MOST_TRACKS - 1:
            ends[number] = (source, max(end, target))
            return number
    ends.append((source, target))
    return len(ends) - 1


def _box(node: Node, spot: tuple[int, float, float], left: int, site: bool) -> str:
    x, first, last = _at(spot, left)
    about = f"row {node.row}: {node.module}" + (f", {node.channels} channels, stride {node.stride}" if node.stride else "")
    about += f" ({', '.join(node.names)})" if node.names else ""
    top = first - BOX_H / 2
    return (
        f'<g class="node{" site" if site else ""}" data-row="{node.row}"><title>{html.escape(about)}</title>'
        f'<rect x="{x - BOX_W / 2}" y="{top}" width="{BOX_W}" height="{last - first + BOX_H}" rx="5"/>'
        f'<text class="number" x="{x}" y="{top + 11}">{node.row}</text>'
        f'<text class="kind" x="{x}" y="{(first + last) / 2 + 9}">{html.escape(kind(node))}</text></g>'
    )


def kind(node: Node) -> str:
    """A row's module in seven letters."""
    name = SHORT.get(node.module, node.module.rpartition(".")[2])
    return name if len(name) <= 7 else f"{name[:6]}…"


def _heading(drawing: Network, row: int, x: float, top: float, height: float) -> str:
    first, _, second = drawing.label(row).partition("_")
    if not second and " " in first:
        first, _, second = first.partition(" ")
    lines = [first, second.replace("_", " ")] if second else [first]
    return (
        f'<line class="guide" x1="{x}" x2="{x}" y1="{top + HEAD_H - 5}" y2="{height - 6}"/>'
        f"{_lines('column', x, top + HEAD_H - 8, [_clip(line, 6) for line in lines], drawing.label(row))}"
    )


def _lines(name: str, x: float, y: float, lines: Sequence[str], whole: str) -> str:
    """A text of some lines, the last at `y`, which says its `whole` to whoever points at it."""
    spans = "".join(f'<tspan x="{x}" dy="{13 if number else 0}">{html.escape(line)}</tspan>' for number, line in enumerate(lines))
    return f'<text class="{name}" x="{x}" y="{y - 13 * (len(lines) - 1)}"><title>{html.escape(whole)}</title>{spans}</text>'


def _broken(text: str, most: int) -> list[str]:
    """A text in two lines, the first as long as it can be."""
    cut = text.rfind(" ", 0, most + 1)
    return [text] if len(text) <= most or cut < 0 else [text[:cut], text[cut + 1 :]]


def _size(width: float, height: float) -> str:
    """A drawing is never smaller than its letters need: where there is less room, it scrolls."""
    return f'viewBox="0 0 {width} {height}" style="min-width:{width}px;max-width:{1.3 * width:.0f}px"'


def _cell(cell: Effect, x: float, y: float, scale: Scale, drawing: Network) -> str:
    value, low, high = effect(cell, scale)
    better = value > 0 if scale.more_is_better else value < 0
    sure = not low <= 0 <= high
    share = min(1.0, abs(value) / scale.strongest) if scale.strongest else 0.0
    about = (
        f"{cell.module} after {drawing.label(cell.row)} (row {cell.row}), {_held(cell.trials)}: {written(value, scale)} {scale.name} "
        f"(90 % {written(low, scale)} to {written(high, scale)})"
    )
    tone = "better" if better else "worse"
    mark = f'<path class="sure {tone}" d="M{x - BOX_W / 2 + 0.5} {y + 2.5}h6.5l-6.5 6.5z"/>' if sure else ""
    left, wide, tall = x - BOX_W / 2 - 1, BOX_W + 2, CELL_H - 3
    rect = f'x="{left}" y="{y + 1}" width="{wide}" height="{tall}" rx="4"'
    return (
        f'<g class="cell {tone}{" sure" if sure else ""}" tabindex="0" role="button" data-row="{cell.row}" '
        f'data-module="{html.escape(cell.module)}" aria-label="{html.escape(about)}">'
        f"<title>{html.escape(about)}</title>"
        f'<rect class="ground" {rect}/>'
        f'<rect class="tint" {rect} fill-opacity="{0.08 + 0.6 * share:.2f}"/>'
        f'{mark}<text class="value" x="{x}" y="{y + 16}">{written(value, scale)}</text>'
        f'<text class="spread" x="{x}" y="{y + 27}">±{written((high - low) / 2, scale, sign=False)}</text></g>'
    )


def _lost(lost: Lost, x: float, y: float, drawing: Network) -> str:
    """A place whose every trial was over a limit, stopped, failed or is not told of: the first of these that holds, in words."""
    kind = next(kind for kind in WHY if lost.kinds.get(kind))
    counts = ", ".join(f"{count} {WHY[kind][1]}" for kind, count in lost.kinds.items())
    about = f"{lost.module} after {drawing.label(lost.row)} (row {lost.row}): no effect is known; trials that hold it: {counts}"
    words = "".join(f'<tspan x="{x}" dy="{10 if number else 0}">{word}</tspan>' for number, word in enumerate(WHY[kind][0].split()))
    return (
        f'<g class="lost {kind}" data-row="{lost.row}" data-module="{html.escape(lost.module)}"><title>{html.escape(about)}</title>'
        f'<rect x="{x - BOX_W / 2 - 1}" y="{y + 1}" width="{BOX_W + 2}" height="{CELL_H - 3}" rx="4"/>'
        f'<text x="{x}" y="{y + 20 - 5 * WHY[kind][0].count(" ")}">{words}</text></g>'
    )


def effect(cell: Effect, scale: Scale) -> tuple[float, float, float]:
    """What a cell shows on a scale, and its interval."""
    return (cell.gain, cell.gain_low, cell.gain_high) if scale.more_is_better else (cell.latency, cell.latency_low, cell.latency_high)


def _held(trials: int) -> str:
    return f"{trials} trial{'s' * (trials != 1)}"


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def scales(cells: Sequence[Effect]) -> Mapping[str, Scale]:
    """The two scales of an atlas: points of mAP50-95 (hundredths), and percent of the base's latency."""
    gain = max((abs(cell.gain) for cell in cells), default=0.0)
    slower = max((abs(cell.latency) for cell in cells), default=0.0)
    return {
        "gain": Scale("points of mAP50-95", 100.0, 2, gain, True),
        "latency": Scale("% of the base's latency", 100.0, 1, slower, False),
    }
