"""The ledger: what a study's storage holds, once more as small files in the study's folder, from which a lost storage is rebuilt.

One file a trial and one a study's attribute, each written whole after the storage took the same. So a ledger is never ahead of its study,
unless the study was lost or is an older copy. Like the storage it knows trials, attributes and states, and nothing of what a search is.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas_attn.errors import StudyError
from nas_attn.files import write_together

FOLDER = "ledger"
SCHEMA = 1
_FIELDS = {"schema", "number", "state", "values", "genes", "user", "system"}


@dataclass(slots=True)
class Ledger:
    """The ledger of one study, for its one driver. Pages of trials that may still change are kept in memory."""

    folder: Path
    _pages: dict[int, dict[str, Any]] = field(default_factory=dict)
    _genes: dict[str, str] = field(default_factory=dict)
    _read: dict[int, dict[str, Any]] | None = None

    @classmethod
    def of(cls, study_folder: Path) -> "Ledger":
        """The ledger in a study's folder, present or not."""
        return cls(study_folder / FOLDER)

    # -- writing ---------------------------------------------------------------------------------------------------------------------------

    def set_study(self, name: str, value: Any) -> None:
        """An attribute of the study."""
        self._write(self._study_file(name), {"schema": SCHEMA, "name": name, "value": value})

    def add(self, first: int, templates: Sequence[FrozenTrial]) -> None:
        """Trials with everything in them, numbered from `first` on."""
        for number, template in enumerate(templates, first):
            self._choices(template)
            self._pages[number] = _page(number, template)
        self._turn(range(first, first + len(templates)))

    def set(self, changes: Sequence[tuple[int, str, Any]]) -> None:
        """Attributes of trials that run: number, name and value."""
        for number, name, value in changes:
            self._pages[number]["user"][name] = value
        self._turn(dict.fromkeys(number for number, _, _ in changes))

    def finish(
        self, number: int, state: TrialState, values: Sequence[float] | None, user: Mapping[str, Any], constraints: Mapping[str, float]
    ) -> None:
        """The end of a trial, after which its page never changes."""
        page = self._pages[number]
        system = {f"constraints:{name}": value for name, value in constraints.items()}
        page |= {"state": state.name, "values": None if values is None else list(values)}
        page["user"] |= user
        page["system"] |= system
        self._turn([number])
        del self._pages[number]

    def require_not_ahead(self, attributes: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> None:
        """Before anything is written.

        Raises:
            StudyError: the files know more than the study, which then is lost, or an older copy.
        """
        ended = {frozen.number: frozen.state.is_finished() for frozen in trials}
        self._read = self.pages()
        ahead = [f"trial {n}" for n, page in self._read.items() if n not in ended or (_ended(page) and not ended[n])]
        ahead += sorted(self.study().keys() - attributes.keys()) if ended else []
        if ahead:
            raise StudyError(
                f"A study must hold all that its ledger holds, but {self.folder} knows more of {ahead[0]}: the storage is lost or an older "
                f"copy. `nas-attn rebuild {self.folder.parent}` makes it anew from the files; begin another study in another folder."
            )

    def agree(self, attributes: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> None:
        """Writes what the files lack of a study: its last moment before a kill, or everything where there was no ledger yet."""
        found, self._read = self.pages() if self._read is None else self._read, None
        self._genes = dict(self._read_genes())
        for name in self.study().keys() - attributes.keys():  # of a study that had no trial when it was lost
            self._study_file(name).unlink()
        for name, value in attributes.items():
            if self._text(self._study_file(name)) != _dumped({"schema": SCHEMA, "name": name, "value": value}):
                self.set_study(name, value)
        for frozen in trials:
            page = _page(frozen.number, frozen)
            if not frozen.state.is_finished():
                self._pages[frozen.number] = page
            if found.get(frozen.number) != page:
                self._choices(frozen)
                self._write(self.file(frozen.number), page)

    # -- reading ---------------------------------------------------------------------------------------------------------------------------

    def study(self) -> dict[str, Any]:
        """The study's attributes."""
        pages = (_loaded(self._text(file)) for file in sorted(self.folder.glob("study-*.json")))
        return {page["name"]: page["value"] for page in pages if page is not None and {"name", "value"} <= page.keys()}

    def pages(self) -> dict[int, dict[str, Any]]:
        """Every page of a trial that is whole, by the trial's number."""
        found = {file: _loaded(self._text(file)) for file in self.folder.glob("trial-*.json")}
        whole = [page for page in found.values() if page is not None and page.keys() == _FIELDS]
        return {page["number"]: page for page in sorted(whole, key=lambda page: int(page["number"]))}

    def torn(self) -> list[str]:
        """The files of trials that cannot be read."""
        whole = {self.file(number) for number in self.pages()}
        return [file.name for file in sorted(self.folder.glob("trial-*.json")) if file not in whole]

    def templates(self) -> dict[int, FrozenTrial]:
        """Every trial as it can be added to a storage, by number.

        Raises:
            StudyError: the file of the genes' choices is lost.
        """
        choices = {name: json_to_distribution(text) for name, text in self._read_genes().items()}
        pages = self.pages()
        missing = {name for page in pages.values() for name in page["genes"]} - choices.keys()
        if missing:
            raise StudyError(
                f"A ledger must hold the choices of every gene, but {self.folder / 'genes.json'} lacks {sorted(missing)}; "
                "copy it from a backup, or from another study of the same space."
            )
        return {number: _template(page, choices) for number, page in pages.items()}

    def _read_genes(self) -> Mapping[str, str]:
        page = _loaded(self._text(self.folder / "genes.json")) or {}
        genes: Mapping[str, str] = page.get("genes", {})
        return genes

    def _choices(self, frozen: FrozenTrial) -> None:
        genes = {name: distribution_to_json(frozen.distributions[name]) for name in frozen.params}
        if any(self._genes.get(name) != text for name, text in genes.items()):  # unknown, or of a space that has grown since
            self._genes |= genes
            self._write(self.folder / "genes.json", {"schema": SCHEMA, "genes": self._genes})

    def _turn(self, numbers: Iterable[int]) -> None:
        write_together({self.file(number): _dumped(self._pages[number]) for number in numbers})

    def file(self, number: int) -> Path:
        """Where a trial is kept."""
        return self.folder / f"trial-{number:05}.json"

    def _study_file(self, name: str) -> Path:
        return self.folder / f"study-{name.replace(':', '-')}.json"

    def _write(self, file: Path, page: Mapping[str, Any]) -> None:
        write_together({file: _dumped(page)})

    def _text(self, file: Path) -> str:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""


def _page(number: int, frozen: FrozenTrial) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "number": number,
        "state": frozen.state.name,
        "values": None if frozen.values is None else list(frozen.values),
        "genes": dict(frozen.params),
        "user": dict(frozen.user_attrs),
        "system": dict(frozen.system_attrs),
    }


def _template(page: Mapping[str, Any], choices: Mapping[str, BaseDistribution]) -> FrozenTrial:
    return create_trial(
        state=TrialState[page["state"]],
        values=page["values"],
        params=dict(page["genes"]),
        distributions={name: choices[name] for name in page["genes"]},
        user_attrs=dict(page["user"]),
        system_attrs=dict(page["system"]),
    )


def _ended(page: Mapping[str, Any]) -> bool:
    return TrialState[page["state"]].is_finished()


def _dumped(page: Mapping[str, Any]) -> str:
    return json.dumps(page)  # in the order of its keys: that of a study's objectives counts


def _loaded(text: str) -> dict[str, Any] | None:
    try:
        page = json.loads(text)
    except ValueError:
        return None
    return page if isinstance(page, dict) and page.get("schema") == SCHEMA else None
