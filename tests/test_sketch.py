"""The drawings as SVG."""

import re
import xml.etree.ElementTree as ET

import pytest
from snapshots import HOSTILE, base, failed, placement, rejected, snapshot, stopped, trial
from snapshots import network as yolo11n

from nas_attn import effects, sketch
from nas_attn.effects import Effect
from nas_attn.network import Network, Node
from nas_attn.records import MODULES

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


def named(tree, name):
    return [text for text in tree.iter(f"{SVG}text") if text.get("class") == name]


def lines(text):
    return [span.text for span in text.iter(f"{SVG}tspan")]


def over(path):
    """Where an edge over others runs level: its ends and its height."""
    x, y, turn, right = map(float, re.fullmatch(r"M(\S+) \S+h2V(\S+)q0 (\S+) 4 \S+H(\S+)q.*", path.get("d")).groups())
    return x, right, y + turn


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


def large():
    """More rows than any model that is shipped: every fourth reads three far rows, in its own lane and in others; a head reads three."""
    nodes = [
        Node(row=k, module="Conv", sources=(k - 1, *((k // 2, k // 3, k - 9) if k % 4 == 0 and k > 9 else ())), stride=2 ** (1 + k % 5))
        for k in range(44)
    ]
    return Network(nodes=(*nodes, Node(row=44, module="Detect", sources=(11, 27, 43))), backbone=20)


@pytest.mark.parametrize("drawing", [yolo11n(), large()])
def test_edges_run_beside_boxes_and_numbers_stand_in_them(drawing):
    tree = parsed(sketch.network(drawing, ()))
    found = boxes(tree, "node")
    for group, (x, y, w, h) in zip(tree.iter(f"{SVG}g"), found, strict=False):
        texts = list(group.iter(f"{SVG}text"))
        assert [t.get("class") for t in texts] == ["number", "kind"]
        assert all(x < float(t.get("x")) < x + w and y + 8 < float(t.get("y")) < y + h - 2 for t in texts)
    runs = [over(path) for path in tree.iter(f"{SVG}path") if path.get("class") == "edge far"]
    assert len(runs) >= 6
    for left, right, height in runs:
        assert not [box for box in found if box[0] < right and left < box[0] + box[2] and box[1] - 2 < height < box[1] + box[3] + 2]


def test_edges_that_run_beside_each_other_have_tracks_of_their_own():
    nodes = [Node(row=k, module="Conv", sources=(k - 1,) if k else (), stride=8) for k in range(6)]
    nodes += [Node(row=6, module="Concat", sources=(5, 1, 2), stride=8), Node(row=7, module="Concat", sources=(6, 1), stride=8)]
    heights = [over(path)[2] for path in parsed(sketch.network(Network(nodes=tuple(nodes), backbone=6), ())).iter(f"{SVG}path")
               if path.get("class") == "edge far"]  # fmt: skip
    assert len(heights) == 3
    assert len(set(heights)) == 2  # those of row 1 share one


def test_a_drawing_is_never_smaller_than_its_letters_need():
    for text in (
        sketch.network(yolo11n(), ()),
        sketch.atlas(yolo11n(), [cell(4, "LIA", 0.1)], sketch.scales([cell(4, "LIA", 0.1)])["gain"]),
    ):
        width = parsed(text).get("viewBox").split()[2]
        assert f'style="min-width:{width}px' in text


def test_names_of_modules_are_whole_and_differ():
    for module in MODULES:
        assert "".join(sketch.name_lines(module)) == module
        assert max(map(len, sketch.name_lines(module))) <= sketch.NAME
    pair = [sketch.name_lines(f"MyGatedAttentionWithManyLettersVersion{k}") for k in (1, 2)]
    assert pair[0] != pair[1]
    tree = parsed(sketch.atlas(yolo11n(), [cell(4, "CascadedGroupAttention", 0.1)], sketch.Scale("points", 1.0, 2, 0.1, True)))
    (text,) = named(tree, "module")
    assert lines(text) == ["CascadedGroup", "Attention"]
    assert text.find(f"{SVG}title").text == "CascadedGroupAttention"


def test_an_atlas_says_its_unit_and_its_cells_can_be_chosen_by_name():
    cells = [cell(4, "LSKA", 0.01)]
    for name, unit in (("gain", "points of mAP50-95"), ("latency", "% of the base's latency")):
        tree = parsed(sketch.atlas(yolo11n(), cells, sketch.scales(cells)[name]))
        assert " ".join(lines(named(tree, "unit")[0])) == unit
        assert tree.get("role") == "group"  # an image's parts are hidden from those who hear the page
        (button,) = [group for group in tree.iter(f"{SVG}g") if group.get("role") == "button"]
        assert button.get("aria-label") == button.find(f"{SVG}title").text


def test_an_atlas_has_the_whole_space_and_says_why_a_place_has_no_effect():
    trials = (rejected(1), rejected(7), stopped(2), failed(3), trial(4, [placement(16, 2)], 0.31, 1.1))
    spec = {"sites": ["P3", "P5?", "P9?", 13], "modules": {"LSKA": {}, "SE": {}}}
    snap = snapshot(base(), *trials, settings={"spec": spec})
    told = [cell(16, "LIA", 0.01)]
    grid = effects.grid(snap, told, yolo11n())
    assert grid.rows == (4, 6, 8, 9, 13, 16)
    assert grid.modules == ("HaloAttention", "LIA", "LSKA", "SE")
    assert [(one.row, one.module, one.kinds) for one in grid.lost] == [
        (4, "LSKA", {"rejected": 2}),
        (6, "LIA", {"stopped": 1}),
        (9, "HaloAttention", {"failure": 1}),
    ]
    tree = parsed(sketch.atlas(yolo11n(), told, sketch.scales(told)["gain"], grid))
    found = {(g.get("data-row"), g.get("data-module")): g for g in tree.iter(f"{SVG}g") if "lost" in (g.get("class") or "").split()}
    assert {key: " ".join(lines(g)) for key, g in found.items()} == {
        ("4", "LSKA"): "over limit",
        ("6", "LIA"): "stopped",
        ("9", "HaloAttention"): "failed",
    }
    assert found["4", "LSKA"].find(f"{SVG}title").text.endswith("trials that hold it: 2 over a limit")
    assert apart([*boxes(tree, "cell"), *boxes(tree, "lost")])
    assert len(named(tree, "column")) == 6
    assert [" ".join(lines(t)) for t in named(tree, "module")] == ["HaloAttention", "LIA", "LSKA", "SE"]


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
    assert [lines(text) for text in named(tree, "column")] == [["row", "4"], ["row", "9"]]


def test_names_are_text():
    nodes = (Node(row=0, module=HOSTILE, sources=(), channels=8, stride=8, names=(HOSTILE,)),)
    text = sketch.atlas(Network(nodes=nodes, backbone=1), [cell(0, HOSTILE, 0.1)], sketch.scales([cell(0, HOSTILE, 0.1)])["gain"])
    assert not re.search(r"<(script|img)", text)
    parsed(text)
