"""Every malformed input of `tests/corpus` on the command line: one line that names what is wrong, exit code 2, nothing left behind."""

import functools
import re
from collections import Counter

import pytest
from malformed import FUZZERS, KINDS, Trial, corpus, tried
from refusals import SEARCH

ALL = corpus()
FOUND = [name for name, entry in ALL.items() if entry["from"] in FUZZERS]
REMEDY = re.compile(r"; \S|\. Did you mean|Known: |Objectives: |Rows with one map ")


@functools.cache
def trial(name: str) -> Trial:
    """An entry is run once, whoever asks."""
    return tried(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_malformed_input_is_one_line_and_exit_code_two(name: str) -> None:
    outcome, changed = trial(name).outcome, trial(name).changed
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome.stderr
    line = outcome.lines[0]
    assert "Traceback" not in line
    assert line.startswith("error: ")
    assert line.isprintable()
    assert REMEDY.search(line), "a remedy must follow"
    for words in ALL[name]["names"]:
        assert words in line
    assert ALL[name].get("file", "") in line, "whoever has many files must see which one it is"
    assert changed == (), "nothing may be left behind, and nothing rewritten"


def test_half_of_the_corpus_was_found_by_fuzzers() -> None:
    assert len(ALL) >= 250
    assert 2 * len(FOUND) >= len(ALL)
    assert {ALL[name]["from"] for name in FOUND} == set(FUZZERS)
    assert {ALL[name]["from"] for name in ALL} == {"written", *FUZZERS}
    assert {name.partition(":")[0] for name in FOUND} == set(KINDS)


def test_no_two_finds_are_refused_for_one_reason_at_one_place() -> None:
    keys = Counter((name.partition(":")[0], trial(name).outcome.place, trial(name).outcome.reason) for name in FOUND)
    assert [key for key, count in keys.items() if count > 1] == []


def test_no_input_is_twice_in_the_corpus() -> None:
    inputs = [str({key: value for key, value in entry.items() if key not in ("name", "from", "names")}) for entry in ALL.values()]
    assert len(set(inputs)) == len(inputs)
    assert all(entry["names"] for entry in ALL.values())


def test_good_input_is_not_refused() -> None:
    good = tried({"command": list(SEARCH)})
    assert good.outcome.accepted, good.outcome.stderr  # it came as far as the workers, which start in no test of this file
    assert good.changed == ()
