"""``shadow-mmu maps`` and ``shadow-mmu walk``: the page tables in a memory dump.

Exit codes: 0 fine, also where an address turns out not to be mapped; 2 wrong usage or a bad file; 130 interrupted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from shadow_mmu.cli.common import json_option, typed_errors

if TYPE_CHECKING:
    from shadow_mmu.dumps.dump import Format

__all__ = ["maps", "walk"]


def _word(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Return an unsigned 64-bit number, decimal or with 0x."""
    if text is None:
        return None
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise click.BadParameter(f"{text!r} is no number from 0 to 2^64-1 (0x for hexadecimal)")
    return number


def _levels(*choices: str, more: str = "") -> Callable[..., Any]:
    text = f"Levels of the tables, instead of what CR4 says{more}."
    return click.option("--levels", type=click.Choice(choices), help=text)


_OPTIONS = (
    click.option("--cr3", callback=_word, metavar="X", help="The root, instead of the CR3 of a vCPU."),
    click.option("--cpu", type=click.IntRange(min=0), metavar="N", help="The vCPU whose CR3 is taken; 0 without it."),
    click.option(
        "--format",
        "dump_format",
        type=click.Choice(["auto", "elf", "lime", "raw"]),
        default="auto",
        show_default=True,
        help="auto: by the first bytes of the file.",
    ),
    json_option,
)


def _which_tables(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whose tables are meant."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _format(text: str) -> "Format | None":
    return None if text == "auto" else cast("Format", text)


@click.command()
@click.argument("dump", type=click.Path(path_type=Path))
@_which_tables
@_levels("4", "5")
@click.option("--contiguous", is_flag=True, help="Merge only what is contiguous in guest-physical memory too.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Most pages to list. [default: 4,194,304]")
@typed_errors
def maps(
    dump: Path,
    *,
    cr3: int | None,
    cpu: int | None,
    levels: str | None,
    dump_format: str,
    as_json: bool,
    contiguous: bool,
    limit: int | None,
) -> None:
    """List what the page tables in DUMP map: ranges of the same rights and page size.

    DUMP is an ELF file of QEMU's dump-guest-memory, a LiME image, or raw memory from gpa 0 on. Without vCPU registers in it
    (LiME, raw) give --cr3.

    Exit code 0: fine. 2: wrong usage or a bad file.
    """
    from shadow_mmu.dumps.dump import open_dump  # noqa: PLC0415  --help needs no numpy
    from shadow_mmu.dumps.leaves import DEFAULT_LIMIT  # noqa: PLC0415  the same

    with open_dump(dump, format=_format(dump_format)) as opened:
        tables = opened.page_tables(cr3, cpu=cpu, levels=int(levels) if levels else None)
        found = tables.maps(contiguous=contiguous, limit=limit or DEFAULT_LIMIT)
        if as_json:
            other = opened.other_half(tables.cr3)
            report = {
                "dump": opened.path,
                "format": opened.format,
                "cpus": [one.as_dict() for one in opened.cpus],
                "roots": [one.as_dict() for one in opened.roots],
                **tables.as_dict(),
                "other_half": None if other is None else other.as_dict(),
                **found.as_dict(),
            }
            click.echo(json.dumps(report))
            return
        from shadow_mmu.dumps.render import print_maps  # noqa: PLC0415  JSON needs no rich
        from shadow_mmu.tables import console  # noqa: PLC0415  the same

        print_maps(opened, tables, found, console())


@click.command()
@click.argument("dump", type=click.Path(path_type=Path))
@click.argument("gva", callback=_word)
@_which_tables
@_levels("2", "3", "4", "5", more=": 2 is 32-bit paging, 3 PAE")
@typed_errors
def walk(
    dump: Path, gva: int, *, cr3: int | None, cpu: int | None, levels: str | None, dump_format: str, as_json: bool
) -> None:
    """Explain how the address GVA is translated by the page tables in DUMP, level by level.

    Exit code 0: fine, also if GVA is not mapped. 2: wrong usage or a bad file.
    """
    from shadow_mmu.dumps.dump import open_dump  # noqa: PLC0415  --help needs no numpy

    with open_dump(dump, format=_format(dump_format)) as opened:
        tables = opened.page_tables(cr3, cpu=cpu, levels=int(levels) if levels else None)
        found = tables.walk(gva)
    if as_json:
        click.echo(json.dumps({"dump": str(dump), **tables.as_dict(), **found.as_dict()}))
    else:
        click.echo(repr(found))
