"""Matplotlib figures: as inline SVG that takes its colours from the page, and as PNG files.

A page is read on light and on dark ground, so nothing is drawn in a fixed colour there: figures are
drawn in marker colours, which the SVG then names as the page's CSS variables. Text stays text. A
file has the page's light colours.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from deploy.report.style import STYLE

HUES = 9
PNG_DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Palette:
    """Colours by what is drawn in them; `hues` tell series apart."""

    ink: str
    muted: str
    line: str
    before: str
    after: str
    best: str
    hues: tuple[str, ...]

    def of_policy(self, key: str) -> str:
        """The colour of `before`, `after` or `best`."""
        return {"before": self.before, "after": self.after, "best": self.best}[key]


_ROLES = ("ink", "muted", "line", "before", "after", "best")
_HUES = tuple(f"hue{index}" for index in range(HUES))
# Marker colour -> CSS variable.
_VARIABLES = {f"#0101{index:02x}": f"--{name}" for index, name in enumerate(_ROLES + _HUES)}


def _palette(colours: list[str]) -> Palette:
    roles = dict(zip(_ROLES, colours, strict=False))
    return Palette(**roles, hues=tuple(colours[len(_ROLES) :]))


def _light(variable: str) -> str:
    found = re.search(rf"{variable}: (#[0-9a-f]{{6}});", STYLE)  # the light theme comes first
    assert found is not None, variable
    return found[1]


PAGE = _palette(list(_VARIABLES))
PAPER = _palette([_light(variable) for variable in _VARIABLES.values()])


def _style(palette: Palette) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "font.size": 9.5,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.line,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.line,
        "grid.linewidth": 0.6,
        "xtick.color": palette.line,
        "ytick.color": palette.line,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "axes.formatter.useoffset": False,
    }


@contextmanager
def styled(width: float, height: float, palette: Palette = PAGE) -> Iterator[Figure]:
    """A figure of so many inches in the page's style."""
    with mpl.rc_context(_style(palette)):
        yield Figure(figsize=(width, height), layout="constrained")


def write_png(figure: Figure, path: Path) -> None:
    """Writes a figure in the colours of `PAPER` on white."""
    with mpl.rc_context(_style(PAPER)):
        figure.savefig(path, format="png", dpi=PNG_DOTS_PER_INCH, facecolor="white")


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `svg` element, as wide as the page lets it.

    Args:
      name: unique on the page; the names inside the SVG begin with it.
      alt: what the figure shows, for who does not see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_style(PAGE) | {"svg.hashsalt": name}):
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
