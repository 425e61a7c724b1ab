"""Law 4 and around it: what a space admits, how many that is, how they are drawn, and how they look to a sampler."""

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_attn import records
from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import SpaceError
from nas_attn.records import MODULES, record
from nas_attn.space import NONE, SearchSpace, Site, resolve

BASE = "yolo11n.yaml"
SITES = (
    Site(2, ("P2",), "C3k2", 64, 4),
    Site(4, ("P3",), "C3k2", 128, 8),
    Site(6, ("P4",), "C3k2", 128, 16),
    Site(9, ("SPPF",), "SPPF", 256, 32),
    Site(11, (), "Upsample", 256, 16),
    Site(16, ("neck_P3_out", "P3_again"), "C3k2", 64, 8),
)
MODULE_CHOICES = {
    "LSKA": {"k_size": (7, 11, 23), "use_proj": (False,)},
    "LIA": {"f": (8, 16)},
    "DoubleAttention": {"c_m": (0.125, 0.25), "c_n": (0.25, 0.5)},
}


def space_of(counts: Sequence[int], most: int) -> SearchSpace:
    """A space with so many placements at rows 0, 1, ..."""
    placements = tuple(tuple(Placement(row, "LIA", (("f", f),)) for f in range(1, count + 1)) for row, count in enumerate(counts))
    sites = tuple(Site(row, (f"S{row}",), "Conv", 64, 8) for row in range(len(counts)))
    return SearchSpace(base=BASE, sites=sites, placements=placements, max_placements=most)


def brute_force(space: SearchSpace) -> set[Architecture]:
    """Every architecture, from the definition: each site takes one of its placements or none."""
    options = [(None, *site) for site in space.placements]
    picks = ([p for p in pick if p is not None] for pick in itertools.product(*options))
    return {Architecture(space.base, tuple(pick)) for pick in picks if len(pick) <= space.max_placements}


def full_space(most: int = 3) -> SearchSpace:
    """Three modules, one of them with two hyperparameters, at three sites."""
    return resolve(BASE, SITES, ["P3", "P4", "SPPF"], MODULE_CHOICES, most)


# -- law 4 ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "most"), [([1], 1), ([3], 5), ([2, 3], 1), ([2, 3], 2), ([1, 2, 3, 4], 3), ([4, 1, 1, 2, 3], 2), ([2] * 6, 6)]
)
def test_size_enumeration_and_definition_agree(counts: list[int], most: int) -> None:
    space = space_of(counts, most)
    listed = list(space.enumerate())
    assert space.size == len(listed) == len(set(listed)) == len({a.digest() for a in listed})
    assert set(listed) == brute_force(space)


def test_enumeration_starts_with_the_base_keeps_its_order_and_is_lazy() -> None:
    space = full_space()
    assert next(space.enumerate()) == Architecture(BASE, ())
    assert list(space.enumerate()) == list(space.enumerate()) == [space.architecture(i) for i in range(space.size)]
    large = space_of([1000] * 40, 10)
    assert len(list(itertools.islice(large.enumerate(), 50))) == 50


@pytest.mark.parametrize("most", [1, 2, 3])
def test_decode_inverts_encode_for_every_architecture(most: int) -> None:
    space = full_space(most)
    for architecture in space.enumerate():
        genes = space.encode(architecture)
        assert space.decode(genes) == architecture
        assert list(genes) == list(space.genes)
        assert all(value in space.genes[name] for name, value in genes.items())


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=12), most=st.integers(1, 6), data=st.data())
def test_numbers_name_architectures_in_spaces_of_any_size(counts: list[int], most: int, data: st.DataObject) -> None:
    space = space_of(counts, most)
    number = data.draw(st.integers(0, space.size - 1))
    other = data.draw(st.integers(0, space.size - 1))
    architecture = space.architecture(number)
    assert space.contains(architecture)
    assert space.decode(space.encode(architecture)) == architecture
    assert (architecture == space.architecture(other)) == (number == other)


@pytest.mark.parametrize("number", [-1, 391])
def test_numbers_outside_are_refused(number: int) -> None:
    space = space_of([6] * 5, 2)
    assert space.size == 1 + 5 * 6 + 10 * 36 == 391
    with pytest.raises(SpaceError, match=r"`0 <= number < 391` must hold"):
        space.architecture(number)


def test_the_order_of_placements_never_matters() -> None:
    space = full_space()
    rng = random.Random(0)
    for _ in range(50):
        architecture = space.sample(rng)
        shuffled = Architecture(BASE, tuple(rng.sample(architecture.placements, len(architecture.placements))))
        assert shuffled.digest() == architecture.digest()
        assert space.encode(shuffled) == space.encode(architecture)


# -- sampling ------------------------------------------------------------------------------------------------------------------------------


def test_samples_are_uniform_over_architectures() -> None:
    space = space_of([1, 2, 3, 1], 2)
    rng = random.Random(7)
    draws = 400 * space.size
    seen = Counter(space.sample(rng) for _ in range(draws))
    expected = draws / space.size
    chi_square = sum((seen[a] - expected) ** 2 / expected for a in space.enumerate())
    # 99.9 % of a chi-square with 24 degrees of freedom lies below 51.2; weighting sites alike would give thousands.
    assert space.size == 1 + 7 + 17 == 25
    assert chi_square < 51.2


def test_the_same_seed_draws_the_same() -> None:
    space = full_space()
    first, second = random.Random(3), random.Random(3)
    assert [space.sample(first) for _ in range(20)] == [space.sample(second) for _ in range(20)]


# -- genes ---------------------------------------------------------------------------------------------------------------------------------


def test_genes_are_flat_and_hold_only_what_can_vary() -> None:
    space = resolve(BASE, SITES, ["P3", 11], MODULE_CHOICES, 2)
    assert dict(space.genes) == {
        "4.module": (NONE, "LSKA", "LIA", "DoubleAttention"),
        "4.LSKA.k_size": (7, 11, 23),
        "4.LIA.f": (8, 16),
        "4.DoubleAttention.c_m": (0.125, 0.25),
        "4.DoubleAttention.c_n": (0.25, 0.5),
        "11.module": (NONE, "LSKA", "LIA", "DoubleAttention"),
        "11.LSKA.k_size": (7, 11, 23),
        "11.LIA.f": (8, 16),
        "11.DoubleAttention.c_m": (0.125, 0.25),
        "11.DoubleAttention.c_n": (0.25, 0.5),
    }


def test_inactive_genes_stand_at_their_first_value() -> None:
    space = full_space()
    placement = Placement(6, "LIA", (("f", 16),))
    genes = space.encode(Architecture(BASE, (placement,)))
    assert (genes["6.module"], genes["6.LIA.f"]) == ("LIA", 16)
    rest = {name: value for name, value in genes.items() if name not in ("6.module", "6.LIA.f")}
    assert all(value == space.genes[name][0] for name, value in rest.items())
    assert set(space.encode(Architecture(BASE)).values()) >= {NONE, 7, 8}


def test_inactive_genes_change_nothing() -> None:
    space = full_space()
    rng = random.Random(1)
    for _ in range(100):
        architecture = space.sample(rng)
        genes = space.encode(architecture)
        modules = {p.layer: p.module for p in architecture.placements}
        for name, choices in space.genes.items():
            row, module = name.split(".")[:2]
            if module != "module" and modules.get(int(row)) != module:
                genes[name] = rng.choice(choices)
        assert space.decode(genes) == architecture
        assert space.repair(genes, rng) == architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"6.module": "Blur"}, r"Gene '6.module' must be one of"),
        ({"6.module": "LIA", "6.LIA.f": 9}, r"Gene '6.LIA.f' must be one of \(8, 16\), but got 9"),
        ({"7.module": NONE}, r"Every gene must be known, but got '7.module'. Did you mean"),
        ({"4.module": "LIA", "6.module": "LIA", "9.module": "LIA"}, r"`placements <= 2` must hold, but got 3"),
    ],
)
def test_genes_that_mean_nothing_are_refused(change: dict[str, str | int], message: str) -> None:
    space = full_space(2)
    with pytest.raises(SpaceError, match=message):
        space.decode({**space.encode(Architecture(BASE)), **change})


def test_missing_genes_are_refused() -> None:
    space = full_space()
    genes = space.encode(Architecture(BASE))
    del genes["4.LIA.f"]
    with pytest.raises(SpaceError, match=r"Gene '4.LIA.f' must be one of"):
        space.decode(genes)


# -- repair --------------------------------------------------------------------------------------------------------------------------------


def test_repair_keeps_what_is_legal() -> None:
    space = full_space(2)
    for architecture in space.enumerate():
        assert space.repair(space.encode(architecture), random.Random(0)) == architecture


def test_whatever_a_sampler_proposes_becomes_legal() -> None:
    space = full_space(2)
    rng = random.Random(5)
    for _ in range(300):
        genes = {name: rng.choice([*choices, "nonsense", 99, True]) for name, choices in space.genes.items() if rng.random() < 0.9}
        assert space.contains(space.repair(genes, rng))


def test_repair_drops_surplus_at_random_and_reaches_every_size() -> None:
    space = resolve(BASE, SITES, ["P2", "P3", "P4", "SPPF", 16], {"LIA": {"f": (8,)}}, 3)
    genes = dict.fromkeys(space.genes, "LIA")
    repaired = [space.repair(genes, random.Random(seed)) for seed in range(200)]
    assert {len(a.placements) for a in repaired} == {1, 2, 3}
    assert {p.layer for a in repaired for p in a.placements} == {2, 4, 6, 9, 16}
    assert space.repair(genes, random.Random(1)) == space.repair(genes, random.Random(1))


def test_repair_replaces_a_combination_that_cannot_be_built_by_the_nearest() -> None:
    # n_local must not exceed num_heads: (2, 4) is a hole in the product of the two lists.
    choices = {"CloAttention": {"window_size": (4,), "kernel_size": (5,), "num_heads": (2, 8), "n_local": (1, 4)}}
    space = resolve(BASE, SITES, ["P3"], choices, 1)
    assert len(space.placements[0]) == 3
    genes = {"4.module": "CloAttention", "4.CloAttention.num_heads": 2, "4.CloAttention.n_local": 4}
    with pytest.raises(SpaceError, match="Hyperparameters must fit together at P3"):
        space.decode(genes)
    repaired = {
        tuple(dict(space.repair(genes, random.Random(s)).placements[0].params)[n] for n in ("num_heads", "n_local")) for s in range(40)
    }
    assert repaired == {(2, 1), (8, 4)}


# -- sites ---------------------------------------------------------------------------------------------------------------------------------


def test_names_of_one_row_are_one_site() -> None:
    space = resolve(BASE, SITES, ["P3_again", "neck_P3_out", 16, "P3"], MODULE_CHOICES, 2)
    assert [site.layer for site in space.sites] == [4, 16]


def test_optional_sites_are_passed_over() -> None:
    space = resolve(BASE, SITES, ["P3", "PSA?", "SPPF?"], MODULE_CHOICES, 2)
    assert [site.layer for site in space.sites] == [4, 9]
    assert space.notes == (f"PSA?: {BASE} has no such site; left out",)


@pytest.mark.parametrize(
    ("want", "message"),
    [
        ("P33", r"A site must exist in yolo11n.yaml, but got 'P33'. Did you mean 'P3'\? Known: P2, P3, P3_again"),
        ("p3", "Did you mean 'P3'"),
        (5, r"but got 5. Rows with one map that is read on: \[2, 4, 6, 9, 11, 16\]"),
    ],
)
def test_sites_that_the_base_lacks_are_refused_with_the_nearest(want: int | str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        resolve(BASE, SITES, [want], MODULE_CHOICES, 2)


@pytest.mark.parametrize("wanted", [[], ["PSA?"]])
def test_a_space_without_sites_is_refused(wanted: list[int | str]) -> None:
    with pytest.raises(SpaceError, match=r"needs at least one legal placement in .* but nothing is left"):
        resolve(BASE, SITES, wanted, MODULE_CHOICES, 2)


# -- what a site admits --------------------------------------------------------------------------------------------------------------------


def test_what_the_channels_forbid_is_left_out_and_noted() -> None:
    odd = Site(3, ("P3",), "Conv", 100, 8)
    choices = {"CloAttention": {"num_heads": (8, 10), "n_local": (4,)}, "LIA": {"f": (8,)}}
    space = resolve(BASE, [odd], ["P3"], choices, 1)
    assert [dict(p.params).get("num_heads") for p in space.placements[0]] == [10, None]
    assert len(space.notes) == 1
    assert "C % num_heads == 0" in space.notes[0]


def test_a_site_that_admits_nothing_is_left_out_and_noted() -> None:
    odd = Site(3, ("P3",), "Conv", 100, 8)
    choices = {"CloAttention": {"num_heads": (8,)}}
    with pytest.raises(SpaceError, match=r"nothing is left \(.*C % num_heads == 0"):
        resolve(BASE, [odd], ["P3"], choices, 1)
    space = resolve(BASE, [odd, SITES[1]], [3, 4], choices, 1)
    assert [site.layer for site in space.sites] == [4]
    assert "none of the modules fits" in space.notes[-1]


def test_what_a_map_does_not_allow_is_left_out_with_its_reason() -> None:
    choices = {"LSKA": {"k_size": (7, 23), "use_proj": (False,)}}
    deep = Site(10, ("P5",), "Conv", 256, 32)
    whole, small = (resolve(BASE, [deep], ["P5"], choices, 1, imgsz=px) for px in (640, 160))
    assert [dict(p.params)["k_size"] for p in whole.placements[0]] == [7, 23]
    assert [dict(p.params)["k_size"] for p in small.placements[0]] == [7]
    assert "`k_size <= 2 * min(H, W)` must hold, but got H=5, W=5, k_size=23" in small.notes[0]
    assert small.placements[0] == resolve(BASE, [deep], ["P5"], choices, 1, imgsz=130).placements[0]


def test_modules_that_export_with_fixed_sizes_can_be_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = dataclasses.replace(record("LIA"), onnx="static")
    monkeypatch.setitem(records._TABLE, "LIA", fixed)
    choices = {"LIA": {"f": (8,)}, "LSKA": {"k_size": (7,), "use_proj": (False,)}}
    space = resolve(BASE, SITES, ["P3"], choices, 1, dynamic_onnx=True)
    assert [p.module for p in space.placements[0]] == ["LSKA"]
    assert space.notes == ("LIA: its ONNX export has fixed sizes; left out",)
    assert len(resolve(BASE, SITES, ["P3"], choices, 1).placements[0]) == 2


def test_what_builds_the_same_module_is_kept_once() -> None:
    # At 32 channels 1/8 and 1/4 both mean the least width, 8.
    narrow = Site(3, ("P3",), "Conv", 32, 8)
    space = resolve(BASE, [narrow], ["P3"], {"DoubleAttention": {"c_m": (0.125, 0.25, 0.5), "c_n": (0.25,)}}, 1)
    assert [dict(p.params)["c_m"] for p in space.placements[0]] == [0.125, 0.5]
    assert space.genes["3.DoubleAttention.c_m"] == (0.125, 0.5)
    assert any("the same module as DoubleAttention(c_m=0.125" in note for note in space.notes)


def test_reductions_that_end_at_the_same_width_are_kept_once() -> None:
    # At 64 channels every reduction of CoordAtt ends at its least width, 8; at 128 two of them do.
    def reductions(channels: int) -> list[object]:
        space = resolve(BASE, [Site(3, ("P3",), "Conv", channels, 8)], ["P3"], {"CoordAtt": {"reduction": (8, 16, 32)}}, 1)
        return [dict(p.params)["reduction"] for p in space.placements[0]]

    assert reductions(64) == [8]
    assert reductions(128) == [8, 16]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_placement_of_every_module_is_legal_complete_and_different(module: str) -> None:
    entry = record(module)
    choices = {module: {hyper.name: hyper.choices for hyper in entry.hyperparameters}}
    space = resolve(BASE, SITES, [site.layer for site in SITES], choices, 2)
    for site, options in zip(space.sites, space.placements, strict=True):
        assert all(not entry.violations(site.channels, dict(p.params)) for p in options)
        assert all([name for name, _ in p.params] == sorted(h.name for h in entry.hyperparameters) for p in options)
        assert len({entry.built(site.channels, dict(p.params)) for p in options}) == len(options)


# -- the value -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture("yolo11s.yaml"), "its base is yolo11s.yaml"),
        (Architecture(BASE, (Placement(4, "LIA", (("f", 9),)),)), r"not in this space: LIA\(f=9\)@4"),
        (Architecture(BASE, (Placement(5, "LIA", (("f", 8),)),)), r"not in this space: LIA\(f=8\)@5"),
        (Architecture(BASE, (Placement(4, "LIA", (("g", 8),)),)), r"not in this space: LIA\(g=8\)@4"),
        (Architecture(BASE, tuple(Placement(row, "LIA", (("f", 8),)) for row in (4, 6, 9))), "at most 2 placements"),
    ],
)
def test_foreign_architectures_are_not_contained(architecture: Architecture, message: str) -> None:
    space = full_space(2)
    assert not space.contains(architecture)
    with pytest.raises(SpaceError, match=message):
        space.encode(architecture)


def test_fingerprints_name_the_set_of_architectures() -> None:
    space = full_space()
    assert space.fingerprint() == full_space().fingerprint()
    others = [
        full_space(2),
        resolve(BASE, SITES, ["P3", "P4"], MODULE_CHOICES, 3),
        resolve(BASE, SITES, ["P3", "P4", "SPPF"], {**MODULE_CHOICES, "LIA": {"f": (8,)}}, 3),
        resolve("yolo11s.yaml", SITES, ["P3", "P4", "SPPF"], MODULE_CHOICES, 3),
    ]
    assert len({space.fingerprint(), *(other.fingerprint() for other in others)}) == 5
    # Another name of the same row is the same set.
    renamed = (*SITES[:1], Site(4, ("X",), "C3k2", 128, 8), *SITES[2:])
    assert resolve(BASE, renamed, ["X", "P4", "SPPF"], MODULE_CHOICES, 3).fingerprint() == space.fingerprint()


def test_spaces_are_values() -> None:
    space = full_space()
    assert space == full_space()
    assert hash(space) == hash(full_space())
    assert space != full_space(2)
    with pytest.raises(AttributeError):
        space.max_placements = 9  # type: ignore[misc]
    with pytest.raises(TypeError):
        space.genes["4.module"] = ()  # type: ignore[index]


@pytest.mark.parametrize(
    ("rows", "hosts", "most", "message"),
    [
        ([], [], 1, "Each site needs placements of its own"),
        ([1, 1], [1, 1], 1, "in the order of rows"),
        ([2, 1], [2, 1], 1, "in the order of rows"),
        ([1], [2], 1, "placements of its own"),
        ([1], [1], 0, "`max_placements >= 1` must hold, but got 0"),
    ],
)
def test_impossible_spaces_are_refused(rows: list[int], hosts: list[int], most: int, message: str) -> None:
    sites = tuple(Site(row, (), "Conv", 8, 8) for row in rows)
    placements = tuple((Placement(row, "LIA", (("f", 8),)),) for row in hosts)
    with pytest.raises(SpaceError, match=message):
        SearchSpace(base=BASE, sites=sites, placements=placements, max_placements=most)


def test_sites_show_what_they_are() -> None:
    assert str(SITES[5]) == "neck_P3_out/P3_again (row 16: C3k2, 64 channels, stride 8)"
    assert str(SITES[4]) == "row (row 11: Upsample, 256 channels, stride 16)"
