"""Attention modules of the user's own: a decorator that puts a class into the table, and the import of the files that hold such classes.

    from nas_attn import Gated, mechanism

    @mechanism(choices={"kernel": (3, 5, 7)}, constraints=(("kernel % 2 == 1", "give an odd side"),))
    class MyAttention(Gated):
        def __init__(self, channels, kernel=3):
            super().__init__(channels)
            ...

        def mechanism(self, x_BCHW):
            ...

A space then names `MyAttention`; `--import my_pkg.my_file` imports the file, here and in every worker. No YAML imports code.
"""

import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from nas_attn.blueprint import Family, Hyperparameter, ModuleRecord
from nas_attn.errors import InputError, NasAttnError
from nas_attn.formula import Value
from nas_attn.records import adopt
from nas_attn.registration import announce

INNER = "_nas_attn_inner"
FILE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_Class = TypeVar("_Class", bound=type)
_sources: dict[str, str] = {}


def mechanism(
    *,
    gate: Literal["m(x)", "m(x) - x"] = "m(x)",
    choices: Mapping[str, Sequence[Value]] | None = None,
    fractions: Collection[str] = (),
    constraints: tuple[tuple[str, str], ...] = (),
    map_constraints: tuple[tuple[str, str], ...] = (),
    params: str | None = None,
    macs: str | None = None,
    onnx: Literal["dynamic", "static"] = "dynamic",
    unseen: tuple[str, ...] = (),
    family: Family = "spatial",
    paper: str = "",
    note: str = "",
) -> Callable[[_Class], _Class]:
    """Put a subclass of `nas_attn.Gated` into the table of mechanisms under its own name.

    Its constructor takes the channels and then its hyperparameters, each with a default; `choices` are the values that a space searches by
    default (else the default alone), `fractions` names those that may be given as a part of the channels. `constraints` are checked before
    the constructor runs, and by every space, as in the records of the table (`nas_attn.blueprint.ModuleRecord`), from which the other
    arguments are. With `gate="m(x) - x"` the mechanism's output takes the place of its input, otherwise it is added.

    Raises:
        InputError: a class that is no `Gated`, a constructor without defaults, or choices of an argument that it lacks.
        SpaceError: a name that the table has already, or a formula that it cannot read.
    """

    def adopted(cls: _Class) -> _Class:
        arguments = _arguments(cls)
        if unknown := {*(choices or {}), *fractions} - set(arguments):
            raise InputError(f"Choices must be of the constructor's arguments {list(arguments)}, but {cls.__name__} has {sorted(unknown)}.")
        entry = ModuleRecord(
            name=cls.__name__,
            target=f"{cls.__module__}:{cls.__qualname__}",
            family=family,
            hyperparameters=tuple(
                _hyperparameter(name, default, (choices or {}).get(name, ()), name in fractions) for name, default in arguments.items()
            ),
            gate=gate,
            constraints=constraints,
            map_constraints=map_constraints,
            params=params,
            macs=macs,
            onnx=onnx,
            unseen=unseen,
            paper=paper,
            venue="",
            arxiv="",
            reference="",
            licence="",
            note=note or (inspect.getdoc(cls) or "A module of the user's own.").partition("\n")[0],
        )
        cls.replaces = gate == "m(x) - x"  # type: ignore[attr-defined]
        _ask_first(cls, entry)
        adopt(entry)
        announce(entry.name, cls)
        return cls

    return adopted


def load(modules: Sequence[str], folder: str | None = None) -> None:
    """Import the user's files by their dotted names; `folder` is searched as well, as by `python -m`.

    Raises:
        InputError: a name that is none, no such file, or one that fails when it is imported.
    """
    for name in modules:
        require_name(name)
        if folder and folder not in sys.path:
            sys.path.append(folder)
        try:
            module = importlib.import_module(name)
        except NasAttnError:
            raise
        except Exception as error:
            raise InputError(f"`--import {name}` must be importable from {folder}, but: {type(error).__name__}: {error}") from error
        file = getattr(module, "__file__", None)
        _sources[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else "built in"


def require_name(name: str) -> None:
    """Refuse what is no dotted name of a module.

    Raises:
        InputError: says so.
    """
    if not FILE.fullmatch(name) or "nn." in name:
        # Ultralytics takes every module whose name holds "nn." for one of torch.nn.
        raise InputError(f"`--import` takes a dotted module name without `nn.` in it, but got {name!r}; write e.g. my_pkg.my_file.")


def sources() -> dict[str, str]:
    """What has been loaded, each with a fingerprint of its file: a score depends on it."""
    return dict(sorted(_sources.items()))


def _arguments(cls: type) -> dict[str, Any]:
    """The constructor's arguments after the channels, with their defaults."""
    from nas_attn.attention.gate import Gated

    if not (isinstance(cls, type) and issubclass(cls, Gated)):
        raise InputError(f"A mechanism must be a subclass of nas_attn.Gated with a method `mechanism`, but got {cls!r}; derive it from it.")
    if "<locals>" in cls.__qualname__:
        raise InputError(f"A mechanism must be importable by its name, but {cls.__qualname__} is local; define it at the file's top level.")
    given = list(inspect.signature(cls).parameters.values())
    bare = [p.name for p in given[1:] if p.default is p.empty or p.kind is not p.POSITIONAL_OR_KEYWORD]
    if not given or bare:
        raise InputError(f"{cls.__name__} must take (channels, ...) with a default for every argument after it, but {bare} have none.")
    return {p.name: p.default for p in given[1:]}


def _hyperparameter(name: str, default: Value, choices: Sequence[Value], fraction: bool) -> Hyperparameter:
    values = tuple(dict.fromkeys([*choices, *(() if default in choices else (default,))]))
    return Hyperparameter(name=name, default=default, choices=values, meaning="see the class", fraction=fraction)


def _ask_first(cls: Any, entry: ModuleRecord) -> None:
    """Let the constructor ask the record before it does anything, and get numbers where fractions were given."""
    inner = getattr(cls.__init__, INNER, cls.__init__)  # decorated again, as after a reload, it asks the new record alone
    order = [hyper.name for hyper in entry.hyperparameters]

    @functools.wraps(inner)
    def init(self: Any, channels: int, *args: Value, **kwargs: Value) -> None:
        if type(self) is not cls:  # a subclass of it has a record of its own
            inner(self, channels, *args, **kwargs)
            return
        params = {**dict(zip(order, args, strict=False)), **kwargs}
        values = entry.resolve(channels, params)
        inner(self, channels, **{name: values[name] for name in order})

    setattr(init, INNER, inner)
    cls.__init__ = init
