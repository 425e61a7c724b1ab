"""The figures as files, the summary, the data frame, and two studies side by side."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from snapshots import HOSTILE, base, failed, placement, rejected, snapshot, study, trial, with_network

from nas_attn import charts, columns, comparison, figures, history, report, summary
from nas_attn.architecture import Architecture, Placement
from nas_attn.network import Network, Node


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return dataclasses.replace(study(16), folder=with_network(tmp_path_factory.mktemp("drawn")))


@pytest.fixture(scope="module")
def told(drawn):
    return report.study(drawn)


def test_every_figure_is_a_png_and_an_svg_whose_text_is_text(told):
    made = figures.files(told)
    assert sorted(made) == sorted(
        f"{name}.{kind}" for name in ("front", "atlas", "progress", "noise", "latency") for kind in ("png", "svg")
    )
    for name, content in made.items():
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
            assert len(content) > 10_000
        else:
            texts = "".join(text for element in ET.fromstring(content).iter() for text in (element.text or "",))
            assert len(texts.strip()) > 20, name
    assert b"neck" in made["atlas.svg"]
    assert made == figures.files(told)


def test_the_front_has_the_answer_and_progress_the_pages_axes(told):
    made = figures.files(told)
    assert b">Keep the base<" in made["front.svg"]
    assert b"on the expected front" in made["front.svg"]
    layout = charts.progress(history.progress(told.snapshot))["layout"]
    for axis in ("xaxis", "xaxis2", "yaxis"):
        assert layout[axis]["title"]["text"].encode() in made["progress.svg"]


def test_what_has_nothing_to_show_is_left_out():
    assert set(figures.files(report.study(snapshot(failed(0))))) == set()
    assert {name.partition(".")[0] for name in figures.files(report.study(snapshot(base())))} == {"front", "latency"}


def test_figures_are_written_whole(drawn, tmp_path):
    paths = report.write_figures(drawn, tmp_path / "figures")
    assert len(paths) == 10
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in paths)


# -- the data frame ----------------------------------------------------------------------------------------------------------------------


def test_the_columns_are_described_and_typed(drawn, tmp_path):
    found = report.frame(drawn)
    assert list(found.columns) == list(columns.ABOUT)
    assert all(columns.ABOUT.values())
    assert {str(found[name].dtype) for name in report.NUMBERS} == {"float64"}
    assert len(found) == len(drawn.trials)
    report.write(drawn, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "trials.parquet"), found, check_dtype=False)
    read = pd.read_csv(tmp_path / "trials.csv")
    assert list(read.columns) == list(columns.ABOUT)
    pd.testing.assert_series_equal(read["map50_95"], found["map50_95"])


def test_a_study_without_a_score_has_the_same_types():
    found = report.frame(snapshot(failed(0)))
    assert {str(found[name].dtype) for name in report.NUMBERS} == {"float64"}
    assert report.frame(snapshot()).empty


# -- the summary -------------------------------------------------------------------------------------------------------------------------


def test_the_summary_is_a_few_lines_of_markdown(told):
    text = summary.summary(told)
    assert text.startswith("## Keep the base\n")
    assert "| trial | what | mAP50-95 (90 %) |" in text
    assert "To know before believing it:" not in text  # of this study there is nothing to warn of
    assert "- No positive control was run" in summary.summary(report.study(snapshot(base(), trial(1, [placement(4)], 0.31, 1.1))))
    assert len(text.splitlines()) < 40


def test_users_text_in_the_summary_is_escaped():
    bad = [Placement(layer=4, module=HOSTILE)]
    snap = snapshot(base(), trial(1, bad, 0.36, 1.1), name="| [x](javascript:y)", settings={"command": HOSTILE})
    text = summary.summary(report.study(snap))
    assert not re.search(r"(?<!`)<(script|img)", re.sub(r"`+[^`]*`+", "", text))


# -- two studies -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(drawn, tmp_path_factory):
    other = dataclasses.replace(study(16, seed=3), name="other", folder=with_network(tmp_path_factory.mktemp("other")))
    return comparison.compare(drawn, other)


def test_placements_are_matched_by_the_names_of_their_sites(compared):
    assert len(compared.pairs) >= comparison.LEAST_SHARED
    assert all(pair.first.module == pair.second.module == pair.module for pair in compared.pairs)
    assert -1 <= compared.correlation <= 1
    assert {pair.site for pair in compared.pairs} <= {"P3", "P4", "SPPF", "PSA", "neck_P4", "neck_P3_out", "neck_P4_out", "neck_P5_out"}


def test_a_study_agrees_with_itself(drawn):
    same = comparison.compare(drawn, drawn)
    assert all(pair.agrees for pair in same.pairs)
    assert same.correlation == pytest.approx(1.0)
    assert "the effects differ by 0.00 points of mAP50-95 in the mean" in comparison.words(same)[-1]
    assert comparison._differences(same) == []


def test_the_page_of_two_studies(compared):
    text = comparison.page(compared)
    assert text.count('class="atlas"') == 2
    assert 'id="chart-front-0"' in text
    assert 'id="chart-front-1"' in text
    assert text.count("plotly.js v") == 1
    assert "Placements tried in both" in text
    assert "default-src 'none'" in text


def test_two_studies_with_nothing_in_common():
    text = comparison.page(comparison.compare(snapshot(base()), snapshot(failed(0), name=HOSTILE)))
    assert "their atlases do not compare" in text
    assert "<script>alert" not in text


def charts_of(both):
    text = comparison.page(both).partition('<script type="application/json" id="study">')[2].partition("</script>")[0]
    charts = json.loads(text)["charts"]
    return charts["front-0"], charts["front-1"]


def trace(figure, name):
    return next(one for one in figure["data"] if one.get("name") == name)


def test_fronts_of_other_data_are_drawn_as_gains_over_their_own_base():
    """The bases score 0.35 and 0.75: on one axis of scores either front would be a flat line."""
    studies = [
        snapshot(base([level - 0.002, level, level + 0.002]), trial(1, [placement(4)], level + rise, 1.1), name=str(level))
        for level, rise in ((0.35, 0.02), (0.75, 0.01))
    ]
    figures = charts_of(comparison.compare(*studies))
    for figure, gain in zip(figures, (2.2, 1.2), strict=True):  # against the same seed of the base
        assert trace(figure, "observed, one trial each")["y"] == pytest.approx([gain])
        assert trace(figure, "observed, one trial each")["hovertemplate"].count("points") == 1
        assert trace(figure, "the base")["y"] == pytest.approx([0.0])
        assert figure["layout"]["yaxis"]["title"]["text"] == "gain over the base, points of mAP50-95"
        assert [(shape["y0"], shape["y1"]) for shape in figure["layout"]["shapes"]] == [pytest.approx((-0.2, 0.2))]
    low, high = figures[0]["layout"]["yaxis"]["range"]
    assert figures[1]["layout"]["yaxis"]["range"] == [low, high]
    assert low < -0.2
    assert 2.2 < high < 3.0


def test_an_expected_front_is_drawn_with_the_intervals_of_its_gains(told):
    figure, again = charts_of(comparison.beside(told, told))
    assert figure == again
    expected = trace(figure, "expected front, 90 % of gain")
    claims = [m.claim for m in told.believed.front if m.trial.architecture.placements]
    assert expected["y"] == pytest.approx([100 * claim.gain for claim in claims])
    assert expected["error_y"]["array"] == pytest.approx([100 * (claim.gain_high - claim.gain) for claim in claims])
    assert expected["error_y"]["arrayminus"] == pytest.approx([100 * (claim.gain - claim.gain_low) for claim in claims])
    (level,) = [shape["y0"] for shape in figure["layout"]["shapes"] if shape["type"] == "line"]
    assert level == pytest.approx(0.0, abs=1e-9)
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 100 * min(claim.gain_low for claim in claims)
    assert high > 100 * max(claim.gain_high for claim in claims)


def test_no_bar_and_no_rejected_mark_is_cut():
    wide = snapshot(base(), trial(1, [placement(4)], 0.32, 1.1, width=0.6), rejected(2, ratio=2.5))
    first, second = charts_of(comparison.compare(wide, snapshot(base(), trial(1, [placement(4)], 0.31, 1.1))))
    low, high = first["layout"]["xaxis"]["range"]
    assert low < 0.5
    assert high > 2.5
    assert second["layout"]["xaxis"]["range"] == [low, high]


def test_both_atlases_share_one_scale_of_colours(told):
    small = tuple(dataclasses.replace(cell, gain=cell.gain / 10) for cell in told.atlas.cells)
    text = comparison.page(comparison.beside(told, dataclasses.replace(told, atlas=dataclasses.replace(told.atlas, cells=small))))
    atlases = re.findall(r'<svg class="atlas".*?</svg>', text, flags=re.DOTALL)
    deepest = [max(map(float, re.findall(r'fill-opacity="([\d.]+)"', atlas))) for atlas in atlases]
    assert deepest[0] > 0.6
    assert deepest[1] < 0.2


def test_rows_without_names_match_only_where_the_bases_are_alike(told):
    rows = sorted({cell.row for cell in told.atlas.cells})
    bare = Network(nodes=tuple(Node(row=row, module="", sources=()) for row in rows), backbone=len(rows), drawn=False)
    plain = dataclasses.replace(told, drawing=bare)
    renamed = tuple(
        dataclasses.replace(t, architecture=Architecture("other.yaml", t.architecture.placements)) for t in told.snapshot.trials
    )
    other = dataclasses.replace(plain, snapshot=dataclasses.replace(told.snapshot, trials=renamed))
    assert len(comparison.beside(plain, plain).pairs) == len(told.atlas.cells)
    apart = comparison.beside(plain, other)
    assert apart.pairs == ()
    assert apart.unnamed == 2 * len(told.atlas.cells)
    assert "rows without a site's name are not matched, because the bases differ" in comparison.words(apart)[-1]


def test_sites_of_one_name_match_in_bases_of_other_rows(told):
    """The other base has one row more before its neck, so that its rows count on from there."""
    moved = {node.row: node.row + (node.row > 9) for node in told.drawing.nodes}
    nodes = [
        dataclasses.replace(node, row=moved[node.row], sources=tuple(moved[source] for source in node.sources))
        for node in told.drawing.nodes
    ]
    nodes.insert(10, Node(row=10, module="Conv", sources=(9,), channels=64, stride=32))
    cells = tuple(dataclasses.replace(cell, row=moved[cell.row]) for cell in told.atlas.cells)
    other = dataclasses.replace(told, drawing=Network(nodes=tuple(nodes), backbone=12), atlas=dataclasses.replace(told.atlas, cells=cells))
    both = comparison.beside(told, other)
    assert len(both.pairs) == len(cells)
    assert both.unnamed == 0
    assert all(moved[pair.first.row] == pair.second.row for pair in both.pairs)


def test_settings_that_differ_are_told_without_passwords(told):
    settings = {"storage": "postgresql://ann:s3cret@db/x", "spec": {"base": "yolov8n.yaml"}}
    other = dataclasses.replace(told, snapshot=dataclasses.replace(told.snapshot, settings=settings))
    both = comparison.Comparison(first=told, second=other, pairs=(), correlation=None)
    found = {name: (here, there) for name, here, there in comparison._differences(both)}
    assert found["spec.base"] == ("–", "yolov8n.yaml")
    assert "s3cret" not in str(found)
