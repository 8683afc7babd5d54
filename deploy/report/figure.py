"""Matplotlib figures as inline SVG that takes its colours from the page.

A page is read on light and on dark ground, so nothing is drawn in a fixed colour: figures are drawn
in marker colours, which the SVG then names as the page's CSS variables. Text stays text.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Marker colour -> CSS variable.
INK, MUTED, LINE = "#010101", "#010102", "#010103"
BEFORE, AFTER, BEST = "#010104", "#010105", "#010106"
HUES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116")
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    BEFORE: "--before",
    AFTER: "--after",
    BEST: "--best",
    **{hue: f"--hue{index}" for index, hue in enumerate(HUES)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.formatter.useoffset": False,
}


@contextmanager
def styled(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches in the page's style."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `svg` element, as wide as the page lets it.

    Args:
      name: unique on the page; the names inside the SVG begin with it.
      alt: what the figure shows, for who does not see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # One document has one space of names: those of several figures must not meet in it.
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box[1]}"'
    head += ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + text[text.index(">") + 1 :]
