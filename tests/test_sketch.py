"""The drawings as SVG."""

import re
import xml.etree.ElementTree as ET

from snapshots import HOSTILE
from snapshots import network as yolo11n

from nas_attn import sketch
from nas_attn.effects import Effect
from nas_attn.network import Network, Node

SVG = "{http://www.w3.org/2000/svg}"


def cell(row, module, gain, wide=0.001, **changes):
    given = {
        "row": row, "module": module, "params": "", "trials": 2, "gain": gain, "gain_low": gain - wide, "gain_high": gain + wide,
        "p_better": 0.5, "latency": 0.05, "latency_low": 0.04, "latency_high": 0.06,
    }  # fmt: skip
    return Effect(**{**given, **changes})


def parsed(text):
    return ET.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def boxes(tree, name):
    rects = [group.find(f"{SVG}rect") for group in tree.iter(f"{SVG}g") if name in (group.get("class") or "").split()]
    return [tuple(float(rect.get(key)) for key in ("x", "y", "width", "height")) for rect in rects]


def apart(found):
    return all(
        a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
        for k, a in enumerate(found)
        for b in found[:k]
    )


def test_every_row_is_drawn_once_and_none_over_another():
    tree = parsed(sketch.network(yolo11n(), {4, 16}))
    found = boxes(tree, "node")
    assert len(found) == 24
    assert apart(found)
    assert len(boxes(tree, "site")) == 2
    width, height = map(float, tree.get("viewBox").split()[2:])
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in found)


def test_the_cells_stand_under_their_sites():
    cells = [cell(4, "LSKA", 0.01), cell(16, "LSKA", -0.002), cell(16, "LIA", 0.0)]
    tree = parsed(sketch.atlas(yolo11n(), cells, sketch.scales(cells)["gain"]))
    nodes = {group.get("data-row"): box for group, box in zip(list(tree.iter(f"{SVG}g")), boxes(tree, "node"), strict=False)}
    found = boxes(tree, "cell")
    assert len(found) == 3
    assert apart(found)
    middle = {row: box[0] + box[2] / 2 for row, box in nodes.items()}
    assert sorted(round(x + w / 2, 1) for x, _, w, _ in found) == sorted(round(middle[row], 1) for row in ("4", "16", "16"))
    assert min(y for _, y, _, _ in found) > max(y + h for _, y, _, h in boxes(tree, "node"))


def test_a_cell_says_its_sign_its_spread_and_whether_nought_is_in_it():
    cells = [cell(4, "LSKA", 0.01), cell(6, "LSKA", -0.0004, wide=0.002)]
    text = sketch.atlas(yolo11n(), cells, sketch.scales(cells)["gain"])
    assert "+1.00" in text
    assert "±0.10" in text
    assert "−0.04" in text
    assert text.count('class="cell better sure"') == 1
    assert text.count('class="cell worse"') == 1
    assert "LSKA after P3 (row 4), 2 trials: +1.00 points of mAP50-95 (90 % +0.90 to +1.10)" in text


def test_more_latency_is_worse():
    cells = [cell(4, "LSKA", 0.01)]
    text = sketch.atlas(yolo11n(), cells, sketch.scales(cells)["latency"])
    assert 'class="cell worse sure"' in text
    assert "+5.0" in text


def test_nought_has_no_sign():
    scale = sketch.Scale("points", 100.0, 2, 0.01, True)
    assert [sketch.written(value, scale) for value in (-0.00001, 0.0, 0.00001, 0.02, -0.02)] == ["0.00", "0.00", "0.00", "+2.00", "−2.00"]


def test_a_network_that_is_not_known_has_a_column_a_row_all_the_same():
    rows = Network(nodes=(Node(row=4, module="", sources=()), Node(row=9, module="", sources=())), backbone=2, drawn=False)
    tree = parsed(sketch.atlas(rows, [cell(4, "LIA", 0.1), cell(9, "LIA", 0.1)], sketch.scales([cell(4, "LIA", 0.1)])["gain"]))
    assert len(boxes(tree, "cell")) == 2
    assert boxes(tree, "node") == []
    assert [t.text for t in tree.iter(f"{SVG}tspan")] == ["row", "4", "row", "9"]


def test_names_are_text():
    nodes = (Node(row=0, module=HOSTILE, sources=(), channels=8, stride=8, names=(HOSTILE,)),)
    text = sketch.atlas(Network(nodes=nodes, backbone=1), [cell(0, HOSTILE, 0.1)], sketch.scales([cell(0, HOSTILE, 0.1)])["gain"])
    assert not re.search(r"<(script|img)", text)
    parsed(text)
