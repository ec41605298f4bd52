"""A page walk drawn as tables: for terminals and ``repr`` with rich, for notebooks as HTML."""

from html import escape
from typing import Final

from rich.table import Table

from shadow_mmu.text import html_table, html_text, rendered

from .types import EntryKind, PageWalk, ShadowStep, WalkDimension, WalkStep

__all__ = ["dimension_rows", "lines", "title", "walk_html", "walk_text"]

_GUEST: Final = ("level", "table", "index", "entry at", "entry", "flags", "rights so far", "leads to")
_SHADOW: Final = ("level", "table", "shadows", "role", "index", "entry", "flags", "rights so far", "leads to", "unsync")
_WRAPPED: Final = ("flags", "role", "notes")


def title(walk: PageWalk, dimension: WalkDimension) -> str:
    """Return the line above the table of a dimension."""
    if dimension is walk.shadow and not dimension.steps:
        return f"{dimension.start:#x} through the {dimension.name} tables: {dimension.result}"
    if not dimension.levels:
        return f"{dimension.start:#x} with {dimension.mode}: {dimension.result}"
    whose = "direct" if dimension.name == "direct" else f"{dimension.name}'s"
    return f"{dimension.start:#x} through the {whose} {dimension.mode} tables: {dimension.result}"


def _common(step: WalkStep) -> tuple[str, str, str, str]:
    """Return entry, flags, rights and target."""
    leads = str(step.kind) if step.target is None else f"{step.kind} {step.target:#x}"
    if step.kind is EntryKind.ABSENT:
        return "-", "-", "-", leads
    rights = str(step.rights) if step.kind in (EntryKind.TABLE, EntryKind.PAGE) else "-"
    return f"{step.entry:#0{2 + 2 * step.entry_bytes}x}", " ".join(step.flags) or "-", rights, leads


def _guest_row(step: WalkStep) -> tuple[str, ...]:
    level = f"{step.level} {step.name}"
    return (level, f"{step.table:#x}", str(step.index), f"{step.entry_address:#x}", *_common(step))


def _shadow_row(step: WalkStep) -> tuple[str, ...]:
    level, table = f"{step.level} {step.name}", f"{step.table:#x}"
    if not isinstance(step, ShadowStep) or step.gfn is None:
        return (level, table, "-", "-", str(step.index), *_common(step), "-")
    marks = ", ".join(step.notes) or "-"
    return (level, table, f"gfn {step.gfn:#x}", step.role_words, str(step.index), *_common(step), marks)


def dimension_rows(dimension: WalkDimension) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the columns of a dimension and a row for each level."""
    if any(isinstance(step, ShadowStep) for step in dimension.steps):
        return _SHADOW, [_shadow_row(step) for step in dimension.steps]
    rows = [_guest_row(step) for step in dimension.steps]
    if not any(step.notes for step in dimension.steps):
        return _GUEST, rows
    notes = [", ".join(step.notes) or "-" for step in dimension.steps]
    return (*_GUEST, "notes"), [(*row, note) for row, note in zip(rows, notes, strict=True)]


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column == "index" else "left", no_wrap=column not in _WRAPPED)
    for row in rows:
        table.add_row(*row)
    return table


def lines(walk: PageWalk) -> list[str]:
    """Return what stands below the tables."""
    return [*walk.notes, *([] if walk.access is None else [str(walk.access)])]


def walk_text(walk: PageWalk) -> str:
    """Return a walk as text."""
    parts: list[str | Table] = []
    for dimension in walk.dimensions:
        parts.append(title(walk, dimension))
        if dimension.steps:
            parts.append(_table(*dimension_rows(dimension)))
    # Only tables are drawn: a line is as long as it is.
    return "\n".join(part if isinstance(part, str) else rendered(part) for part in (*parts, *lines(walk)))


def walk_html(walk: PageWalk) -> str:
    """Return a walk as HTML."""
    tables = "".join(
        f"<p>{escape(title(walk, dimension))}</p>{html_table(*dimension_rows(dimension))}"
        for dimension in walk.dimensions
    )
    return tables + "".join(map(html_text, lines(walk)))
