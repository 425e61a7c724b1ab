"""The picture of a study: which front it labels, and that no word of it covers anything."""

import dataclasses

import pytest
from matplotlib.text import Annotation, Text
from snapshots import base, failed, placement, rejected, running, snapshot, stopped, study, trial

from nas_attn import columns, pareto, picture
from nas_attn.claim import SURE, Claim
from nas_attn.posterior import Member, Posterior

A, B = [placement(4)], [placement(6, 2)]
ONE = snapshot(base(), trial(1, A, 0.31, 1.1))


def test_names_in_any_script_and_with_dollars_are_drawn():
    rows, front = columns.table(ONE), columns.front_table(ONE)
    for name in ("注意力", "$x^{2$", "long " * 60, "two\nlines"):
        snap = dataclasses.replace(ONE, name=name)
        assert picture.picture(snap, rows, front).startswith(b"\x89PNG")


def crowd(rise, step):
    """A front of 15 whose members stand close together; `step` apart in latency."""
    names = [[placement(4, k), placement(9, k + 1), placement(16, k + 2)][: 1 + k % 3] for k in range(14)]
    return snapshot(base(), *(trial(k + 1, names[k], 0.301 + rise * k, 1.02 + step * k, width=0.01) for k in range(14)))


CROWDS = {"steep": crowd(0.002, 0.002), "flat": crowd(0.0002, 0.02), "diagonal": crowd(0.001, 0.01), "heap": crowd(0.0002, 0.001)}
CROWDS["left edge"] = snapshot(base(), trial(1, [placement(4, 4), placement(16, 4)], 0.31, 0.9, width=0.001))
CROWDS |= {f"{count} trials, seed {seed}": study(count, seed=seed) for count in (8, 60) for seed in (1, 2)}


def believed(snap, luck=0.2, wide=0.004):
    """As a model would: of every gain `luck` is left, and each has an interval of its own width; `luck` may be told by trial."""
    shares = luck if isinstance(luck, dict) else {}
    members = []
    for entry in (t for t in snap.trials if t.kind == "measured"):
        gain = (entry.values["map50_95"] - 0.3) * shares.get(entry.number, 0.2 if shares else luck)
        ends = {"low": 0.3 + gain - wide, "high": 0.3 + gain + wide, "gain_low": gain - wide, "gain_high": gain + wide}
        chances = {"non_dominated": 0.5, "beats_base": 0.99 if gain > wide else 0.6, "expected": False}
        members.append((entry, Claim(row=entry.number, mean=0.3 + gain, gain=gain, **ends, **chances)))
    front = set(pareto.front([(claim.mean, t.cost.latency.ratio) for t, claim in members], ("maximize", "minimize")))
    told = [Member(trial=t, claim=claim, expected=k in front, sure=claim.beats_base > SURE) for k, (t, claim) in enumerate(members)]
    ordered = tuple(sorted(told, key=lambda member: member.trial.cost.latency.ratio))
    return Posterior(members=ordered, sigma=0.004, detectable=None, detectable_placement=None)


def drawn(snap, *words):
    points, members = picture.in_plane(columns.table(snap)), picture.in_plane(columns.front_table(snap))
    figure = picture.draw(snap, points, members, *words)
    figure.canvas.draw()
    return figure


def texts(figure):
    return [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("name", CROWDS)
def test_labels_of_the_picture_cover_nothing(name, expected):
    snap = CROWDS[name]
    claimed = believed(snap) if expected else None
    figure, points = drawn(snap, claimed), picture.in_plane(columns.table(snap))
    scene = picture._scene(snap, points, picture.in_plane(columns.front_table(snap)), claimed)
    ax = figure.axes[0]
    notes = [text for text in ax.texts if isinstance(text, Annotation)]
    boxes = [Text.get_window_extent(note) for note in notes]
    marks = [ax.transData.transform((r["latency_ratio"], r["map50_95"])) for r in (*scene.dots, *scene.labelled)]
    bars = [ax.transData.transform([(x, r["map50_95"]) for x in picture._across(r)]) for r in scene.labelled]
    upright = [ax.transData.transform([(r["latency_ratio"], y) for y in picture._upright(r)]) for r in scene.labelled]
    assert 1 <= len(notes) <= len(scene.labelled)
    assert len(notes) >= scene.members or name not in ("steep", "diagonal") or expected
    for k, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:k] + boxes[k + 1 :]) == 0
        assert ax.bbox.count_contains(box.corners()) == 4
        assert not any(box.contains(x, y) for x, y in marks)
        assert not any(box.y0 < a[1] < box.y1 and a[0] < box.x1 and b[0] > box.x0 for a, b in bars)
        assert not any(box.x0 < a[0] < box.x1 and a[1] < box.y1 and b[1] > box.y0 for a, b in upright)
        leaders = [
            n.arrow_patch.get_path().transformed(n.arrow_patch.get_transform()) for n in notes if n is not notes[k] and n.arrow_patch
        ]
        assert not any(leader.intersects_bbox(box, filled=False) for leader in leaders)


def test_the_expected_front_has_the_labels_and_the_lucky_winner_none():
    """Trial 2 was observed best and is expected to be nothing; the model takes trial 1 to be worth what it showed."""
    snap = snapshot(base(), trial(1, A, 0.320, 1.05), trial(2, B, 0.330, 1.10), trial(3, [placement(9)], 0.31, 1.2))
    figure = drawn(snap, believed(snap, {1: 1.0, 2: 0.1, 3: 0.1}), ("Keep the base", "No architecture beats it. Another sentence."))
    labels = [note.get_text() for note in figure.axes[0].texts if isinstance(note, Annotation)]
    assert labels == ["#1 LSKA@4", "base"]
    assert figure.texts[0].get_text() == "Keep the base"
    assert figure.texts[1].get_text() == "No architecture beats it.\ndemo: 2 of 4 measured architectures on the expected front"
    observed = drawn(snap)
    assert any("#2" in text for text in texts(observed))
    assert any("on the observed front" in text for text in texts(observed))


def test_an_expected_front_stands_at_its_means_within_its_intervals():
    snap = snapshot(base(), trial(1, A, 0.330, 1.05))
    points = picture.in_plane(columns.table(snap))
    scene = picture._scene(snap, points, picture.in_plane(columns.front_table(snap)), believed(snap, 0.5))
    assert [(row["number"], row["map50_95"]) for row in scene.dots] == [(1, pytest.approx(0.33))]
    assert [row["map50_95"] for row in scene.marks] == [pytest.approx(0.315)]
    assert [picture._upright(row) for row in scene.labelled] == [pytest.approx((0.311, 0.319)), pytest.approx((0.296, 0.304))]
    low, high = drawn(snap, believed(snap, 0.5)).axes[0].get_ylim()
    assert low < 0.296
    assert high > 0.33


def test_of_three_objectives_the_observed_front_is_drawn():
    snap = study(12, three=True)
    assert any("on the observed front" in text for text in texts(drawn(snap, believed(snap))))


@pytest.mark.parametrize("headline", ["Keep the base", "Take " + "DoubleAttention(c_m=0.25, c_n=0.125) after neck P4 out and " * 4])
def test_the_words_over_the_picture_fit(headline):
    figure = drawn(CROWDS["flat"], None, (headline, "It is expected to be better, with words that go on and on " * 8))
    top = figure.axes[0].bbox.y1
    boxes = [text.get_window_extent() for text in figure.texts]
    assert boxes[0].y0 > boxes[1].y1
    assert boxes[1].y0 > top
    assert all(box.x1 < figure.bbox.x1 and box.y0 > 0 and box.y1 < figure.bbox.y1 for box in boxes)
    assert boxes[2].y1 < figure.axes[0].xaxis.label.get_window_extent().y0


def test_the_picture_names_the_front_and_the_base():
    found = {line for text in texts(drawn(ONE)) for line in text.splitlines()}
    assert {"#1 LSKA@4", "base", "base ± 1σ", "demo: 2 of 2 measured architectures on the observed front"} <= found


def test_the_picture_counts_what_it_does_not_show():
    every = snapshot(base(), trial(1, A, 0.31, 1.1), rejected(2), failed(3), running(4), stopped(5))
    told = picture.draw(every, [], []).texts[2].get_text()
    assert "Besides: 1 rejected by a limit (red ticks, where in range), 1 stopped early, 1 failed, 1 running." in told
