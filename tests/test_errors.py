"""The tree of errors: what a caller may catch, how a command exits, what remedy a wrong name gets."""

import inspect
import re
from pathlib import Path

import pytest

from nas_attn import errors
from nas_attn.errors import (
    DataError,
    GraphError,
    InputError,
    Interrupted,
    NasAttnError,
    PoolError,
    SpaceError,
    StudyError,
    TransferError,
    nearest,
)


@pytest.mark.parametrize("error", [GraphError, SpaceError, DataError, StudyError])
def test_what_users_wrote_is_an_input_error_and_a_value_error(error: type[NasAttnError]) -> None:
    assert issubclass(error, InputError)
    assert issubclass(error, ValueError)
    assert error.exit_code == 2


def test_every_exit_code_of_an_error_is_told_on_the_page_of_what_breaks() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    told = {int(line.split()[1].strip(",")) for line in page.splitlines() if re.match(r"\| \d+[, ]", line)}
    raised = {error.exit_code for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, NasAttnError)}
    assert told == raised | {0, 137}


@pytest.mark.parametrize(("error", "code"), [(NasAttnError, 1), (TransferError, 1), (PoolError, 1), (Interrupted, 130)])
def test_what_failed_while_running_is_no_input_error(error: type[NasAttnError], code: int) -> None:
    assert not issubclass(error, InputError)
    assert error.exit_code == code


def test_every_error_is_in_the_drawn_tree() -> None:
    classes = {name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)}
    drawn = {word for word in (errors.__doc__ or "").replace("─", " ").split() if word in classes}
    assert classes == drawn
    assert all(issubclass(getattr(errors, name), NasAttnError) for name in classes)


@pytest.mark.parametrize(
    ("name", "match"),
    [("LSKAA", "LSKA"), ("lska", "LSKA"), ("halo_attention", "HaloAttention"), ("LIA", "LIA")],
)
def test_nearest_names_the_closest(name: str, match: str) -> None:
    text = nearest(name, ["LSKA", "LIA", "HaloAttention"])
    assert text == f"Did you mean {match!r}? Known: HaloAttention, LIA, LSKA."


def test_nearest_guesses_nothing_where_nothing_is_close() -> None:
    assert nearest("xyzzy", ["LSKA", "LIA"]) == "Known: LIA, LSKA."
    assert nearest("LSKA", []) == "Known: none."
