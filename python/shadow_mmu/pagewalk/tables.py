"""A page walk drawn as a table: for terminals and ``repr`` with rich, for notebooks as HTML."""

from html import escape
from typing import Final

from rich.table import Table

from shadow_mmu.text import html_table, rendered

from .types import EntryKind, PageWalk, WalkDimension, WalkStep

__all__ = ["dimension_table", "title", "walk_html", "walk_text"]

_COLUMNS: Final = ("level", "table", "index", "entry at", "entry", "flags", "rights so far", "leads to")


def title(walk: PageWalk, dimension: WalkDimension) -> str:
    """Return the line above the table of a dimension."""
    return f"{walk.gva:#x} through the {dimension.name}'s {dimension.mode} tables: {dimension.result}"


def _row(step: WalkStep) -> tuple[str, ...]:
    leads = str(step.kind) if step.target is None else f"{step.kind} {step.target:#x}"
    level = f"{step.level} {step.name}"
    if step.kind is EntryKind.ABSENT:
        return (level, f"{step.table:#x}", str(step.index), f"{step.entry_address:#x}", "-", "-", "-", leads)
    return (
        level,
        f"{step.table:#x}",
        str(step.index),
        f"{step.entry_address:#x}",
        f"{step.entry:#0{2 + 2 * step.entry_bytes}x}",
        " ".join(step.flags) or "-",
        str(step.rights) if step.kind in (EntryKind.TABLE, EntryKind.PAGE) else "-",
        leads,
    )


def dimension_table(dimension: WalkDimension) -> Table:
    """Return the table of one dimension, one row a level."""
    table = Table()
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column == "index" else "left", no_wrap=column != "flags")
    for step in dimension.steps:
        table.add_row(*_row(step))
    return table


def walk_text(walk: PageWalk) -> str:
    """Return a walk as text."""
    parts: list[str | Table] = []
    for dimension in walk.dimensions:
        parts.append(title(walk, dimension))
        if dimension.steps:
            parts.append(dimension_table(dimension))
    return rendered(*parts)


def walk_html(walk: PageWalk) -> str:
    """Return a walk as HTML."""
    return "".join(
        f"<p>{escape(title(walk, dimension))}</p>{html_table(_COLUMNS, map(_row, dimension.steps))}"
        for dimension in walk.dimensions
    )
