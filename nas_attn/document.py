"""YAML that users write, read as plain values: nothing is executed, nothing is expanded, nothing is lost unnoticed."""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from nas_attn.errors import InputError, SpaceError, shown

LARGEST_BYTES = 64 * 1024
"""Of a space or a model, which people write by hand."""
DEEPEST = 32
"""Lists and mappings within each other: more are no plain settings, and a few thousand exhaust the stack."""
_EXAMPLE = "base: yolo11n.yaml"
_LARGEST_BITS = 63
"""Of a whole number: what lies beyond can neither be stored nor, in the end, be printed."""
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What PyYAML's constructors raise for words such as `0x_` and `2020-13-45`, which look like a number or a day and are none."""


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases (a few of them can stand for gigabytes), no tags, no key twice (the first would be lost unnoticed)."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _fault(f"alias *{event.anchor} is not allowed, write it out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _fault(f"tag {shown(event.tag)} is not allowed, write the plain value", event.start_mark)
        if self.depth == DEEPEST:
            raise _fault(f"it is nested more than {DEEPEST} levels deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except _UNREADABLE as error:
            text = shown(str(node.value))
            raise _fault(f"{text} is not the number or the day that it looks like, put it in quotes", node.start_mark) from error
        if type(value) is int and value.bit_length() > _LARGEST_BITS:
            raise _fault(f"a whole number has {value.bit_length()} bits, write one of at most {_LARGEST_BITS}", node.start_mark)
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise _fault(f"{shown(value)} holds half a character, write the whole one", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag in _UNUSUAL:
                raise _fault(f"key {key_node.value!r} has a meaning of its own in YAML, write the keys out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _fault(f"key {shown(key)} is a list or a mapping, use a word", key_node.start_mark)
            if key in seen:
                raise _fault(f"key {shown(key)} is written twice, keep one", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_UNUSUAL = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")


def _fault(text: str, mark: Any) -> yaml.MarkedYAMLError:
    """What is wrong at a place in a text; the type of places differs between PyYAML's two parsers."""
    return yaml.MarkedYAMLError(None, None, text, cast(yaml.Mark, mark))


# YAML 1.1 takes 1e-3 for a word, for it lacks a point.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read(
    content: str | bytes,
    source: str,
    *,
    kind: type[InputError] = SpaceError,
    largest: int = LARGEST_BYTES,
    example: str = _EXAMPLE,
) -> dict[str, Any]:
    """The mapping that a YAML text holds: plain values, each key once, at most `largest` bytes; `source` names it in errors.

    Raises:
        InputError: what is wrong, with its line, as the `kind` that is given.
    """
    if len(content) > largest:
        raise kind(f"{source}: must be at most {largest} bytes, but has {len(content)}; give the YAML itself, not what it names.")
    try:
        data = yaml.load(content, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = (error.problem or error.context or "it is not").removeprefix("but ")
        raise kind(f"{source}: must be plain YAML, but {reason}{where}; correct that line.") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise kind(f"{source}: must be plain YAML in UTF-8, but {_where(error)}; correct the file.") from error
    if not isinstance(data, dict):
        raise kind(f"{source}: must map keys to values, but got {shown(data)}; write e.g. `{example}`.")
    return data


def read_file(file: Path, *, kind: type[InputError] = SpaceError, largest: int = LARGEST_BYTES, example: str = _EXAMPLE) -> dict[str, Any]:
    """`read` of a file, of which no more than is allowed comes into memory.

    Raises:
        InputError: what is wrong, or that the file cannot be read, as the `kind` that is given.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            content = stream.read(largest + 1)
    except OSError as error:
        raise kind(f"{file}: must be readable, but: {error.strerror}; give another file.") from error
    if size > largest:
        raise kind(f"{file}: must be at most {largest} bytes, but has {size}; give the YAML itself, not what it names.")
    return read(content, str(file), kind=kind, largest=largest, example=example)


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def write(data: Mapping[str, Any]) -> str:
    """A mapping of plain values as YAML, keys in their order, inner lists and mappings in one line each; `read` of it is equal."""
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120)


def _where(error: Exception) -> str:
    """A character that is none, and where it stands."""
    if isinstance(error, yaml.reader.ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"unacceptable character {code:#04x} at byte {error.position}: {error.reason}"
    return str(error).splitlines()[0]
