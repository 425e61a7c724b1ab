"""Tables: what is read, in which order, what is refused, and that a combination finds its row."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_attn.errors import InputError
from nas_attn.table import Lookup, Table, read_table

UP = {"acc": "maximize"}
CSV = "name,size,kind,acc,lat\nm1,10,b,0.5,2\nm2,9,a,0.25,1e0\nm3,10,NA,1,3\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text)
    return path


def table(genes: Mapping[str, tuple[Any, ...]], codes: Any, **values: Any) -> Table:
    return Table(genes=genes, codes=np.array(codes), values=values, directions=dict.fromkeys(values, "maximize"))


def test_numbers_stay_numbers_in_order_and_words_stay_words(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, CSV), ["size", "kind"], {"lat": "minimize", "acc": "maximize"})
    assert found.genes == {"size": (9, 10), "kind": ("NA", "a", "b")}
    assert found.codes.tolist() == [[1, 2], [0, 1], [1, 0]]
    assert [found.params(row) for row in range(3)] == [
        {"size": 10, "kind": "b"},
        {"size": 9, "kind": "a"},
        {"size": 10, "kind": "NA"},
    ]
    assert found.points().tolist() == [[2.0, 0.5], [1.0, 0.25], [3.0, 1.0]]
    assert (len(found), found.combinations) == (3, 6)
    assert [type(choice) for choice in found.genes["size"]] == [int, int]


def test_a_gene_with_one_word_among_numbers_is_words(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "g,acc\n10,1\n9,2\nnone,3\n"), ["g"], UP)
    assert found.genes["g"] == ("10", "9", "none")


@pytest.mark.parametrize(
    ("text", "genes", "directions", "words"),
    [
        (CSV, ["sizes"], UP, "'sizes' is none. Did you mean 'size'?"),
        (CSV, ["size", "kind"], {"ac": "maximize"}, "Did you mean 'acc'?"),
        (CSV, ["size", "acc"], UP, "every column once"),
        (CSV, ["size", "size"], UP, "every column once"),
        (CSV, ["size"], {}, "genes and objectives"),
        (CSV + "m4,9,b,2,2\n", ["size"], UP, r"size=10 stands in rows 1 and 3 \(2 rows repeat another\); add the gene 'kind'"),
        ("g,acc\n1,0.5\n1.0,0.6\n", ["g"], UP, "rows 1 and 2 .*average them"),
        ("g,acc\n1,0.5\n2,\n3,nan\n", ["g"], UP, "got '' in row 2 and 1 more"),
        ("g,acc\n1,0.5\n2,inf\n", ["g"], UP, "got 'inf' in row 2;"),
        ("g,acc\n1,0.5\n,0.4\n", ["g"], UP, "'g' is empty in row 2;"),
        ("g,acc\n", ["g"], UP, "at least one row"),
        ("", ["g"], UP, "cannot be read"),
        ("g,acc\n1,2\n1,2,3\n", ["g"], UP, "cannot be read"),
        ("g,acc\n1,2,3,4\n", ["g"], UP, "more cells than"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_clear_line(
    tmp_path: Path, text: str, genes: list[str], directions: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        read_table(written(tmp_path, text), genes, directions)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.csv is no file"):
        read_table(tmp_path / "nothing.csv", ["g"], UP)


@pytest.mark.parametrize(
    ("codes", "values", "words"),
    [
        ([[0, 0], [1, 2]], [1, 2], "outside|lie"),
        ([[0, 0], [0, -1]], [1, 2], "lie outside"),
        ([[0, 0], [0, 0]], [1, 2], "1 repeat one"),
        ([[0], [1]], [1, 2], "a column for each"),
        ([[0, 0], [1, 1]], [1, np.nan], "2 finite numbers"),
        ([[0, 0], [1, 1]], [1, 2, 3], "2 finite numbers"),
    ],
)
def test_a_table_in_memory_is_checked(codes: Any, values: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        table({"a": (0, 1), "b": ("x", "y")}, codes, acc=np.array(values, dtype=float))


def test_objectives_need_directions() -> None:
    with pytest.raises(InputError, match="needs its values and a direction"):
        Table(genes={"a": (0, 1)}, codes=np.array([[0]]), values={"acc": np.ones(1)}, directions={"acc": "up"})


@pytest.mark.parametrize("genes", [4, 70])
def test_every_combination_finds_its_row_and_no_other_does(genes: int) -> None:
    """Also where the product of all choices is beyond 64-bit integers."""
    rng = np.random.default_rng(0)
    choices = {f"g{k}": tuple(range(3)) for k in range(genes)}
    every = np.array(list(itertools.product(range(3), repeat=4)))
    codes = np.concatenate([every, np.ones((len(every), genes - 4), dtype=int)], axis=1)[rng.permutation(len(every))]
    kept, left = codes[:60], codes[60:]
    found = table(choices, kept, acc=np.arange(60.0))
    lookup = Lookup(found)
    assert [lookup.row(found.params(row)) for row in range(60)] == list(range(60))
    assert {lookup.row({f"g{k}": int(code) for k, code in enumerate(row)}) for row in left} == {None}


def test_a_row_knows_its_place_in_the_product_of_all_choices() -> None:
    """A model that is charged for invalid combinations finds a row among all of them by its place."""
    found = table({"a": (1, 2), "b": ("x", "y", "z"), "c": (0, 1)}, [[1, 2, 0], [0, 0, 1], [1, 0, 1]], acc=np.ones(3))
    product = list(itertools.product(range(2), range(3), range(2)))
    assert [product[key] for key in found.places()] == [(1, 2, 0), (0, 0, 1), (1, 0, 1)]
