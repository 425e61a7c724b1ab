"""Drawings as SVG text: the base network with a lane for each stride, and under it the atlas, a heat map whose columns are its sites.

Colours are classes, which the page's style gives for light, dark and print; what a colour says, a sign or a number says too.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nas_attn.effects import Effect
from nas_attn.network import Network, Node

STEP, LANE, BOX_W, BOX_H = 44, 46, 38, 24
LEFT, TOP, RIGHT = 118, 26, 12
CELL_H, HEAD_H = 34, 40
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
    """The base as one SVG element; rows that are sites have the class `site`, every row a group with `data-row`."""
    width = left + STEP * len(drawing.nodes) + RIGHT
    height = _height(drawing)
    body = _base(drawing, set(sites), left)
    return f'<svg class="network" viewBox="0 0 {width} {height}" role="img" aria-label="the base network">{body}</svg>'


def atlas(drawing: Network, cells: Sequence[Effect], scale: Scale) -> str:
    """The base with the heat map under it as one SVG element: a column for each site that any cell is about, a row for each module."""
    sites = {cell.row for cell in cells}
    modules = sorted({cell.module for cell in cells})
    width, top = LEFT + STEP * len(drawing.nodes) + RIGHT, _height(drawing) if drawing.drawn else 0
    height = top + HEAD_H + CELL_H * len(modules) + 8
    columns = {row: LEFT + STEP * (column + 0.5) for row, (column, _, _) in drawing.spots().items()}
    parts = [_base(drawing, sites, LEFT)] if drawing.drawn else []
    parts += [_heading(drawing, row, columns[row], top, height) for row in sorted(sites)]
    for number, module in enumerate(modules):
        y = top + HEAD_H + CELL_H * number
        parts.append(f'<text class="module" x="{LEFT - 8}" y="{y + CELL_H / 2 + 4}" text-anchor="end">{_clip(module, 16)}</text>')
        parts += [_cell(cell, columns[cell.row], y, scale, drawing) for cell in cells if cell.module == module]
    label = f"effect of each module after each site on {scale.name}"
    return f'<svg class="atlas" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


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
    for node in drawing.nodes:
        parts += [_edge(spots[source], spots[node.row], left) for source in node.sources if source in spots]
    parts += [_box(node, spots[node.row], left, node.row in sites) for node in drawing.nodes]
    return "".join(parts)


def _at(spot: tuple[int, float, float], left: int) -> tuple[float, float, float]:
    column, first, last = spot
    return left + STEP * (column + 0.5), TOP + LANE * (first + 0.5), TOP + LANE * (last + 0.5)


def _edge(source: tuple[int, float, float], target: tuple[int, float, float], left: int) -> str:
    x1, y1, _ = _at(source, left)
    x2, first, last = _at(target, left)
    y2 = min(max(y1, first), last)
    x1, x2 = x1 + BOX_W / 2, x2 - BOX_W / 2
    if target[0] - source[0] == 1:
        return f'<path class="edge" d="M{x1} {y1}L{x2} {y2}"/>'
    if y1 == y2:  # over what stands between
        over = y1 - BOX_H / 2 - 8
        up = f"M{x1 - 6} {y1 - BOX_H / 2}Q{x1 - 6} {over} {x1 + 8} {over}"
        return f'<path class="edge far" d="{up}L{x2 - 10} {over}Q{x2 - 2} {over} {x2} {y2 - 6}"/>'
    return f'<path class="edge far" d="M{x1} {y1}C{x1 + 30} {y1} {x2 - 30} {y2} {x2} {y2}"/>'


def _box(node: Node, spot: tuple[int, float, float], left: int, site: bool) -> str:
    x, first, last = _at(spot, left)
    about = f"row {node.row}: {node.module}" + (f", {node.channels} channels, stride {node.stride}" if node.stride else "")
    about += f" ({', '.join(node.names)})" if node.names else ""
    top = first - BOX_H / 2
    return (
        f'<g class="node{" site" if site else ""}" data-row="{node.row}"><title>{html.escape(about)}</title>'
        f'<rect x="{x - BOX_W / 2}" y="{top}" width="{BOX_W}" height="{last - first + BOX_H}" rx="5"/>'
        f'<text class="kind" x="{x}" y="{(first + last) / 2 + 3.5}">{html.escape(kind(node))}</text>'
        f'<text class="number" x="{x}" y="{top - 3}">{node.row}</text>'
        f'<text class="chip" x="{x}" y="{last + BOX_H / 2 + 10}"></text></g>'
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
    text = "".join(f'<tspan x="{x}" dy="{12 if i else 0}">{_clip(line, 8)}</tspan>' for i, line in enumerate(lines))
    return (
        f'<line class="guide" x1="{x}" x2="{x}" y1="{top + 2}" y2="{height - 6}"/>'
        f'<text class="column" x="{x}" y="{top + HEAD_H - 8 - 12 * (len(lines) - 1)}">{text}</text>'
    )


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
    mark = f'<path class="sure {tone}" d="M{x - BOX_W / 2 + 3} {y + 4}h8l-8 8z"/>' if sure else ""
    left, wide, tall = x - BOX_W / 2 - 1, BOX_W + 2, CELL_H - 3
    rect = f'x="{left}" y="{y + 1}" width="{wide}" height="{tall}" rx="4"'
    return (
        f'<g class="cell {tone}{" sure" if sure else ""}" tabindex="0" role="button" data-row="{cell.row}" '
        f'data-module="{html.escape(cell.module)}">'
        f"<title>{html.escape(about)}</title>"
        f'<rect class="ground" {rect}/>'
        f'<rect class="tint" {rect} fill-opacity="{0.08 + 0.6 * share:.2f}"/>'
        f'{mark}<text class="value" x="{x}" y="{y + 15}">{written(value, scale)}</text>'
        f'<text class="spread" x="{x}" y="{y + 26}">±{written((high - low) / 2, scale, sign=False)}</text></g>'
    )


def effect(cell: Effect, scale: Scale) -> tuple[float, float, float]:
    """What a cell shows on a scale, and its interval."""
    return (cell.gain, cell.gain_low, cell.gain_high) if scale.more_is_better else (cell.latency, cell.latency_low, cell.latency_high)


def _held(trials: int) -> str:
    return f"{trials} trial{'s' * (trials != 1)}"


def _clip(text: str, most: int) -> str:
    return html.escape(text if len(text) <= most else text[: most - 1] + "…")


def scales(cells: Sequence[Effect]) -> Mapping[str, Scale]:
    """The two scales of an atlas: points of mAP50-95 (hundredths), and percent of the base's latency."""
    gain = max((abs(cell.gain) for cell in cells), default=0.0)
    slower = max((abs(cell.latency) for cell in cells), default=0.0)
    return {
        "gain": Scale("points of mAP50-95", 100.0, 2, gain, True),
        "latency": Scale("% of the base's latency", 100.0, 1, slower, False),
    }
