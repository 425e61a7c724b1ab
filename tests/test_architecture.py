"""Placements and architectures as values: equal however they were written, refused where they contradict themselves."""

import itertools
import json
import random

import pytest

from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import SpaceError

LSKA = Placement(4, "LSKA", (("k_size", 7), ("use_proj", False)))
LIA = Placement(6, "LIA", (("f", 16),))
DOUBLE = Placement(10, "DoubleAttention", (("c_m", 0.25), ("c_n", 0.125)))


def test_order_of_placements_never_matters() -> None:
    orders = [Architecture("yolo11n.yaml", order) for order in itertools.permutations([LSKA, LIA, DOUBLE])]
    assert len(set(orders)) == len({a.digest() for a in orders}) == len({a.to_json() for a in orders}) == 1
    assert orders[0].placements == (LSKA, LIA, DOUBLE)


def test_order_of_hyperparameters_never_matters() -> None:
    other = Placement(4, "LSKA", (("use_proj", False), ("k_size", 7)))
    assert other == LSKA
    assert hash(other) == hash(LSKA)
    assert Architecture("b.yaml", (other,)).digest() == Architecture("b.yaml", (LSKA,)).digest()


@pytest.mark.parametrize(
    "other",
    [
        Architecture("yolo11s.yaml", (LSKA,)),
        Architecture("yolo11n.yaml"),
        Architecture("yolo11n.yaml", (LSKA, LIA)),
        Architecture("yolo11n.yaml", (Placement(5, "LSKA", LSKA.params),)),
        Architecture("yolo11n.yaml", (Placement(4, "LIA", LSKA.params),)),
        Architecture("yolo11n.yaml", (Placement(4, "LSKA", (("k_size", 11), ("use_proj", False))),)),
    ],
)
def test_every_part_changes_the_digest(other: Architecture) -> None:
    assert other.digest() != Architecture("yolo11n.yaml", (LSKA,)).digest()


def test_digests_are_names_and_stay_what_they_are() -> None:
    # Written down: a change of the canonical text would orphan the folders of every existing study.
    assert Architecture("yolo11n.yaml").to_json() == '{"base":"yolo11n.yaml","placements":[]}'
    assert Architecture("yolo11n.yaml").digest() == "c248d7d161254b15"
    assert Architecture("yolo11n.yaml", (LSKA, DOUBLE)).digest() == "cf927acbd74a9755"


def test_two_modules_after_one_row_are_refused() -> None:
    with pytest.raises(SpaceError, match=r"At most one module may follow a row, but got rows \[4, 4\]"):
        Architecture("yolo11n.yaml", (LSKA, Placement(4, "LIA", (("f", 8),))))
    with pytest.raises(SpaceError, match="At most one module"):
        Architecture("yolo11n.yaml", (LSKA, LSKA))


def test_negative_rows_are_refused() -> None:
    with pytest.raises(SpaceError, match="`layer >= 0` must hold"):
        Placement(-1, "LSKA")


@pytest.mark.parametrize("seed", range(5))
def test_json_both_ways(seed: int) -> None:
    rng = random.Random(seed)
    rows = rng.sample(range(30), rng.randint(0, 5))
    placements = tuple(Placement(row, rng.choice("ABC"), (("x", rng.random()), ("y", rng.choice([True, 3])))) for row in rows)
    architecture = Architecture("my.yaml", placements)
    again = Architecture.from_dict(json.loads(architecture.to_json()))
    assert again == architecture
    assert again.to_json() == architecture.to_json()


def test_json_keeps_the_kinds_of_numbers() -> None:
    values = dict(Architecture.from_dict(json.loads(Architecture("b.yaml", (LSKA,)).to_json())).placements[0].params)
    assert values["use_proj"] is False
    assert type(values["k_size"]) is int


@pytest.mark.parametrize("missing", ["base", "placements"])
def test_a_missing_key_is_an_error(missing: str) -> None:
    data = Architecture("b.yaml", (LSKA,)).to_dict()
    del data[missing]
    with pytest.raises(KeyError, match=missing):
        Architecture.from_dict(data)


def test_as_words() -> None:
    assert str(Architecture("b.yaml")) == "base"
    assert str(Architecture("b.yaml", (DOUBLE, LSKA))) == "LSKA(k_size=7, use_proj=false)@4 + DoubleAttention(c_m=0.25, c_n=0.125)@10"


def test_values_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        LSKA.layer = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Architecture("b.yaml").base = "c.yaml"  # type: ignore[misc]
