"""Text that others wrote, as Markdown shows it: cards and verdicts are read on pages that also render HTML, links and images."""

import html
import re

from nas_attn.errors import printable


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def markdown(value: object) -> str:
    """A text in one line: no HTML, no link, no image, no emphasis, and no cell of a table ends in it."""
    if isinstance(value, Markdown):
        return value
    return re.sub(r"([\\`*\[\]|!~])", r"\\\1", html.escape(printable(value), quote=False))


def code(value: object) -> Markdown:
    """A text as code; the fence is longer than any that it holds."""
    text = printable(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 or not text.strip("` ") else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")
