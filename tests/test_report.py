"""The tables and the page of every kind of study."""

import csv
import dataclasses
import html.parser
import io
import json
import re
import struct
from pathlib import Path

import pytest
from snapshots import HOSTILE, base, failed, measured, network, placement, rejected, running, snapshot, stopped, study, trial

from nas_attn import charts, columns, page, report
from nas_attn.architecture import Architecture, Placement
from nas_attn.outcome import Failure

A, B = [placement(4)], [placement(6, 2)]
FIRST = "number,state,kind,digest,architecture,map50_95,latency_ratio,latency_ms,params_m,gmacs"
STUDIES = {
    "nothing": snapshot(),
    "only the base": snapshot(base()),
    "base of one seed": snapshot(base([0.3])),
    "base of equal seeds": snapshot(base([0.3, 0.3]), trial(1, A, 0.31, 1.1)),
    "one trial": snapshot(base(), trial(1, A, 0.31, 1.1)),
    "all failed": snapshot(failed(0), failed(1)),
    "without base": snapshot(trial(1, A, 0.31, 1.1), running(2)),
    "every kind": snapshot(base(), trial(1, A, 0.31, 1.1), rejected(2), failed(3), running(4), stopped(5)),
    "three objectives": study(30, three=True),
    "16 trials": study(16),
    "60 trials": study(60),
}


FILES = [
    "report.html", "summary.md", "front.png", "trials.csv", "front.csv", "recommended.csv", "atlas.csv", "interactions.csv", "progress.csv",
    "trials.parquet",
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """What a document holds: balanced tags, the resources it names, its text outside scripts and styles."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.resources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.resources += [value for name, value in attrs if name in ("src", "href", "action", "data") and value[:1] != "#"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data + " "


def whole_page(snap):
    """The page without a model of all trials, which takes seconds to make."""
    return page.page(page.Study(snapshot=snap, believed=None, atlas=None, drawing=network(), tables={}))


def read_csv(data: bytes):
    return list(csv.DictReader(io.StringIO(data.decode())))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    paths = report.write(study(16), folder / "new" / "folder")
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_whole_report(name, tmp_path):
    snap = STUDIES[name]
    paths = report.write(snap, tmp_path)
    assert [p.name for p in paths] == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    page = Page((tmp_path / "report.html").read_text())
    assert page.resources == []
    assert "None" not in page.text
    assert "nan" not in re.findall(r"\w+", page.text)
    assert page.tags.count("h2") == 11
    rows = read_csv((tmp_path / "trials.csv").read_bytes())
    assert [int(r["number"]) for r in rows] == sorted(t.number for t in snap.trials)
    png = (tmp_path / "front.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (1536, 960)


def test_the_same_snapshot_gives_the_same_bytes(written, tmp_path):
    snap = study(16)
    again = report.write(dataclasses.replace(snap, trials=tuple(reversed(snap.trials))), tmp_path)
    assert {p.name: p.read_bytes() for p in again} == written


def test_columns(written):
    for name in ("trials.csv", "front.csv"):
        header = written[name].decode().splitlines()[0]
        assert header.startswith(FIRST + ",map50,latency_low,latency_high,latency_quality,gain,gain_sigmas,")
        assert header == ",".join(columns.COLUMNS)


def test_the_front_is_sorted_by_latency_and_rises(written):
    rows = read_csv(written["front.csv"])
    ratios, scores = [float(r["latency_ratio"]) for r in rows], [float(r["map50_95"]) for r in rows]
    assert len(rows) >= 2
    assert ratios == sorted(ratios)
    assert scores == sorted(scores)
    assert all(r["kind"] == "measured" for r in rows)


def test_the_values_of_a_row():
    snap = snapshot(base(), trial(3, A, [0.310, 0.314], 1.1, gates={"4": 0.03}, quality="ungated"))
    row = columns.table(snap)[1]
    arch = snap.trials[1].architecture
    assert Architecture.from_dict(json.loads(row["architecture"])) == arch
    assert row["architecture"] == arch.to_json()
    assert (row["number"], row["state"], row["kind"], row["digest"]) == (3, "COMPLETE", "measured", arch.digest())
    assert row["map50_95"] == pytest.approx(0.312)
    assert row["map50"] == pytest.approx(0.312 * 1.6)
    assert (row["latency_ratio"], row["latency_low"], row["latency_high"]) == pytest.approx((1.1, 1.08, 1.12))
    assert (row["latency_ms"], row["params_m"], row["gmacs"]) == pytest.approx((8.8, 2.7, 0.22))
    assert (row["gain"], row["gain_sigmas"], row["gain_to_mean"]) == pytest.approx((0.010, 2.5, 0.012))
    assert (row["seeds"], row["gate_movement"], row["latency_quality"], row["train_seconds"]) == (2, 0.03, "ungated", 40.0)
    assert (row["activation_mib"], row["error"]) == (12.5, None)


def test_what_was_not_measured_is_empty_and_never_a_number():
    rows = columns.table(STUDIES["every kind"])
    for row in rows[2:]:
        assert row["map50_95"] is None
        assert row["gain"] is None
    assert [r["error"] for r in rows[2:]] == [
        "latency_ratio 1.5 is over the limit 1.3",
        "train: CUDA out of memory",
        None,
        "stopped at rung 1",
    ]
    assert [r["kind"] for r in rows] == ["measured", "measured", "rejected", "failure", "running", "stopped"]
    assert read_csv(report._csv(rows, columns.COLUMNS).encode())[3]["map50_95"] == ""


def test_gates_are_means_over_seeds_by_row():
    entry = trial(1, [placement(10), placement(4, 1)], [0.31, 0.32], 1.1)
    opened = [measured(0.31, {"10": 0.02, "4": 0.05}), measured(0.32, {"10": 0.04, "4": 0.05})]
    entry = dataclasses.replace(entry, results=tuple((job, o) for (job, _), o in zip(entry.results, opened, strict=True)))
    assert columns.gates(entry) == pytest.approx({"4": 0.05, "10": 0.03})
    assert list(columns.gates(entry)) == ["4", "10"]


def test_users_text_is_escaped_everywhere():
    bad = [Placement(layer=4, module=HOSTILE)]
    snap = snapshot(
        base(controls={HOSTILE: Failure(stage="train", error=HOSTILE)}),
        trial(1, bad, 0.32, 1.1, gates={HOSTILE: 0.1}),
        failed(2, error=HOSTILE),
        name=HOSTILE,
        folder=Path(HOSTILE.replace("/", "_")),
        settings={HOSTILE: HOSTILE, "command": ["nas-attn", "search", HOSTILE]},
    )
    text = whole_page(snap)
    page = Page(text)
    assert "img" not in page.tags
    assert page.tags.count("script") == Page(whole_page(study(3))).tags.count("script")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert page.text.count(HOSTILE) >= 6


def test_hover_texts_are_escaped_for_plotly():
    bad = [Placement(layer=4, module="<a href='javascript:x'>y</a>")]
    snap = snapshot(base(), trial(1, bad, 0.32, 1.1), failed(2, error="<a href='javascript:x'>y</a>"))
    rows = page.with_words(snap, columns.table(snap))
    figure = charts.front(snap, rows, page.with_words(snap, columns.front_table(snap)), None)
    assert "&lt;a href" in str(figure)
    assert "<a" not in str(figure)


def test_the_page_fetches_nothing_and_holds_plotly_once(written):
    text = written["report.html"].decode()
    assert "default-src 'none'" in text
    assert "<link" not in text
    assert not re.search(r"<script[^>]+src=", text)
    assert not re.search(r"@import|url\(\s*['\"]?http", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    assert text.count("plotly.js v") == 1
    assert text.count('id="chart-front"') == 1
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 6_000_000


def flat(snap):
    return " ".join(Page(whole_page(snap)).text.split())


def test_the_page_says_what_a_gain_is_worth():
    assert "within the noise of the base's seeds" in flat(snapshot(base(), trial(1, A, 0.303, 1.1)))
    assert "but not by two σ" in flat(snapshot(base(), trial(1, A, 0.307, 1.1)))
    assert "beyond two σ of the base's seeds." in flat(snapshot(base(), trial(1, A, 0.340, 1.1)))
    assert "The noise is not known" in flat(STUDIES["base of one seed"])
    assert "gave the very same score" in flat(STUDIES["base of equal seeds"])
    assert "Only the base has been measured" in flat(STUDIES["only the base"])
    assert "Nothing has been measured yet 2 of 2 trials failed." in flat(STUDIES["all failed"])


def test_a_gain_beyond_two_sigma_may_still_be_luck():
    many = [trial(k, [placement(4 + k)], 0.300, 1.1 + k / 1e3) for k in range(1, 120)]
    text = flat(snapshot(base(), trial(200, A, 0.3092, 1.05), *many))
    assert "yet no more than the best of so many would reach by luck" in text
    assert "Of 120 candidates, 119 lie within one σ of the base, 0 between one and two, 1 beyond two" in text
    assert re.search(r"best of 120 would still be expected about 2\.[56] σ above", text)


def test_losses_beyond_one_sigma_are_no_noise():
    text = flat(snapshot(base(), trial(1, A, 0.294, 1.1), trial(2, B, 0.260, 1.1)))
    assert "Of 2 candidates, 0 lie within one σ of the base, 1 between one and two, 1 beyond two" in text


def test_the_page_shows_the_controls():
    text = flat(snapshot(base(controls={"help: longer fit": measured(0.33), "harm: noise": measured(0.295)})))
    assert "help: longer fit 0.3300 +3.00 +7.5 1 separated by more than two σ" in text
    assert "harm: noise 0.2950 −0.50 −1.2 1 not separated by more than two σ" in text
    assert "No positive control was run" in flat(snapshot(base()))
    lost = snapshot(base(controls={"harm": Failure(stage="build", error="no such row")}))
    assert "not known build: no such row" in flat(lost)


def test_the_page_shows_the_gates():
    still = snapshot(base(), trial(1, A, 0.31, 1.1, gates={"4": 0.0002}), trial(2, B, 0.31, 1.1, gates={"6": 0.04}))
    assert "1 of 2 trials hardly moved" in flat(still)
    assert "6: 0.04000" in flat(still)
    assert "all 1 trials moved" in flat(snapshot(base(), trial(1, A, 0.31, 1.1)))


def test_the_page_shows_the_quality_of_latency():
    text = flat(snapshot(base(), trial(1, A, 0.31, 1.1, quality="ungated", width=0.2)))
    assert "2 architectures, the base among them, were timed beside the base, which took 8.00 ms" in text
    assert "1 ratios passed the quality gate, 1 did not (read their ratios with their intervals: trials 1)" in text
    assert "0.205 wide in the median, 0.400 at most" in text


def test_the_page_tells_how_to_reproduce():
    kept = snapshot(base(), settings={"command": ["nas-attn", "search", "my space.yaml"], "seed": 7})
    assert "nas-attn search 'my space.yaml'" in flat(kept)
    assert '"seed": 7' in flat(kept)
    assert "nas-attn search runs/demo/space.yaml --data d.yaml --trials 1" in flat(snapshot(base(), settings={"data": "d.yaml"}))
    assert "ultralytics 8.4.190" in flat(kept)


def test_passwords_are_masked():
    url = "postgresql://ann:s3cret@db.example/study"
    text = flat(snapshot(base(), settings={"storage": url, "command": f"nas-attn search x --storage {url}"}))
    assert "s3cret" not in text
    assert text.count("postgresql://ann:***@db.example/study") == 4


def test_fixed():
    assert page.fixed(None) == "–"
    assert page.fixed(-0.01234, 3, True) == "−0.012"
    assert page.fixed(0.01234, 3, True) == "+0.012"


def test_repeats_are_told():
    text = flat(snapshot(base(), trial(1, A, [0.31, 0.32, 0.33], 1.1), trial(2, B, 0.31, 1.1)))
    assert "Trained with further seeds, because that settled most: trial 1 (3 seeds)." in text
    assert "Trained with further seeds" not in flat(STUDIES["one trial"])


def test_the_page_begins_with_what_the_study_was_of():
    settings = {
        "spec": {"base": "yolo11n.yaml", "proxy": {"epochs": 4, "imgsz": 160}, "seeds": 2},
        "command": "nas-attn search yolo11 --data blood/data.yaml --trials 9 --out x",
    }
    text = flat(snapshot(base(), trial(1, A, [0.31, 0.31], 1.1), trial(2, B, [0.31, 0.31, 0.31], 1.1), settings=settings))
    assert "yolo11n on blood/data.yaml trained for 4 epochs at 160 px latency on cpu, 1 thread: the base 8.0 ms" in text
    assert "because that settled most: trial 2 (3 seeds)" in text, "two seeds are what every candidate has"


def test_what_was_not_trained_is_told():
    text = flat(snapshot(base(), trial(1, A, 0.31, 1.1), rejected(2), rejected(3), failed(4)))
    assert "Not trained: 2 trials were rejected by a limit before any training (about 88 s); 1 trial failed." in text
    assert "No limit, no early stop and no failure kept a trial from its end. No architecture was tried twice" in flat(STUDIES["one trial"])
