"""Bar charts as SVG, readable on a light and on a dark page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

_COLUMNS: Final = 2
_WIDTH: Final = 480
_LABEL: Final = 220
_BAR: Final = 190
_ROW: Final = 22
_TITLE: Final = 40
_GAP: Final = 24
_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 } .unit { fill: #59636e }
  .ours { fill: #1a7f64 } .theirs { fill: #a8b1ba } text.ours { fill: #11694f; font-weight: 600 }
  .page { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .unit { fill: #9198a1 } .page { fill: #0d1117 }
    .ours { fill: #2fb38f } .theirs { fill: #57606a } text.ours { fill: #5fd3b3 }
  }"""


@dataclass(frozen=True)
class Bar:
    """A value with its label; `ours` makes it stand out."""

    label: str
    value: float
    ours: bool = False


@dataclass(frozen=True)
class Panel:
    """Bars of one unit below a title."""

    title: str
    unit: str
    bars: Sequence[Bar]


def svg(panels: Sequence[Panel], caption: str) -> str:
    """The panels, two in a row, above a caption."""
    height = _TITLE + _ROW * max((len(panel.bars) for panel in panels), default=0) + _GAP
    rows = -(-len(panels) // _COLUMNS)
    width, total = _WIDTH * _COLUMNS + _GAP, rows * height + _ROW + _GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" role="img">',
        f"<title>{escape(caption)}</title>",
        f"<style>{_STYLE}\n</style>",
        f'<rect class="page" width="{width}" height="{total}"/>',
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        lines.append(f'<g transform="translate({_GAP + column * _WIDTH} {_GAP + row * height})">')
        lines += _panel(panel)
        lines.append("</g>")
    lines.append(f'<text class="unit" x="{_GAP}" y="{total - _ROW}">{escape(caption)}</text>')
    lines.append("</svg>\n")
    return "\n".join(lines)


def _panel(panel: Panel) -> list[str]:
    lines = [
        f'<text class="title" y="12">{escape(panel.title)}'
        f'<tspan class="unit" font-weight="400" dx="8">{escape(panel.unit)}</tspan></text>'
    ]
    most = max((bar.value for bar in panel.bars), default=0.0) or 1.0
    for number, bar in enumerate(panel.bars):
        y = _TITLE + number * _ROW
        kind = "ours" if bar.ours else "theirs"
        text = ' class="ours"' if bar.ours else ""
        length = max(1.0, bar.value / most * _BAR)
        lines += [
            f'<text{text} x="{_LABEL - 8}" y="{y}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{_LABEL}" y="{y - 12}" width="{length:.1f}" height="15" '
            'rx="2"/>',
            f'<text{text} x="{_LABEL + length + 6:.1f}" y="{y}">{_number(bar.value)}</text>',
        ]
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
