"""The base as it is drawn."""

import json

import pytest
from snapshots import network as yolo11n

from nas_attn import network
from nas_attn.errors import StudyError


def test_a_saved_network_comes_back(tmp_path):
    yolo11n().save(tmp_path)
    assert network.load(tmp_path) == yolo11n()


def test_without_a_file_the_rows_that_trials_use_are_known(tmp_path):
    found = network.load(tmp_path, [9, 4, 9])
    assert not found.drawn
    assert [node.row for node in found.nodes] == [4, 9]
    assert found.label(4) == "row 4"
    assert found.lanes == (1,)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"backbone": 1, "nodes": [{"row": "x"}]}', '{"backbone": 1, "nodes": 3}', '{"nodes": []}']
)
def test_another_file_is_refused_with_the_remedy(tmp_path, text):
    (tmp_path / network.FILE).write_text(text)
    with pytest.raises(StudyError, match=r"network\.json must be as a search writes it.*delete it"):
        network.load(tmp_path)


def test_every_row_has_a_column_and_a_lane_of_its_stride():
    spots = yolo11n().spots()
    assert [spots[row][0] for row in range(24)] == list(range(24))
    assert yolo11n().lanes == (2, 4, 8, 16, 32)
    assert spots[4][1:] == (2.0, 2.0)
    assert spots[23][1:] == (2.0, 4.0)  # the head reads strides 8 to 32


def test_a_site_is_named_as_people_know_it():
    assert [yolo11n().label(row) for row in (4, 13, 16, 17)] == ["P3", "neck_P4", "neck_P3_out", "row 17"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "base", ["yolo11n.yaml", "yolov5n.yaml", "yolov8n.yaml", "yolov9t.yaml", "yolov10n.yaml", "yolo12n.yaml", "yolo26n.yaml"]
)
def test_the_network_of_every_family_can_be_drawn(base, tmp_path):
    from nas_attn.detector import base_sites, load_base
    from nas_attn.detector import network as built

    graph, scale = load_base(base)
    found = built(graph, scale)
    found.save(tmp_path)
    assert network.load(tmp_path) == found
    assert len(found.nodes) == len(graph.rows)
    assert {8, 16, 32} <= set(found.lanes)
    assert {site.layer for site in base_sites(base)[2]} <= {node.row for node in found.nodes if node.stride}
    assert all(source < node.row for node in found.nodes for source in node.sources)
    if base == "yolo11n.yaml":
        ours = json.loads(yolo11n().to_text())["nodes"]
        assert [{**node, "channels": 0} for node in ours] == [{**node, "channels": 0} for node in json.loads(found.to_text())["nodes"]]
