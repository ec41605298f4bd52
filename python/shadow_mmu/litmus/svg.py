"""A timeline as an SVG drawing: a line for each CPU, a box for each step, an arrow from each write to who reads it."""

from typing import Final
from xml.sax.saxutils import escape

from shadow_mmu.litmus.timeline import Step, Timeline

__all__ = ["draw"]

_COLUMN: Final = 230
_ROW: Final = 38
_TOP: Final = 84
_LEFT: Final = 60
_BOX: Final = 200
_HEIGHT: Final = 24
# Of the font below, in pixels; a little more than it is.
_CHARACTER: Final = 8
_FILL: Final = {"step": "#eef3fb", "weak": "#fff0c2", "bad": "#f9d2d2"}
_EDGE: Final = {"step": "#4a6fa5", "weak": "#b58900", "bad": "#b02020"}
_STYLE: Final = (
    "text{font:12px monospace;fill:#222}.head{font-weight:bold}.cpu{stroke:#bbb;stroke-dasharray:3 4}"
    ".from{stroke:#4a6fa5;fill:none;marker-end:url(#tip)}"
)
_TIP: Final = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#4a6fa5"/></marker></defs>'
)


def draw(title: str, timeline: Timeline) -> str:
    """Return the drawing as the text of an SVG file."""
    notes = _LEFT + _COLUMN * len(timeline.cpus)
    longest = max(len(text) for text in (title, timeline.verdict, timeline.initial))
    widest = max((len(step.note) for step in timeline.steps), default=0)
    width = max(notes + _CHARACTER * widest, _CHARACTER * longest) + 40
    bottom = _TOP + _ROW * len(timeline.steps)
    steps = {step.number: step for step in timeline.steps}
    size = f'width="{width}" height="{bottom + 40}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        _TIP,
        f'<rect {size} fill="white"/>',
        _text(12, 20, title, "head"),
        _text(12, 38, f"at the start {timeline.initial}"),
    ]
    for cpu, name in enumerate(timeline.cpus):
        parts.append(_text(_middle(cpu), _TOP - 22, name, "head", "middle"))
        parts.append(f'<line class="cpu" x1="{_middle(cpu)}" y1="{_TOP - 14}" x2="{_middle(cpu)}" y2="{bottom}"/>')
    parts += [_arrow(steps[step.source], step) for step in timeline.steps if step.source is not None]
    parts += [_box(step, notes) for step in timeline.steps]
    parts += [_text(12, bottom + 20, timeline.verdict, "head"), "</svg>\n"]
    return "\n".join(parts)


def _middle(cpu: int) -> int:
    return _LEFT + _COLUMN * cpu + _COLUMN // 2


def _row(step: Step) -> int:
    return _TOP + _ROW * (step.number - 1)


def _text(x: int, y: int, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(step: Step, notes: int) -> str:
    x, y = _middle(step.cpu) - _BOX // 2, _row(step)
    return (
        _text(12, y + 16, str(step.number))
        + f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HEIGHT}" rx="4" fill="{_FILL[step.kind]}" '
        f'stroke="{_EDGE[step.kind]}"/>'
        + _text(_middle(step.cpu), y + 16, step.text, "", "middle")
        + (_text(notes, y + 16, step.note) if step.note else "")
    )


def _arrow(source: Step, step: Step) -> str:
    side = 1 if step.cpu > source.cpu else -1
    x1, x2 = _middle(source.cpu) + side * _BOX // 2, _middle(step.cpu) - side * _BOX // 2
    return f'<path class="from" d="M{x1} {_row(source) + _HEIGHT // 2}L{x2} {_row(step) + _HEIGHT // 2}"/>'
