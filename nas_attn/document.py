"""YAML that users write, read as plain values: nothing is executed, nothing is expanded, nothing is lost unnoticed."""

import re
from collections.abc import Hashable, Mapping
from typing import Any, cast

import yaml

from nas_attn.errors import SpaceError

LARGEST_BYTES = 64 * 1024


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases (a few of them can stand for gigabytes) and no key twice (the first would be lost unnoticed)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, f"alias *{event.anchor} is not allowed, write it out", _mark(event.start_mark))
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} is a list or a mapping, use a word", _mark(key_node.start_mark))
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} is written twice, keep one", _mark(key_node.start_mark))
            seen.add(key)
        return super().construct_mapping(node, deep)


def _mark(mark: Any) -> yaml.Mark:
    """A place in a text, whose type differs between PyYAML's two parsers."""
    return cast(yaml.Mark, mark)


# YAML 1.1 takes 1e-3 for a word, for it lacks a point.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read(content: str | bytes, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds: plain values, each key once, at most `LARGEST_BYTES`; `source` names it in errors.

    Raises:
        SpaceError: what is wrong, with its line.
    """
    if len(content) > LARGEST_BYTES:
        raise SpaceError(f"{source}: must be at most {LARGEST_BYTES} bytes, but has {len(content)}; give a search space.")
    try:
        data = yaml.load(content, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = (error.problem or error.context or "it is not").removeprefix("but ")
        raise SpaceError(f"{source}: must be plain YAML, but {reason}{where}; correct that line.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpaceError(f"{source}: must be plain YAML in UTF-8, but {reason}; correct the file.") from error
    if not isinstance(data, dict):
        raise SpaceError(f"{source}: must map keys to values, but got {repr(data)[:60]}; write e.g. `base: yolo11n.yaml`.")
    return data


def write(data: Mapping[str, Any]) -> str:
    """A mapping of plain values as YAML, keys in their order, inner lists and mappings in one line each; `read` of it is equal."""
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120)
