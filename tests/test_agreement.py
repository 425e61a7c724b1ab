"""What differs between settings: every kind of difference in one line of its own, and which of them a study may grow by."""

import pytest

from nas_attn.agreement import Difference, differences, disagreement

OLD = {
    "space": "aaa",
    "spec": {
        "base": "yolo11n.yaml",
        "sites": ["P3", "P4"],
        "modules": {"LSKA": {"k_size": [7, 11]}, "LIA": {"f": [8]}},
        "max_placements": 2,
        "proxy": {"epochs": 6},
    },
    "setup": {"data": "d", "imports": []},
}


def _rows(**spec):
    now = {**OLD, "space": "bbb", "spec": {**OLD["spec"], **spec}}
    return differences({"settings": OLD}, {"settings": now}, ["settings"])


def test_what_was_added_removed_and_changed_is_named_one_line_each():
    modules = {"LSKA": {"k_size": [7, 23, 35]}, "CBAM": {"reduction": [8, 16]}, "Blur": {}}
    assert list(map(str, _rows(sites=["P3", "P4", "neck_P5"], modules=modules, max_placements=3))) == [
        "settings.spec.max_placements: 2 (study), 3 (now)",
        "settings.spec.modules.Blur: added, as it is",
        "settings.spec.modules.CBAM: added, reduction: [8, 16]",
        "settings.spec.modules.LIA: removed",
        "settings.spec.modules.LSKA.k_size: added 23, 35; removed 11",
        "settings.spec.sites: added neck_P5",
    ]
    assert list(map(str, _rows(sites=["P4", "P3"]))) == ["settings.spec.sites: ['P3', 'P4'] (study), in another order ['P4', 'P3'] (now)"]


def test_the_fingerprint_of_the_space_is_told_where_nothing_else_says_why():
    assert list(map(str, _rows())) == ["settings.space: aaa (study), bbb (now)"]
    assert list(map(str, _rows(proxy={"epochs": 7}))) == [
        "settings.space: aaa (study), bbb (now)",
        "settings.spec.proxy.epochs: 6 (study), 7 (now)",
    ]


def test_extend_is_named_where_extending_would_do():
    assert "With --extend the study goes on" in disagreement(_rows(sites=["P3", "P4", "P5"]))
    both = disagreement(_rows(sites=["P3", "P4", "P5"], proxy={"epochs": 7}))
    assert "--extend" not in both
    assert both.endswith("Give the former ones, or begin another study in another folder.")


@pytest.mark.parametrize(
    ("path", "grows", "reason"),
    [
        ("settings.space", True, ""),
        ("settings.spec.modules.LSKA.k_size", True, ""),
        ("settings.setup.imports", True, ""),
        ("settings.spec.base", False, "rows of one base"),
        ("settings.setup.data", False, "other data"),
        ("settings.spec.proxy.epochs", False, "another training"),
        ("settings.spec.latency.batch", False, "nas-attn retarget"),
        ("settings.spec.limits.latency_ratio", False, "--max-latency-ratio"),
        ("settings.spec.seed", False, "split of the data"),
        ("settings.spec.seeds", False, "as often as the others"),
        ("objectives.params_m", False, "told with the former"),
        ("settings.versions.torch", False, "other code"),
        ("settings.fidelity", False, "another training"),
        ("settings.spacecraft", False, "made with the former"),
    ],
)
def test_what_a_study_may_not_grow_by_has_a_reason(path, grows, reason):
    row = Difference(path, "x")
    assert row.grows == grows
    assert grows or reason in row.reason
