"""Tables as text and as HTML, for ``repr`` and ``_repr_html_``."""

from collections.abc import Iterable, Sequence
from html import escape
from io import StringIO
from typing import Final

from rich.console import Console, RenderableType

__all__ = ["html_table", "html_text", "rendered"]

# As wide as a table needs: who shows it breaks its lines, or scrolls.
_WIDTH: Final = 200


def rendered(*parts: RenderableType) -> str:
    """Return rich's renderables as plain text, one below the other."""
    out = Console(file=StringIO(), width=_WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    with out.capture() as capture:
        for part in parts:
            out.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def html_text(text: str) -> str:
    """Return a paragraph of HTML, the text escaped."""
    return f"<p>{escape(text)}</p>"


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; every text is escaped."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
