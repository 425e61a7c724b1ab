"""Candidates of a space and of a table: codes there and back, covariances, features."""

import numpy as np
import pytest
from snapshots import placement

from nas_attn.architecture import Architecture
from nas_attn.candidates import (
    Candidates,
    codes_of_space,
    covariance,
    features_of,
    keys,
    least_tried,
    sampled,
    sites_of,
)
from nas_attn.errors import InputError
from nas_attn.records import record
from nas_attn.space import SearchSpace, Site


def space(most=2, sites=4):
    rows = (4, 6, 9, 13)[:sites]
    found = tuple(Site(layer=row, names=("neck_P4",) if row == 13 else ("P3",), module="C3k2", channels=64, stride=8) for row in rows)
    return SearchSpace(
        base="yolo11n.yaml", sites=found, placements=tuple(tuple(placement(row, m) for m in range(3)) for row in rows), max_placements=most
    )


def test_all_architectures_of_a_space_are_listed_once_and_come_back():
    of, sites = space(), sites_of(space())
    codes = codes_of_space(of, 0)
    assert len(codes) == of.size == len({row.tobytes() for row in codes})
    assert {sites.architecture(of.base, row).digest() for row in codes} == {a.digest() for a in of.enumerate()}
    assert all(sites.code(sites.architecture(of.base, row)) == row.tolist() for row in codes)
    assert not codes[0].any()


def test_samples_of_large_spaces_have_all_numbers_of_placements_alike():
    codes = sampled(space(most=4), 8000, 0)
    counts = np.bincount(np.count_nonzero(codes, axis=1), minlength=5)
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] / 8000 - 0.25) < 0.02)
    assert codes.max() == 3


def test_a_large_space_offers_the_neighbours_of_what_is_good(monkeypatch):
    monkeypatch.setattr("nas_attn.candidates.ENUMERABLE", 20)
    of = space(most=3)
    start = Architecture(of.base, (placement(4, 1), placement(6, 2)))
    codes = codes_of_space(of, 0, (start,))
    sites = sites_of(of)
    own = np.array(sites.code(start))
    near = {tuple(row) for row in codes.tolist() if np.count_nonzero(np.array(row) != own) == 1}
    assert len(near) == 4 * 3
    assert np.count_nonzero(codes, axis=1).max() == 3
    assert any(not row.any() for row in codes)


def test_what_was_tried_least_is_the_row_with_the_newest_choices():
    seen = np.array([[0, 0, 1], [0, 1, 1], [0, 0, 2]], dtype=np.int16)
    rows = np.array([[0, 0, 1], [0, 1, 1], [2, 0, 1], [2, 2, 1]], dtype=np.int16)
    assert least_tried(rows, seen) == 3
    assert least_tried(rows[:3], seen) == 2
    assert least_tried(rows[:2], seen) == 1
    assert least_tried(rows, seen[:0]) == 0


def test_keys_tell_rows_apart():
    codes = codes_of_space(space(most=4), 0)
    assert len(set(keys(codes).tolist())) == len(codes)
    assert keys(codes[5:6]) == keys(codes)[5]


def test_effects_of_numbers_are_smooth_in_their_order_and_those_of_names_are_not():
    numbers, names = covariance((160, 320, 640)), covariance(("a", "b", "c"))
    assert numbers[0, 1] > numbers[0, 2]
    assert names[0, 1] == pytest.approx(names[0, 2])
    for found in (numbers, names):
        assert np.mean(np.diag(found)) == pytest.approx(1)
        assert np.allclose(found.sum(axis=1), 0)
    assert covariance((1,)) == np.zeros((1, 1))


def test_nothing_at_a_site_has_no_effect_and_one_module_twice_has_like_ones():
    same = sites_of(space()).covariances()[0]
    assert np.all(same[0] == 0)
    assert same[1, 2] > same[1, 3]  # LSKA twice, then LIA
    assert np.all(np.linalg.eigvalsh(same) >= -1e-9)


def test_features_add_up_over_placements():
    of = space()
    sites, codes = sites_of(of), codes_of_space(of, 0)
    found = features_of(sites, codes, of.sites)
    families = len({record(p.module).family for options in sites.options for p in options})
    assert np.array_equal(found[:, 0], np.count_nonzero(codes, axis=1))
    assert np.array_equal(found[:, 1 : 1 + families].sum(axis=1), found[:, 0])
    assert np.array_equal(found[:, 1 + families], codes[:, 3] > 0)  # the neck
    assert np.array_equal(features_of(sites, codes), found[:, : 1 + families])


def test_candidates_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="one code a gene"):
        Candidates(genes={"a": (1, 2)}, codes=np.zeros((3, 2), dtype=np.int16))
    with pytest.raises(InputError, match="'lat' must be finite"):
        Candidates(genes={"a": (1, 2)}, codes=np.zeros((1, 1), dtype=np.int16), known={"lat": np.array([np.nan])})
