"""A study derived from another: the same trials, their latency measured anew on another device or by another runtime, nothing retrained.

The former study is only read. What was measured is kept in the new folder, one file an architecture, until the new study is written whole;
so it may be killed at any instant, and the same command goes on.
"""

import contextlib
import functools
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from nas_attn import derive, network
from nas_attn.address import require_safe
from nas_attn.errors import InputError, Interrupted, StudyError
from nas_attn.event import Event
from nas_attn.facts import front_trials
from nas_attn.files import write_atomic
from nas_attn.home import file_url, lock, note_home, url_of
from nas_attn.jobs import Jobs, rungs_for
from nas_attn.ledger import Ledger
from nas_attn.losses import MAX_LOSSES, heard
from nas_attn.outcome import CHECKPOINT, Cost, Failure, Snapshot, Trial
from nas_attn.protocol import lost_failure, read_costs, recipe_of, versions
from nas_attn.record import load_study
from nas_attn.spec import SpaceSpec
from nas_attn.storage import Storage, write_anew
from nas_attn.study import DEADLINE_S
from nas_attn.work import Pool, Task

WORK = "retarget"
"""In the new study's folder, until it is whole: what it becomes, and what was measured."""
NOTE = "note.json"
BATCH = 8
"""Architectures that are timed side by side: each round has one block of the base and one of every one of them."""
WEIGHTS = "weights.pt"
TRAVELLING = ("outcome.json", WEIGHTS, CHECKPOINT)
_NEW = "study.db.new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What is to be done: a study as it was read, and what the one in `folder` becomes. `note` tells one such task from another."""

    source: Snapshot
    stored: Mapping[int, FrozenTrial]
    attributes: Mapping[str, Any]
    folder: Path
    storage: str | None
    spec: SpaceSpec
    setup: Mapping[str, Any]
    note: Mapping[str, Any]
    command: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retargeted:
    """The derived study, why trials of the former are left out (none are named where it was whole already), and the members of its front
    whose weights the former study no longer had.
    """

    snapshot: Snapshot
    left_out: Mapping[int, str]
    without_weights: tuple[int, ...]


def prepare(
    source: Path,
    folder: Path,
    setup: Mapping[str, Any],
    *,
    backend: str,
    device: str,
    storage: str | None = None,
    command: str | None = None,
) -> Move:
    """Reads the study in `source` for one in `folder`; nothing is written. `setup` is what its workers were told.

    A source that has no study of its own in its folder is looked for in `storage` as well.

    Raises:
        StudyError: no such study, one without a measured base, or another study in `folder`.
        InputError: one folder for both.
    """
    if folder.resolve() == source.resolve():
        raise InputError(f"A study is derived into another folder, but both are {source}; give --to another one.")
    theirs = None if (source / "study.db").is_file() else storage
    snapshot = load_study(source, theirs)
    stored, attributes = _read(source, theirs)
    former = SpaceSpec.from_dict(attributes["settings"]["spec"], f"settings of {source}")
    if not snapshot.trials or snapshot.trials[0].kind != "measured" or snapshot.fit is None:
        raise StudyError(f"A study is derived from one with a measured base, but {source} has none yet; let its search go on first.")
    runtime = versions(backend)
    ours = derive.settings(attributes["settings"], backend, device, runtime)
    origin = {
        "from": source.resolve().name,
        "study": attributes["owner"],
        "trials": len(snapshot.trials),
        "backend": former.latency.backend,
        "device": attributes["settings"]["setup"]["device"],
    }
    places = {name: str(folder.resolve() / "lists" / Path(setup[name]).name) for name in ("train_list", "val_list") if name in setup}
    latency = {"latency": {**setup["latency"], "backend": backend}} if "latency" in setup else {}
    move = Move(
        source=snapshot,
        stored=stored,
        attributes=attributes,
        folder=folder,
        storage=storage,
        spec=former.model_copy(update={"latency": former.latency.model_copy(update={"backend": backend})}),
        setup={**setup, **places, **latency, "folder": str(folder.resolve()), "device": device},
        note={"origin": origin, "settings": ours},
        command=command,
    )
    _require_own(move)
    return move


def run(move: Move, pool: Pool, on_event: Callable[[Event], None] | None = None) -> Retargeted:
    """Measures what is missing, alone on its device, and writes the new study; one that is whole already is given as it is.

    Raises:
        StudyError: another driver in the new folder, or a base that does not keep the limits any more.
        Interrupted: Ctrl-C; the same call goes on.
    """
    move.folder.mkdir(parents=True, exist_ok=True)
    with _locked(move) as owned:
        _require_own(move)
        if _whole(move) is not None:
            _finish(move)
            return _told(move, {})
        _begin(move)
        try:
            _measure(move, pool, on_event or (lambda _: None))
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped with {len(_costs(move))} latencies measured; the same command goes on from there.") from None
        derived = _derived(move)
        _write(move, owned, derived)
        _finish(move)
        return _told(move, derived.left_out)


def _read(folder: Path, storage: str | None) -> tuple[dict[int, FrozenTrial], dict[str, Any]]:
    stored = Storage.read(folder, storage)
    try:
        return {trial.number: trial for trial in stored.study.get_trials(deepcopy=False)}, dict(stored.study.user_attrs)
    finally:
        stored.close()


@contextlib.contextmanager
def _locked(move: Move) -> Iterator[dict[str, str]]:
    """The locks of the new study, which admit one driver; gives its name and its owner's mark."""
    with contextlib.ExitStack() as held:
        yield lock(held, move.folder, url_of(move.folder, move.storage), None)[0]


# -- what the new folder holds -------------------------------------------------------------------------------------------------------------


def _whole(move: Move) -> Snapshot | None:
    """The study in the new folder, if there is one."""
    if move.storage is None:
        return load_study(move.folder) if (move.folder / "study.db").exists() else None
    if (move.folder / "study.json").is_file():
        with contextlib.suppress(StudyError):  # of a storage that holds none yet; one that cannot be reached shows at the first write
            return load_study(move.folder, move.storage)
    return None


def _require_own(move: Move) -> None:
    """Raises StudyError where the new folder holds anything but this very task, begun or done."""
    found, file = _whole(move), move.folder / WORK / NOTE
    if found is not None:
        derived = found.settings.get("derived", {})
        theirs = {name: value for name, value in found.settings.items() if name not in ("derived", "command")}
        begun = {"origin": {name: derived.get(name) for name in move.note["origin"]}, "settings": theirs}
    elif file.is_file():
        begun = json.loads(file.read_text())
    elif (move.folder / "setup.json").exists() or Ledger.of(move.folder).study():
        raise StudyError(f"A study is derived into a new folder, but {move.folder} holds another study; give --to another one.")
    else:
        return
    if differs := _differs(begun, json.loads(json.dumps(move.note))):
        raise StudyError(
            f"A study that was derived goes on as it was begun, but {move.folder} was begun from {differs}; give the former options, "
            "or --to another folder."
        )


def _differs(begun: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """In what one task differs from another, in words."""
    theirs, now = begun["settings"], ours["settings"]
    if begun["origin"].get("study") != ours["origin"]["study"]:
        return "another study"
    if theirs["spec"]["latency"]["backend"] != now["spec"]["latency"]["backend"]:
        return "the same study for another backend"
    if theirs["setup"]["device"] != now["setup"]["device"]:
        return "the same study for another device"
    return None if theirs == now else "the same study with other versions or settings"


def _begin(move: Move) -> None:
    """All that workers and later searches need besides the storage; the note first, by which the same command knows its own."""
    note = move.folder / WORK / NOTE
    if not note.is_file():
        _put(note, json.dumps(move.note))
    former = move.source.folder
    for file in [*(former / "base").glob("*"), *(former / "lists").glob("*.txt"), former / network.FILE]:
        if file.is_file() and not file.name.startswith((".", "latency-gate-")):
            _take(file, move.folder / file.relative_to(former))
    for name in TRAVELLING[::-1]:  # an outcome says that all of an attempt is there
        for file in (former / "trials").glob(f"*/*/*/{name}"):
            _take(file, move.folder / file.relative_to(former))
    _put(move.folder / "space.yaml", move.spec.to_yaml())
    _put(move.folder / "setup.json", json.dumps(dict(move.setup), indent=1))


def _put(file: Path, text: str) -> None:
    write_atomic(file, lambda target: target.write_text(text))


def _take(file: Path, to: Path) -> None:
    """Has a file in the new folder as well: a second name for it where that can be, for no study ever changes a file in place."""
    if to.exists():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except FileNotFoundError:
        return  # a search that runs there has just deleted it
    except OSError:
        shutil.copy2(file, temporary)
    temporary.replace(to)


# -- measuring -----------------------------------------------------------------------------------------------------------------------------


def _measure(move: Move, pool: Pool, on_event: Callable[[Event], None]) -> None:
    """In batches, one at a time, as a search does; what was lost with others is measured alone, and has failed when it is lost again."""
    wanted = {trial.number: trial for trial in derive.to_measure(move.source.trials)}
    done, losses = _costs(move), Counter[int]()
    missing = [number for number in wanted if number not in done]
    todo = deque(tuple(missing[at : at + BATCH]) for at in range(0, len(missing), BATCH))
    while todo:
        numbers = todo.popleft()
        result, lost = _asked(move, pool, [wanted[number] for number in numbers], max(losses[number] for number in numbers) + 1)
        losses.update(numbers if result is None else ())
        answers = [None] * len(numbers) if result is None else read_costs(result, len(numbers))
        for number, answer in zip(numbers, answers, strict=True):
            if answer is None and losses[number] < MAX_LOSSES:
                todo.append((number,))
                continue
            done[number] = answer or lost_failure(MAX_LOSSES, lost)
            _keep(move, wanted[number], done[number])
            on_event(Event(kind="measured", message=_words(number, done[number]), done=len(done), total=len(wanted)))


def _asked(move: Move, pool: Pool, trials: Sequence[Trial], attempt: int) -> tuple[str | None, str]:
    """The answer of a worker that measured these alone on its device, or None and why there is none."""
    key = f"measure/{'-'.join(str(trial.number) for trial in trials)}/{attempt}"
    payload = json.dumps({"setup": dict(move.setup), "architectures": [trial.architecture.to_dict() for trial in trials]})
    pool.submit(Task(key=key, kind="measure", payload=payload, exclusive=True, deadline_s=DEADLINE_S))
    while True:
        ended = pool.wait(None)
        for done in ended:
            if done.key == key:
                told = heard(done, functools.partial(read_costs, count=len(trials)))
                return told.result, str(told.lost)
        if not ended:
            return None, "the pool knows nothing of it"


def _words(number: int, answer: Cost | Failure) -> str:
    if isinstance(answer, Failure):
        return f"trial {number}: {answer.stage}: {answer.error}"
    return f"trial {number}: {answer.latency.ratio:.3f} of the base's latency"


def _keep(move: Move, trial: Trial, answer: Cost | Failure) -> None:
    _put(_file(move, trial), json.dumps({"failure" if isinstance(answer, Failure) else "cost": asdict(answer)}))


def _file(move: Move, trial: Trial) -> Path:
    return move.folder / WORK / f"cost-{trial.architecture.digest()}.json"


def _costs(move: Move) -> dict[int, Cost | Failure]:
    """What was measured, by trial."""
    files = {trial.number: _file(move, trial) for trial in derive.to_measure(move.source.trials)}
    return {number: _answer(json.loads(file.read_text())) for number, file in files.items() if file.is_file()}


def _answer(data: Mapping[str, Any]) -> Cost | Failure:
    return Failure(**data["failure"]) if "failure" in data else Cost.from_dict(data["cost"])


# -- the new study -------------------------------------------------------------------------------------------------------------------------


def _derived(move: Move) -> derive.Derived:
    settings, fit = move.attributes["settings"], move.source.fit or {}
    jobs = Jobs.of(move.spec, recipe_of(move.spec, move.setup, fit), rungs_for(move.spec, settings.get("fidelity", "full")))
    return derive.derive(
        move.source.trials, move.stored, _costs(move), objectives=move.source.objectives, limits=move.spec.limits, jobs=jobs
    )


def _write(move: Move, owned: Mapping[str, str], derived: derive.Derived) -> None:
    """The whole study; in a file it takes its name only then."""
    command = {"command": move.command} if move.command is not None else {}
    attributes = derive.attributes(move.attributes, derived, move.note["settings"], move.note["origin"])
    for remains in move.folder.glob(f"{_NEW}*"):
        remains.unlink()
    url = file_url(move.folder, _NEW) if move.storage is None else require_safe(move.storage)
    write_anew(url, owned, {**attributes, **command}, derived.templates)
    if move.storage is None:
        (move.folder / _NEW).rename(move.folder / "study.db")
    note_home(move.folder, url_of(move.folder, move.storage), owned)


def _finish(move: Move) -> None:
    """The ledger, and nothing left of the work; also after a kill in between."""
    stored = Storage.read(move.folder, move.storage)
    try:
        Ledger.of(move.folder).agree(stored.study.user_attrs, stored.study.get_trials(deepcopy=False))
    finally:
        stored.close()
    if (move.folder / WORK).is_dir():
        shutil.rmtree(move.folder / WORK)


def _told(move: Move, left_out: Mapping[int, str]) -> Retargeted:
    snapshot = load_study(move.folder, move.storage)
    bare = [t.number for t in front_trials(snapshot) if not [*(move.folder / "trials" / t.architecture.digest()).glob(f"*/*/{WEIGHTS}")]]
    return Retargeted(snapshot=snapshot, left_out=left_out, without_weights=tuple(bare))
