"""What differs between the settings of a study and those that are given now: one line each, and which of them a study may grow by.

Settings are plain JSON values, nested by name. Nothing here knows a storage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_attn.errors import shown

GROWS = ("space", "spec.sites", "spec.modules", "spec.max_placements", "spec.onnx", "setup.imports", "setup.import_folder")
"""Settings that say which architectures there are: another value changes no score, cost or choice that was made before."""
_REASONS = (
    (("spec.base", "setup.base", "setup.graph", "setup.scale"), "placements are rows of one base"),
    (("spec.proxy", "spec.base_fit", "setup.fit", "setup.weights_sha256", "fidelity"), "scores of another training cannot be compared"),
    (("spec.seeds", "spec.base_seeds", "spec.controls"), "every trial is trained as often as the others"),
    (
        ("spec.latency", "setup.latency", "setup.device"),
        "latencies of another clock cannot be compared; `nas-attn retarget` measures them anew",
    ),
    (("spec.search_val", "setup"), "scores on other data cannot be compared"),
    (("spec.limits",), "what a limit turned away was never trained; narrow the front with `nas-attn pick --max-latency-ratio` instead"),
    (("spec.objectives", "objectives"), "every trial was told with the former ones"),
    (("spec.seed",), "the split of the data and every choice hang on it"),
    (("versions",), "scores of other code cannot be compared"),
    (("sampler",), "a study's choices are one sampler's"),
)
_ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that differs: its dotted name and in words how."""

    path: str
    words: str

    def __str__(self) -> str:
        return f"{self.path}: {self.words}"

    @property
    def grows(self) -> bool:
        """Whether it is about the set of architectures alone."""
        return _within(self._name, GROWS)

    @property
    def reason(self) -> str:
        """Why a study cannot go on with it."""
        return next((reason for names, reason in _REASONS if _within(self._name, names)), "the study's trials were made with the former")

    @property
    def _name(self) -> str:
        return self.path.removeprefix("settings.")


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Iterable[str] = ("objectives", "settings")) -> list[Difference]:
    """Every setting in which a study's (`theirs`) and those given now differ, in the order of their names.

    The fingerprint of the space is left out where sites, modules or their number say the same in more words.
    """
    rows = [*_walk(theirs, ours, keys)]
    said = any(row.path != "settings.space" and row.path.startswith("settings.spec.") and row.grows for row in rows)
    return [row for row in rows if not (said and row.path == "settings.space")]


def disagreement(rows: Sequence[Difference]) -> str:
    """What a user is told whose settings differ by `rows`, and what to do."""
    remedy = (
        "With --extend the study goes on in the new space and keeps its trials; or give the former settings."
        if all(row.grows for row in rows)
        else "Give the former ones, or begin another study in another folder."
    )
    lines = "\n  ".join(map(str, rows))
    return f"A study must go on with the settings that it was begun with, but these differ:\n  {lines}\n{remedy}"


def _walk(theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Iterable[str], path: str = "") -> Iterable[Difference]:
    for key in keys:
        old, new = theirs.get(key, _ABSENT), ours.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _walk(old, new, sorted({*old, *new}), f"{path}{key}.")
        elif old != new:
            yield Difference(f"{path}{key}", _words(old, new))


def _words(old: Any, new: Any) -> str:
    if old == _ABSENT and isinstance(new, Mapping):
        return f"added, {_plain(new)}"
    if new == _ABSENT and isinstance(old, Mapping):
        return "removed"
    if isinstance(old, Sequence) and isinstance(new, Sequence) and not {type(old), type(new)} & {str}:
        return _words_of_lists(old, new)
    return f"{old} (study), {new} (now)"


def _words_of_lists(old: Sequence[Any], new: Sequence[Any]) -> str:
    added, removed = [item for item in new if item not in old], [item for item in old if item not in new]
    if not added and not removed:
        return f"{list(old)} (study), in another order {list(new)} (now)"
    told = [f"{word} {', '.join(map(str, items))}" for word, items in (("added", added), ("removed", removed)) if items]
    return "; ".join(told)


def _plain(value: Mapping[str, Any]) -> str:
    """A module's hyperparameters, as a user writes them."""
    return ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) or "as it is"


def _within(name: str, names: Iterable[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)
