"""Dumps, roots and ranges drawn as tables."""

from html import escape
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from shadow_mmu.pagewalk import size_name
from shadow_mmu.text import html_table, rendered

if TYPE_CHECKING:
    from .dump import MemoryDump
    from .kpti import Root
    from .leaves import Trouble
    from .maps import MappedRange, Maps
    from .page_tables import PageTables

__all__ = ["dump_html", "maps_html", "maps_text", "print_maps", "roots_table"]

# A repr is for a glance; the command line and a program see all.
_SHOWN: Final = 40
_MAPS: Final = ("start", "end", "size", "pages", "rights", "gpa")
_ROOTS: Final = ("CR3", "vCPUs", "KPTI")


def _maps_row(one: "MappedRange") -> tuple[str, ...]:
    gpa = f"{one.gpa:#x}" + (f" ({one.runs:,} runs)" if one.runs > 1 else "")
    return (
        f"{one.start:#018x}",
        f"{one.end:#018x}",
        size_name(one.end - one.start),
        f"{one.pages:,} x {size_name(one.page_size)}",
        f"{one.rights}{' g' if one.is_global else ''}",
        gpa,
    )


def _maps_table(maps: "Maps", shown: int | None = None) -> Table:
    table = Table()
    for column in _MAPS:
        table.add_column(column, justify="right" if column in ("size", "pages") else "left", no_wrap=True)
    for one in maps if shown is None else maps[:shown]:
        table.add_row(*_maps_row(one))
    return table


def summary(maps: "Maps") -> str:
    """Return what is mapped in one line."""
    kinds = ", ".join(
        f"{count:,} of {size_name(1 << 12 + 9 * (level - 1))}" for level, count in maps.by_level.items() if count
    )
    pages = f"{maps.leaves:,} pages ({kinds})" if kinds else "nothing mapped"
    return f"CR3 {maps.cr3:#x}, {maps.levels} levels: {pages} in {len(maps):,} ranges, {maps.tables:,} tables read"


def _trouble(what: str, value: str, trouble: "Trouble") -> list[str]:
    if not trouble.count:
        return []
    gva, level, found = trouble.first[0]
    return [f"{what}: {trouble.count:,}, one at gva {gva:#x}, level {level}: {value} {found:#x}"]


def notes(maps: "Maps") -> list[str]:
    """Return what is to be known beside the ranges."""
    return [
        *_trouble("tables that are not in the dump", "gpa", maps.absent),
        *_trouble("entries with a reserved bit set", "entry", maps.reserved),
    ]


def _hidden(maps: "Maps") -> list[str]:
    return [f"{len(maps) - _SHOWN:,} more ranges"] if len(maps) > _SHOWN else []


def maps_text(maps: "Maps") -> str:
    """Return the first ranges as text."""
    return rendered(summary(maps), _maps_table(maps, _SHOWN), *_hidden(maps), *notes(maps))


def maps_html(maps: "Maps") -> str:
    """Return the first ranges as HTML."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in (*_hidden(maps), *notes(maps)))
    return f"<p>{escape(summary(maps))}</p>{html_table(_MAPS, map(_maps_row, maps[:_SHOWN]))}{lines}"


def _root_row(root: "Root") -> tuple[str, str, str]:
    cpus = ", ".join(map(str, root.cpus)) or "-"
    return f"{root.cr3:#x}", cpus, "-" if root.half is None else f"{root.half} half of {root.pair:#x}"


def roots_table(roots: "tuple[Root, ...]") -> Table:
    """Return the roots of a dump as a table."""
    table = Table()
    for column in _ROOTS:
        table.add_column(column)
    for root in roots:
        table.add_row(*_root_row(root))
    return table


def dump_html(dump: "MemoryDump") -> str:
    """Return a dump as HTML: its roots, its ranges of memory."""
    ranges = [
        (f"{one.start:#x}", f"{one.end:#x}", size_name(one.end - one.start)) for one in dump.memory.ranges[:_SHOWN]
    ]
    return (
        f"<p>{escape(repr(dump))}</p>{html_table(_ROOTS, map(_root_row, dump.roots))}"
        f"{html_table(('start', 'end', 'size'), ranges)}"
    )


def print_maps(dump: "MemoryDump", tables: "PageTables", maps: "Maps", out: Console) -> None:
    """Print a dump's roots and what the chosen one maps."""
    out.print(
        f"{dump.path}: {dump.format}, {size_name(dump.memory.size)} of memory in {len(dump.memory.ranges):,} ranges",
        markup=False,
    )
    if dump.cpus:
        out.print(roots_table(dump.roots))
    elif (other := dump.other_half(tables.cr3)) is not None:
        out.print(f"CR3 {tables.cr3:#x} is half of a KPTI pair: the {other.half} half is {other.cr3:#x}")
    out.print(summary(maps))
    if tables.levels_from == "assumed":
        out.print("4 levels are assumed: the dump has no CR4 (--levels 5 for LA57)")
    out.print(_maps_table(maps))
    for line in notes(maps):
        out.print(line)
