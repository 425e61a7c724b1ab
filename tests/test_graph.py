"""Graphs of model YAMLs: the laws of edits, over every YAML that Ultralytics ships; findings; channels against built models."""

import ast
import copy
import os
import pickle
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_attn import graph as module
from nas_attn.errors import GraphError
from nas_attn.graph import Edit, Finding, Frozen, Graph, Row, channels, insert, known_names, lint, lint_yaml, remove

# Ultralytics reads these at its import: no look-ups on the network, no package installed.
os.environ["YOLO_OFFLINE"] = "1"
os.environ["YOLO_AUTOINSTALL"] = "false"

PACKAGE = Path((find_spec("ultralytics").submodule_search_locations or [""])[0])
FILES = {file.stem: file for file in sorted((PACKAGE / "cfg" / "models").rglob("*.yaml"))}
DATA = {name: yaml.safe_load(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
DETECTION = sorted(name for name, data in DATA.items() if data["head"][-1][2] in {"Detect", "v10Detect", "RTDETRDecoder"})
LSKA = ("nas_attn.LSKA", ["c2", 7, False])

shipped = pytest.mark.parametrize("name", sorted(DATA))


def hosts(graph: Graph) -> list[int]:
    return [n for n, row in enumerate(graph.rows) if graph.consumers(n) and row.module != "CBLinear"]


def random_edit(graph: Graph, rng: random.Random) -> tuple[dict[int, tuple[str, list[Any]]], Edit]:
    legal = hosts(graph)
    chosen = rng.sample(legal, rng.randint(1, len(legal)))
    rows = {host: (f"nas_attn.{rng.choice(['LSKA', 'LIA'])}", ["c2", rng.choice([3, 7, [1, 2]])]) for host in chosen}
    return rows, insert(graph, rows)


def codes(findings: tuple[Finding, ...]) -> list[tuple[int, str]]:
    return [(finding.row, finding.code) for finding in findings]


def small(*head: list[Any], **others: Any) -> dict[str, Any]:
    """Two stages and a head: rows 0 to 3 are the backbone."""
    backbone = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "C2f", [64]], [-1, 1, "Conv", [128, 3, 2]], [-1, 1, "C2f", [128]]]
    return {"nc": 3, **others, "backbone": backbone, "head": [list(row) for row in head] or [[[1, 3], 1, "Detect", ["nc"]]]}


def reached(rows: list[list[Any]]) -> list[Any]:
    """What a YAML computes, told without row numbers: each row as its module, arguments and what its sources compute."""
    told: list[Any] = []
    for number, (source, repeats, name, args) in enumerate(rows):
        sources = source if isinstance(source, list) else [source]
        read = tuple(told[number + s if s < 0 else s] if number else "image" for s in sources)
        told.append((name, repeats, repr(args), isinstance(source, list), hash(read)))
    return told


# --- laws ---


def test_shipped_yamls_are_found():
    assert len(DETECTION) >= 25
    families = ("yolov3", "yolov5", "yolov6", "yolov8", "yolov9", "yolov10", "yolo11", "yolo12", "yolo26", "rtdetr")
    assert all(any(name.startswith(family) for name in DETECTION) for family in families)
    assert {"yolov8-p2", "yolov8-p6", "yolov8-ghost", "yolo26-p2", "yolo26-p6", "yolov9e", "yolov3-tiny"} <= set(DETECTION)


@shipped
def test_round_trip_keeps_meaning_and_every_key(name):
    before = copy.deepcopy(DATA[name])
    graph = Graph.from_yaml(DATA[name])
    data = graph.to_yaml()
    assert DATA[name] == before
    assert {key: value for key, value in data.items() if key not in ("backbone", "head")} == {
        key: value for key, value in before.items() if key not in ("backbone", "head")
    }
    assert list(graph.settings) == [key for key in before if key not in ("backbone", "head")]
    assert len(data["backbone"]) == len(before["backbone"])
    assert reached(data["backbone"] + data["head"]) == reached(before["backbone"] + before["head"])
    assert yaml.safe_load(yaml.safe_dump(data)) == data
    assert Graph.from_yaml(data) == graph


@shipped
def test_nothing_inserted_is_the_identity(name):
    graph = Graph.from_yaml(DATA[name])
    assert insert(graph, {}) == Edit(graph, tuple(range(len(graph.rows))))


@shipped
def test_remove_inverts_random_inserts(name):
    graph, rng = Graph.from_yaml(DATA[name]), random.Random(name)
    for _ in range(8):
        rows, edit = random_edit(graph, rng)
        assert remove(edit) == graph
        assert len(edit.inserted) == len(rows)
        assert len(edit.graph.rows) == len(graph.rows) + len(rows)


@shipped
def test_inserted_rows_take_their_hosts_place(name):
    graph, rng = Graph.from_yaml(DATA[name]), random.Random(name)
    for _ in range(4):
        rows, edit = random_edit(graph, rng)
        assert set(edit.inserted) == {edit.moved[host] + 1 for host in rows}
        for host, (module_name, args) in rows.items():
            new = edit.graph.rows[edit.moved[host] + 1]
            assert (new.sources, new.repeats, new.module, new.listed) == ((edit.moved[host],), 1, module_name, False)
            assert list(new.args) == [tuple(arg) if isinstance(arg, list) else arg for arg in args]
            assert edit.graph.consumers(edit.moved[host]) == (edit.moved[host] + 1,)
            assert edit.graph.consumers(edit.moved[host] + 1) == tuple(edit.moved[c] for c in graph.consumers(host))
        for number, row in enumerate(graph.rows):
            new = edit.graph.rows[edit.moved[number]]
            wanted = tuple(s if s < 0 else edit.moved[s] + (s in rows) for s in row.sources)
            assert (new.sources, new.module, new.args, new.repeats) == (wanted, row.module, row.args, row.repeats)
        assert edit.graph.backbone == graph.backbone + sum(host < graph.backbone for host in rows)
        assert edit.graph.settings == graph.settings
        assert all(s < n for n, row in enumerate(edit.graph.rows) for s in row.sources)
        assert Graph.from_yaml(edit.graph.to_yaml()) == edit.graph
        assert lint(edit.graph) == ()


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_edits_of_edits_come_off_one_by_one(data):
    graph = Graph.from_yaml(DATA[data.draw(st.sampled_from(DETECTION))])
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    _, first = random_edit(graph, rng)
    _, second = random_edit(first.graph, rng)
    assert remove(second) == first.graph
    both = Edit(second.graph, tuple(second.moved[row] for row in first.moved))
    assert remove(both) == graph
    assert lint(second.graph) == ()


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_insertions_do_not_depend_on_each_other(data):
    graph = Graph.from_yaml(DATA[data.draw(st.sampled_from(DETECTION))])
    chosen = data.draw(st.lists(st.sampled_from(hosts(graph)), min_size=1, max_size=5, unique=True))
    at_once = insert(graph, dict.fromkeys(chosen, LSKA))
    one_by_one = Edit(graph, tuple(range(len(graph.rows))))
    for host in chosen:
        step = insert(one_by_one.graph, {one_by_one.moved[host]: LSKA})
        one_by_one = Edit(step.graph, tuple(step.moved[row] for row in one_by_one.moved))
    assert one_by_one == at_once


# --- values ---


def test_values_are_hashable_and_pickle():
    graph = Graph.from_yaml(DATA["yolo11-pose"])
    edit = insert(graph, {4: ("nas_attn.LSKA", ["c2", [1, {"a": [2]}]])})
    assert len({graph, Graph.from_yaml(DATA["yolo11-pose"]), edit.graph}) == 2
    assert pickle.loads(pickle.dumps(edit)) == edit == copy.deepcopy(edit)
    assert edit.graph.to_yaml()["backbone"][5] == [-1, 1, "nas_attn.LSKA", ["c2", [1, {"a": [2]}]]]


def test_to_yaml_shares_nothing():
    graph = Graph.from_yaml(DATA["yolo26"])
    graph.to_yaml()["scales"]["n"][0] = 7
    graph.to_yaml()["head"][-1][0].append(7)
    assert graph.to_yaml() == Graph.from_yaml(DATA["yolo26"]).to_yaml()


def test_settings_are_a_mapping_whose_order_counts():
    one, two = Frozen((("n", 1), ("s", 2))), Frozen((("s", 2), ("n", 1)))
    assert one == {"s": 2, "n": 1}
    assert one != two
    assert (one["n"], len(one), list(one), one.get("m")) == (1, 2, ["n", "s"], None)
    with pytest.raises(KeyError):
        one["m"]


def test_references_are_written_as_people_write_them():
    data = small([[-2, -1, 0], 1, "Concat", [1]], [4, 1, "C2f", [128]], [[5], 1, "Detect", ["nc"]])
    graph = Graph.from_yaml(data)
    assert [row.sources for row in graph.rows[4:]] == [(2, 3, 0), (4,), (5,)]
    assert [row[0] for row in graph.to_yaml()["head"]] == [[2, -1, 0], -1, [5]]
    assert graph.rows[0].sources == (module.IMAGE,)


def test_consumers_and_outputs():
    graph = Graph.from_yaml(DATA["yolo11"])
    assert graph.consumers(4) == (5, 15)
    assert graph.consumers(23) == ()
    assert graph.outputs == (23,)
    world = Graph.from_yaml(DATA["yolov8-world"])
    assert [world.rows[row].module for row in world.outputs] == ["ImagePoolingAttn", "WorldDetect"]


def test_the_detect_rows_of_yolo11_read_the_attention():
    edit = insert(Graph.from_yaml(DATA["yolo11"]), {4: LSKA, 16: LSKA, 10: LSKA})
    assert edit.moved == (*range(5), *range(6, 12), *range(13, 19), *range(20, 27))
    assert edit.inserted == (5, 12, 19)
    assert edit.graph.backbone == 13
    assert edit.graph.rows[26].sources == (19, 22, 25)
    assert edit.graph.rows[17].sources == (16, 5)


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "host", "message"),
    [
        ("yolo11", 23, r"must be read by a later row, but nothing reads row 23 \(Detect\)"),
        ("yolo11", 24, r"from 0 to 23, but got 24"),
        ("yolo11", -1, r"but got -1"),
        ("yolov8-world", 16, r"nothing reads row 16 \(ImagePoolingAttn\)"),
        ("yolov9e", 12, r"must output one tensor, but row 12 \(CBLinear\) outputs several"),
    ],
)
def test_hosts_that_are_refused(name, host, message):
    graph = Graph.from_yaml(DATA[name])
    with pytest.raises(GraphError, match=message):
        insert(graph, {host: LSKA})


@pytest.mark.parametrize(("split", "reader"), [(True, "nn.Identity"), (False, "Index")])
def test_a_row_that_outputs_a_list_is_refused(split, reader):
    rows = [[-1, 1, "TorchVision", [768, "convnext_tiny", "DEFAULT", True, 2, split]], [0, 1, reader, [192, 4]]]
    graph = Graph.from_yaml({"nc": 1, "backbone": rows, "head": [[[-1], 1, "Detect", ["nc"]]]})
    assert insert(graph, {1: LSKA}).inserted == (2,)
    with pytest.raises(GraphError, match=r"row 0 \(TorchVision\) outputs several"):
        insert(graph, {0: LSKA})


def test_a_head_that_is_read_is_refused_too():
    graph = Graph.from_yaml(small([[1, 3], 1, "Detect", ["nc"]], [-1, 1, "nn.Identity", []]))
    with pytest.raises(GraphError, match=r"row 4 \(Detect\) outputs several"):
        insert(graph, {4: LSKA})


def test_remove_refuses_a_row_with_several_sources():
    graph = Graph.from_yaml(small([[1, 3], 1, "Concat", [1]], [[4], 1, "Detect", ["nc"]]))
    with pytest.raises(GraphError, match=r"one source, but row 4 has \(1, 3\)"):
        remove(Edit(graph, (0, 1, 2, 3, 5)))


@pytest.mark.parametrize("moved", [(), (1, 2), (0, 2, 1), (0, 0), (0, 5)])
def test_edits_ascend_within_their_graph(moved):
    with pytest.raises(GraphError, match="must ascend from 0 within the 5 rows"):
        Edit(Graph.from_yaml(small()), moved)


@pytest.mark.parametrize(
    ("rows", "backbone", "message"),
    [
        ((), 0, "rows >= 1"),
        ((Row((-1,), 1, "Conv"),), 2, "self.backbone=2 and 1 rows"),
        ((Row((0,), 1, "Conv"),), 1, "row 0 reads 0; it may read -1, the image"),
        ((Row((-1,), 1, "Conv"), Row((-1,), 1, "Conv")), 1, "row 1 reads -1"),
        ((Row((-1,), 1, "Conv"), Row((1,), 1, "Conv")), 1, "row 1 reads 1"),
    ],
)
def test_graphs_read_backwards_only(rows, backbone, message):
    with pytest.raises(GraphError, match=message):
        Graph(rows, backbone)


@pytest.mark.parametrize(("sources", "listed"), [((), True), ((0, 1), False)])
def test_rows_have_a_source(sources, listed):
    with pytest.raises(GraphError, match="one source, or a list"):
        Row(sources, 1, "Concat", (), listed)


# --- findings ---


@shipped
def test_no_finding_in_what_ultralytics_ships(name):
    for scale in DATA[name].get("scales", [""]):
        assert lint_yaml(DATA[name], registered=(), scale=scale) == ()


MALFORMED = [
    ({"backbone": []}, "`backbone` and `head`, lists of rows"),
    (["backbone"], "`backbone` and `head`, lists of rows"),
    ({"backbone": [], "head": []}, "must have rows"),
    (small(scales={"n": [1, 2]}), r"`scales` must map letters to \[depth, width, max_channels\]"),
    (small(scales={"n": ["a", 1, 2]}), "`scales`"),
    (small(scales=[1, 2, 3]), "`scales`"),
    (small(scales={1: [1, 2, 3]}), "`scales`"),
    (small(width_multiple="wide"), "`width_multiple` must be a number above 0, but is 'wide'"),
    (small([-1, 1, "Conv"]), r"\[from, repeats, module, args\], but row 4 is"),
    (small([-1, 1, "Conv", [1], 5]), r"but row 4 is"),
    (small([True, 1, "Conv", []]), "`from` of row 4 must hold row numbers, but is True"),
    (small([[], 1, "Conv", []]), r"`from` of row 4 must hold row numbers, but is \[\]"),
    (small(["-1", 1, "Conv", []]), "`from` of row 4"),
    (small([-1, 0, "Conv", []]), "`repeats` of row 4 must be 1 to 1000, but is 0"),
    (small([-1, 1.5, "Conv", []]), "`repeats` of row 4"),
    (small([-1, 1, "", []]), "`module` of row 4"),
    (small([-1, 1, ["Conv"], []]), "`module` of row 4"),
    (small([-1, 1, "Conv", 64]), "`args` of row 4 must be a list, but is 64"),
]


@pytest.mark.parametrize(("data", "message"), MALFORMED)
def test_malformed_yamls_are_findings_and_errors(data, message):
    found = lint_yaml(data)
    assert [finding.code for finding in found] == ["malformed"]
    with pytest.raises(GraphError, match=message):
        Graph.from_yaml(data)


REFERENCES = [
    ([4, 1, "C2f", [128]], (4, "forward-reference"), "row 4 reads 4; it may read -1, or 0 to 3"),
    ([[3, 5], 1, "Concat", [1]], (4, "forward-reference"), "row 4 reads 5"),
    ([[3, 6], 1, "Concat", [1]], (4, "out-of-range"), "row 4 reads 6"),
    ([-5, 1, "C2f", [128]], (4, "out-of-range"), "row 4 reads -5"),
]


@pytest.mark.parametrize(("row", "code", "message"), REFERENCES)
def test_references_that_do_not_point_backwards(row, code, message):
    data = small(row, [[1, 4], 1, "Detect", ["nc"]])
    assert codes(lint_yaml(data)) == [code]
    with pytest.raises(GraphError, match=message):
        Graph.from_yaml(data)


def test_row_0_reads_the_image_only():
    data = small()
    data["backbone"][0][0] = -2
    assert codes(lint_yaml(data)) == [(0, "out-of-range")]


def test_every_wrong_row_is_found_at_once():
    data = small([9, 1, "C2f", [128]], [-1, 1, "Conv"], [[1, 6], 1, "Detect", ["nc"]])
    assert codes(lint_yaml(data)) == [(4, "out-of-range"), (5, "malformed"), (6, "forward-reference")]
    with pytest.raises(GraphError, match=r"row 4 reads 9.*\(2 more"):
        Graph.from_yaml(data)


@given(st.data())
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_lint_yaml_never_raises(data):
    leaf = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["n", "Conv", "Detect", "nc", "c2", "width", ""])
    value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=4), max_leaves=6)
    row = st.tuples(value, value, st.sampled_from(["Conv", "Concat", "HGBlock", "CBFuse", "nas_attn.LSKA", "nn.X", "ResNetLayer"]), value)
    section = st.lists(row.map(list) | st.just([-1, 1, "Conv", [64]]) | value, max_size=4) | value
    scales = st.dictionaries(st.sampled_from("nsm"), st.lists(leaf, min_size=3, max_size=3) | value, max_size=2) | value
    keys = {"backbone": section, "head": section, "scales": scales, "scale": value, "nc": value, "channels": value, "width_multiple": value}
    yaml_data = data.draw(st.fixed_dictionaries({}, optional=keys))
    assert all(isinstance(finding, Finding) for finding in lint_yaml(yaml_data))


def test_dead_attention():
    data = small([3, 1, "nas_attn.LSKA", ["c2"]], [4, 1, "nn.Identity", []], [[1, 3], 1, "Detect", ["nc"]])
    assert codes(lint_yaml(data)) == [(4, "bypassed-attention"), (4, "dead-attention"), (5, "dead-row")]
    data = small([3, 1, "C2PSA", [128]], [[1, 3], 1, "Detect", ["nc"]])
    assert codes(lint_yaml(data)) == [(4, "dead-attention")]


def test_bypassed_attention():
    data = small([-1, 1, "nas_attn.LSKA", ["c2"]], [4, 1, "C2f", [128]], [[3, 5], 1, "Detect", ["nc"]])
    (finding,) = lint_yaml(data)
    assert (finding.row, finding.code) == (4, "bypassed-attention")
    assert "but [6] read row 3" in finding.message


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([-1, 1, "Conv", [128, 3, 2]], True),
        ([-1, 1, "ADown", [128]], True),
        ([-1, 1, "nn.Upsample", [None, 2, "nearest"]], True),
        ([-1, 1, "Conv", [128, 1, 1]], False),
        ([-1, 1, "C2f", [128]], False),
    ],
)
def test_unshifted_reference(row, found):
    data = small(row, [-1, 1, "C2f", [128]], [[1, 4, 5], 1, "Detect", ["nc"]])
    assert codes(lint_yaml(data)) == ([(6, "unshifted-reference")] if found else [])


@pytest.mark.parametrize("name", DETECTION)
def test_a_row_inserted_without_renumbering_is_found_wherever_it_is(name):
    graph = Graph.from_yaml(DATA[name])
    for host in hosts(graph):
        data = copy.deepcopy(DATA[name])
        section, place = ("backbone", host) if host < graph.backbone else ("head", host - graph.backbone)
        data[section].insert(place + 1, [-1, 1, *LSKA])
        assert lint_yaml(data), f"row inserted after {host}"


@pytest.mark.parametrize("name", ["yolov5", "yolov8", "yolo11", "yolo12", "yolo26", "yolov10n"])
def test_a_head_renumbered_alone_is_found_for_stage_blocks_that_later_rows_skip_to(name):
    """The common mistake: the Detect row is corrected and a Concat forgotten, so that nothing is dead."""
    graph = Graph.from_yaml(DATA[name])
    skips = [n for n in range(graph.backbone) if any(c > n + 1 for c in graph.consumers(n))]
    for host in (n for n in range(min(skips)) if n in hosts(graph)):
        edited = insert(graph, {host: LSKA}).graph
        rows = edited.to_yaml()
        for number in range(graph.backbone + 1, len(edited.rows) - 1):
            place = number - edited.backbone
            if place >= 0 and edited.rows[number].module == "Concat":
                rows["head"][place][0] = [s if s == -1 or s > edited.backbone else s - 1 for s in rows["head"][place][0]]
        assert "unshifted-reference" in {finding.code for finding in lint_yaml(rows)}


def cbam(args: list[Any], width: float = 0.25) -> dict[str, Any]:
    return small([-1, 1, "CBAM", args], [[1, 4], 1, "Detect", ["nc"]], scales={"n": [0.5, width, 1024], "l": [1.0, 1.0, 512]})


@pytest.mark.parametrize(
    ("args", "scale", "wrong"),
    [
        ([128], "n", True),
        ([128], None, True),
        ([32], "n", False),
        ([32], "l", True),
        ([128], "l", False),
        (["c2"], "n", False),
        (["c2"], "l", False),
        ([7], "n", False),  # a kernel size, for all that can be known
        ([0.5, 128], "n", False),
        ([], "n", False),
        (["nc"], "n", False),
    ],
)
def test_channels_of_an_unknown_module(args, scale, wrong):
    found = codes(lint_yaml(cbam(args), registered={"CBAM"}, scale=scale))
    assert found == ([(4, "channels")] if wrong else [])


def test_c2_is_the_previous_row_not_the_source():
    rows = [[1, 1, "nas_attn.LSKA", ["c2"]], [[3, 4], 1, "Detect", ["nc"]]]
    (finding,) = lint_yaml(small(*rows))
    assert (finding.row, finding.code) == (4, "channels")
    assert "must be its source's, 64, but are 128" in finding.message
    assert lint_yaml(small([3, 1, "nas_attn.LSKA", ["c2"]], [[1, 4], 1, "Detect", ["nc"]])) == ()


def test_channels_are_not_judged_where_the_source_is_unknown_or_not_alone():
    unknown = small([[1, 3], 1, "Mix", [4]], [-1, 1, "nas_attn.LSKA", [64]], [[1, 5], 1, "Detect", ["nc"]])
    assert lint_yaml(unknown, registered={"Mix", "nas_attn.LSKA"}) == ()
    several = small([[1, 3], 1, "Mix", [256]], [[1, 4], 1, "Detect", ["nc"]])
    assert lint_yaml(several, registered={"Mix"}) == ()


def test_our_own_modules_take_channels_first_however_few():
    data = small([-1, 1, "nas_attn.LSKA", [7]], [[1, 4], 1, "Detect", ["nc"]])
    assert codes(lint_yaml(data)) == [(4, "channels")]


def test_an_unknown_scale_is_refused():
    graph = Graph.from_yaml(DATA["yolo11"])
    with pytest.raises(GraphError, match=r"`scale` must be one of the YAML's, but got 'q'"):
        lint(graph, scale="q")
    assert channels(Graph.from_yaml(DATA["yolov9t"]), "q") == channels(Graph.from_yaml(DATA["yolov9t"]))


@pytest.mark.parametrize(
    ("name", "registered", "hint"),
    [
        ("CBAM", None, "register its class"),
        ("C2ff", None, "Did you mean 'C2f'"),
        ("nn.Upsampel", None, "."),
        ("torchvision.ops.Nope", None, "."),
        ("nas_attn.LSAK", {"nas_attn.LSKA"}, "Did you mean 'nas_attn.LSKA'"),
        ("DetectionModel", None, "."),
    ],
)
def test_unregistered_names(name, registered, hint):
    data = small([-1, 1, name, []], [[1, 4], 1, "Detect", ["nc"]])
    (finding,) = lint_yaml(data, registered=registered)
    assert (finding.row, finding.code) == (4, "unregistered")
    assert hint in finding.message


@pytest.mark.parametrize(
    ("name", "registered"),
    [
        ("nas_attn.Anything", None),
        ("nas_attn.LSKA", {"nas_attn.LSKA"}),
        ("CBAM", {"CBAM"}),
        ("nn.GELU", None),
        ("nn.MyAttn", ["nn.MyAttn"]),
        ("torchvision.ops.DropBlock2d", None),
    ],
)
def test_registered_names(name, registered):
    data = small([-1, 1, name, []], [[1, 4], 1, "Detect", ["nc"]])
    assert lint_yaml(data, registered=registered) == ()


def test_names_of_a_package_that_is_absent_are_not_judged(monkeypatch):
    known_names.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    try:
        assert lint_yaml(small([-1, 1, "CBAM", [7]], [[1, 4], 1, "Detect", ["nc"]])) == ()
    finally:
        known_names.cache_clear()


def test_graphs_need_neither_torch_nor_ultralytics():
    code = (
        "import sys, yaml; from nas_attn.graph import Graph, lint\n"
        f"lint(Graph.from_yaml(yaml.safe_load(open({str(FILES['yolo11'])!r}))))\n"
        "sys.exit(', '.join({'torch', 'ultralytics', 'ray', 'optuna'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- against the installed Ultralytics ---


def test_the_tables_are_those_of_the_installed_parser():
    """`parse_model` read as source: the modules that it scales, and those that it gives the list of their sources' channels."""
    tree = ast.parse((PACKAGE / "nn" / "tasks.py").read_text(encoding="utf-8"))
    parse = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "parse_model")
    assigned = {
        node.targets[0].id: node.value for node in ast.walk(parse) if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    scaled = {ast.unparse(name).replace("torch.nn.", "nn.") for name in assigned["base_modules"].args[0].elts}
    assert scaled - {"Classify"} == module.SCALED
    assert known_names() >= module.HEADS | module.ATTENTION | module.SIDE_EFFECTS
    assert known_names() >= {name for name in module.SCALED if "." not in name}
    assert known_names().isdisjoint({"CBAM", "DetectionModel", "Path", "LOGGER", "v8DetectionLoss"})


def first_output(row: list[Any], **others: Any) -> int | None:
    data = small(row, [[1, 4], 1, "Detect", ["nc"]], **others)
    return channels(Graph.from_yaml(data))[4]


@pytest.mark.parametrize(
    ("row", "count"),
    [
        ([-1, 1, "Conv", [100]], 56),  # 50, up to a multiple of 8
        ([-1, 1, "Conv", [4096]], 256),  # capped at 512
        ([-1, 1, "Conv", ["c2"]], 32),
        ([-1, 1, "Conv", ["wide"]], None),
        ([-1, 1, "Classify", ["nc"]], 3),
        ([-1, 1, "Index", [192, 4]], 192),
        ([-1, 1, "HGBlock", [48, 128, 3]], 128),
        ([-1, 1, "ResNetLayer", [64, 32, 1, True, 1]], 32),
        ([-1, 1, "ResNetLayer", [64, 32, 1, False, 3]], 128),
        ([[1, 3], 1, "CBFuse", [[0]]], 64),
        ([[1, 3], 1, "Concat", [1]], 96),
        ([1, 1, "nn.Upsample", [None, 2, "nearest"]], 32),
        ([-1, 1, "CBLinear", [[64, 128]]], None),
        ([[1, 3], 1, "Unknown", [64]], None),
    ],
)
def test_channels_by_rule(row, count):
    assert first_output(row, scales={"n": [0.5, 0.5, 512]}) == count


def test_channels_without_scales_and_with_a_scale_of_its_own():
    conv = [-1, 1, "Conv", [64]]
    assert first_output(conv) == 64
    assert first_output(conv, width_multiple=0.5) == 32
    scales = {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]}
    assert first_output(conv, scales=scales) == 16
    assert first_output(conv, scales=scales, scale="s") == 32
    assert first_output([-1, 1, "Concat", [1]], scales={}, scale="s") == 128


def test_channels_of_the_image():
    data = {"channels": 6, "backbone": [[-1, 1, "nn.Identity", []]], "head": [[-1, 1, "Conv", ["c2"]]]}
    assert channels(Graph.from_yaml(data)) == (6, 8)
    assert channels(Graph.from_yaml({**data, "channels": 3})) == (3, 8)


def built(name: str, scale: str) -> list[int | None]:
    """Channels of every row's output, from a forward pass of the built model; None for what is no single map."""
    import torch
    from ultralytics.nn import tasks

    head = DATA[name]["head"][-1][2]
    cls = tasks.RTDETRDetectionModel if head == "RTDETRDecoder" else tasks.DetectionModel
    model = cls({**copy.deepcopy(DATA[name]), **({"scale": scale} if scale else {}), "yaml_file": f"{name}.yaml"}, verbose=False)
    found: list[int | None] = []
    heads = module.HEADS

    def note(layer: Any, _: Any, output: Any) -> None:
        single = isinstance(output, torch.Tensor) and layer.type.rpartition(".")[2] not in heads
        found.append(output.shape[1] if single else None)

    for layer in model.model:
        layer.register_forward_hook(note)
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 64, 64))
    return found


@pytest.mark.parametrize(("name", "scale"), [("yolo11", "n"), ("yolov8", "n")])
def test_channels_are_those_of_the_built_model(name, scale):
    assert list(channels(Graph.from_yaml(DATA[name]), scale)) == built(name, scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTION)
def test_channels_are_those_of_every_built_model(name):
    for scale in DATA[name].get("scales", [""]):
        assert list(channels(Graph.from_yaml(DATA[name]), scale)) == built(name, scale), scale
