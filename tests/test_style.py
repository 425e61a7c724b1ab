"""The colours of the report's style: what means something can be told from its ground."""

import re

import pytest

from nas_attn.page import TEMPLATES

CSS = (TEMPLATES / "report.css").read_text(encoding="utf-8")
DEEPEST = 0.68
"""The opacity of a cell's deepest tint, as `sketch` writes it."""


def colours(dark):
    """The style's variables that are plain colours."""
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", CSS)[: 1 + dark]
    return {name: rgb(value) for block in blocks for name, value in re.findall(r"--([\w-]+): (#\w{6});", block)}


def rgb(text):
    return tuple(int(text[k : k + 2], 16) for k in (1, 3, 5))


def brightness(colour):
    """Relative luminance as WCAG 2 defines it."""
    red, green, blue = (v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted(map(brightness, (one, other)))
    return (high + 0.05) / (low + 0.05)


def over(tint, ground):
    return tuple(DEEPEST * a + (1 - DEEPEST) * b for a, b in zip(tint, ground, strict=True))


def test_contrast_is_that_of_the_definition():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast(rgb("#767676"), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_told_from_their_ground(dark):
    told = colours(dark)
    assert brightness(told["paper"]) < 0.1 if dark else brightness(told["paper"]) > 0.9
    for ground in ("paper", "panel"):
        assert {
            name: contrast(told[name], told[ground]) for name in ("dot", "edge", "warn") if contrast(told[name], told[ground]) < 3
        } == {}
        assert {name: contrast(told[name], told[ground]) for name in ("ink", "soft", "blue", "good", "bad")
                if contrast(told[name], told[ground]) < 4.5} == {}  # fmt: skip
    for tint in ("better", "worse"):
        assert contrast(told["ink"], over(told[tint], told["paper"])) >= 4.5, tint
