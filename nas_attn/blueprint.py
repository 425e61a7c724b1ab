"""What a record of an attention mechanism holds: strings and numbers, so that no tensor library is needed to read it.

Formulas are written over `C` (channels), `H` and `W` (the map), `N = H * W`, and the names of hyperparameters and derived values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nas_attn.errors import SpaceError, nearest
from nas_attn.formula import Value, evaluate, names_of

Family = Literal["channel", "spatial", "kernel", "local", "global", "block"]
"""What a mechanism looks at to weigh or to rebuild its input: whole channels, positions (and channels), a large kernel, windows, the
whole map; or it is a block of convolutions."""

Size = tuple[int, int]
"""Height and width of a map, in cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One argument of a module's constructor.

    `choices` is what a space searches by default; other values of the same kind are legal where the record's constraints allow them.
    A `fraction` may be given as a part of the channels in (0, 1), which stays right at another scale of the detector. `through` names the
    derived value through which alone it acts: two values that derive the same build the same module.
    """

    name: str
    default: Value
    choices: tuple[Value, ...]
    meaning: str
    fraction: bool = False
    through: str = ""

    def __post_init__(self) -> None:
        for value in (self.default, *self.choices):
            if problem := self.problem(value):
                raise SpaceError(problem)

    def problem(self, value: object) -> str | None:
        """What is wrong with the kind of `value`, or None."""
        given = f"but got {self.name}={value!r}"
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else f"`{self.name}` must be true or false, {given}; write one of the two."
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        if isinstance(self.default, float) and not self.fraction:
            finite = number is not None and abs(number) < float("inf")
            return None if finite else f"`{self.name}` must be a finite number, {given}; write one such as {self.default}."
        if not self.fraction:
            return None if isinstance(number, int) else f"`{self.name}` must be a whole number, {given}; write one such as {self.default}."
        if (isinstance(number, float) and 0 < number < 1) or (isinstance(number, int) and number >= 1):
            return None
        return f"`{self.name}` must be a fraction of the channels in (0, 1) or a whole number >= 1, {given}; write 1/4 or 64."

    def resolve(self, channels: int, value: Value) -> Value:
        """The number that a module of `channels` channels gets: a fraction becomes `max(8, round(channels * value))`."""
        return max(8, round(channels * value)) if self.fraction and isinstance(value, float) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecord:
    """One attention mechanism: where its class is, what it takes, what it costs, where it comes from.

    `gate` says what the identity gate multiplies: `m(x)` where the mechanism's output is added to its input (self-attention),
    `m(x) - x` where it replaces it (products with weights), so that an open gate gives the published form.
    `constraints` holds pairs of a formula that must be true and the remedy where it is not: without it the module cannot be built.
    `map_constraints` are about the map as well: every map works, but on one that breaks them the module costs more than it could give,
    and a space leaves it out there. `derived` names what follows from the channels and the hyperparameters, in order.
    `params` counts the bare mechanism's parameters, without the gate; `macs` its multiply-accumulates for one image of H x W, element-wise
    operations, pooling and resampling not counted; both are None for a module of the user's that gives no formula.
    `onnx` is what an export can leave open: `dynamic` the batch, height and width, `static` nothing.
    `unseen` names parameters that no loss can see, such as a bias that a softmax cancels.
    `arxiv`, `reference` (repository@commit) and `licence` (the reference's) are empty where there is none.
    """

    name: str
    target: str
    family: Family
    hyperparameters: tuple[Hyperparameter, ...]
    gate: Literal["m(x)", "m(x) - x"]
    constraints: tuple[tuple[str, str], ...]
    params: str | None
    macs: str | None
    paper: str
    venue: str
    arxiv: str
    reference: str
    licence: str
    note: str
    derived: tuple[tuple[str, str], ...] = ()
    map_constraints: tuple[tuple[str, str], ...] = ()
    onnx: Literal["dynamic", "static"] = "dynamic"
    unseen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {"C", *(hyper.name for hyper in self.hyperparameters)}
        for name, formula in self.derived:
            self._require_known(formula, known)
            known.add(name)
        for hyper in self.hyperparameters:
            self._require_known(hyper.through or "0", {name for name, _ in self.derived})
        for formula, _ in self.constraints:
            self._require_known(formula, known)
        self._require_known(self.params or "0", known)
        for formula in (self.macs or "0", *(formula for formula, _ in self.map_constraints)):
            self._require_known(formula, known | {"H", "W", "N"})

    def _require_known(self, formula: str, known: set[str]) -> None:
        unknown = set(names_of(formula)) - known
        if unknown:
            raise SpaceError(f"{self.name}: a formula may use {sorted(known)}, but `{formula}` uses {sorted(unknown)}; correct the record.")

    def _read(self, params: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
        """Every hyperparameter in the constructor's order, defaults filled, and what is wrong with `params`."""
        known = {hyper.name for hyper in self.hyperparameters}
        problems = [
            f"{self.name}: every hyperparameter must be known, but got {name!r}; {nearest(name, known)}"
            for name in params
            if name not in known
        ]
        values = {hyper.name: params.get(hyper.name, hyper.default) for hyper in self.hyperparameters}
        kinds = (hyper.problem(values[hyper.name]) for hyper in self.hyperparameters)
        return values, problems + [f"{self.name}: {problem}" for problem in kinds if problem]

    def _broken(self, scope: Mapping[str, Value]) -> list[str]:
        """A message for each constraint that is false in `scope`; one that needs a name outside of it is passed over."""
        messages = []
        for formula, remedy in (*self.constraints, *self.map_constraints):
            names = names_of(formula)
            if scope.keys() >= set(names) and not evaluate(formula, scope):
                given = ", ".join(f"{name}={scope[name]}" for name in names)
                messages.append(f"{self.name}: `{formula}` must hold, but got {given}; {remedy}.")
        return messages

    def _scope(self, channels: int, values: Mapping[str, Value]) -> dict[str, Value]:
        scope: dict[str, Value] = {"C": channels}
        scope |= {hyper.name: hyper.resolve(channels, values[hyper.name]) for hyper in self.hyperparameters}
        for name, formula in self.derived:
            scope[name] = evaluate(formula, scope)
        return scope

    def _legal_scope(self, channels: int, params: Mapping[str, Value]) -> dict[str, Value]:
        if problems := self.violations(channels, params):
            raise SpaceError(" ".join(problems))
        return self._scope(channels, self._read(params)[0])

    def complete(self, params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
        """Every hyperparameter with its value, defaults filled, sorted by name.

        Raises SpaceError for an unknown name, a value of the wrong kind, and a constraint that is broken whatever the channels are.
        """
        values, problems = self._read(params)
        relative = {hyper.name for hyper in self.hyperparameters if hyper.fraction}
        if problems := problems or self._broken({name: value for name, value in values.items() if name not in relative}):
            raise SpaceError(" ".join(problems))
        return tuple(sorted(values.items()))

    def violations(self, channels: int, params: Mapping[str, Value], size: Size | None = None) -> list[str]:
        """Why this module cannot be built for `channels` channels with `params`: invariant, values, remedy; empty if it can.

        With the `size` of a map, also why it should not be placed there.
        """
        values, problems = self._read(params)
        if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
            problems.append(
                f"{self.name}: `C >= 1` must hold for a whole number of channels, but got C={channels!r}; give the row's channels."
            )
        return problems or self._broken(self._scope(channels, values) | (_map_names(*size) if size else {}))

    def resolve(self, channels: int, params: Mapping[str, Value]) -> dict[str, Value]:
        """The numbers that the module is built from: fractions turned into widths, derived values (such as heads) added.

        Raises SpaceError where `violations` finds any.
        """
        scope = self._legal_scope(channels, params)
        del scope["C"]
        return scope

    def built(self, channels: int, params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
        """What tells one built module from another: two `params` with equal ones build the same. Raises SpaceError as `resolve` does."""
        stood_for = {hyper.name for hyper in self.hyperparameters if hyper.through}
        return tuple((name, value) for name, value in self.resolve(channels, params).items() if name not in stood_for)

    def args(self, params: Mapping[str, Value]) -> list[Value]:
        """The constructor's arguments after the channels, in order, defaults filled. Raises SpaceError as `complete` does."""
        values = dict(self.complete(params))
        return [values[hyper.name] for hyper in self.hyperparameters]

    def parameters(self, channels: int, params: Mapping[str, Value]) -> int | None:
        """The number of parameters of the gated module: the mechanism's, and one a channel for the gate; None without a formula."""
        scope = self._legal_scope(channels, params)
        return None if self.params is None else int(evaluate(self.params, scope)) + channels

    def macs_count(self, channels: int, height: int, width: int, params: Mapping[str, Value]) -> int | None:
        """Multiply-accumulates for one image of `height` x `width` cells, an operation of two FLOPs once; None without a formula."""
        scope = self._legal_scope(channels, params) | _map_names(height, width)
        return None if self.macs is None else int(evaluate(self.macs, scope))


def _map_names(height: int, width: int) -> dict[str, Value]:
    return {"H": height, "W": width, "N": height * width}
