"""The table of mechanisms as people read it: rows, the page that is made from them, and the times that stand in it."""

import json
from pathlib import Path

import pytest

from nas_attn import listing
from nas_attn.records import MODULES
from nas_attn.speed import measure

ROOT = Path(__file__).parent.parent


def test_rows_are_plain_values_with_costs_at_three_sizes() -> None:
    rows = json.loads(json.dumps(listing.rows()))
    assert [row["name"] for row in rows] == list(MODULES)
    lska = next(row for row in rows if row["name"] == "LSKA")
    assert lska["paper"].endswith("arXiv 2309.01439)")
    assert lska["onnx"] == "dynamic"
    assert lska["needs"] == ["k_size <= 2 * min(H, W)"]
    assert lska["hyperparameters"]["k_size"] == [7, 11, 23, 35]
    # 5 184 parameters of the bare mechanism at 64 channels, and 64 of the gate
    assert lska["costs"][0]["params_m"] == pytest.approx(5_248 / 1e6)
    assert lska["costs"][0]["gmacs"] == pytest.approx(80 * 80 * (64 * 12 + 64**2) / 1e9)


def test_every_module_was_timed_at_every_size_beside_a_whole_base() -> None:
    known = listing.timings()
    assert known.keys() == {(name, channels) for name in MODULES for channels, _ in listing.SIZES} | {(listing.BASE, 0)}
    assert all(ms > 0 for ms in known.values())
    assert "torch" in listing.machine()


def test_light_modules_take_less_than_their_share_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {(listing.BASE, 0): 100.0}
    times = {("LIA", 64): 1.9, ("LIA", 128): 1.9, ("LIA", 256): 1.9, ("SE", 64): 1.0, ("SE", 128): 2.1, ("SE", 256): 1.0, ("ECA", 64): 0.1}
    monkeypatch.setattr(listing, "timings", lambda: {**base, **times})
    assert listing.light() == ["LIA"]


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    assert page == listing.markdown(), "run `python tests/benchmarks/module_timings.py --page`"


def test_the_page_names_every_module_with_its_source() -> None:
    page = listing.markdown()
    for entry in MODULES.values():
        assert f"### {entry.name}\n" in page
        assert entry.paper in page
        assert f"| `{entry.name}` |" in page


def test_measured_times_replace_those_of_the_reference_machine() -> None:
    timed = measure(["ECA", "SE"], rounds=2)
    assert timed.keys() == {(name, channels) for name in ("ECA", "SE") for channels, _ in listing.SIZES}
    assert all(0 < ms < 1e4 for ms in timed.values())
    rows = {row["name"]: row for row in listing.rows(timed)}
    assert rows["SE"]["costs"][0]["cpu_ms"] == timed["SE", 64]
    assert rows["LIA"]["costs"][0]["cpu_ms"] is None
